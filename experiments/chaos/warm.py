"""What a run imports, looks up and measures, in the process that runs are forked from: importing this module is enough.

Nothing here may start threads, which do not survive a fork.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil

from slim.importing import seldom_collected

LIBRARIES = ("pytorch_lightning", "torchvision", "torch.utils.tensorboard", "sklearn.datasets", "safetensors.torch")
PARTS = ("criteria", "data", "lightning", "models", "recovery", "report", "runs", "selection", "sparsity", "tasks")

with seldom_collected():
    import torch
    from hydra._internal.utils import get_args_parser

    from slim.command.changed import changed
    from slim.command.compose import compose, register
    from slim.report.latency import compare

    for name in LIBRARIES:
        importlib.import_module(name)
    for name in PARTS:
        package = importlib.import_module(f"slim.{name}")
        for found in pkgutil.iter_modules(package.__path__, f"slim.{name}."):
            importlib.import_module(found.name)

register("id")
_line, _args = ["+experiment=vgg_slim"], get_args_parser().parse_args([])
_config, _whole = compose(_line, _args)
changed(_line, _config, dict(_whole.hydra.runtime.choices), _args)

torch.set_num_threads(1)
compare({}, torch.zeros(1), batches=(), seconds=0.001)  # how fast this machine is, measured as tiny runs do

# All of it stays: the collections of a run need not walk through it, nor the system copy it for them.
gc.collect()
gc.freeze()
