"""The networks of the ladder: how each is trained and cut, as command lines of the product."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from slim.errors import RunFailed
from slim.files import read_json

BUDGETS = {"half": 0.5, "third": 0.3}
"""Name of a thin network -> its share of the dense network's MACs."""

IMAGES = (
    "data=image_folder", "data.limit_train=6000", "data.batch_size=64", "scheduler=one_cycle", "sparse.lr=0.1",
    "finetune.lr=0.05", "sparse.shrink=0.5",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A row of the table: the command line that trains it.

    Attributes:
        overrides: Of every run of this network.
        sparse: Epochs of sparse training.
        finetune: Epochs after each cut.
        photographs: Whether it is trained on ``--data``; the detector brings digits of its own.
    """

    overrides: tuple[str, ...]
    sparse: int
    finetune: int
    photographs: bool = True


NETWORKS = {
    "vgg": Network(("+experiment=vgg_slim", "model.widths=[32,M,64,M,128,128,M,256,M]", *IMAGES), 6, 3),
    "resnet20": Network(("+experiment=resnet_slim", *IMAGES), 6, 3),
    "mobilenetv2": Network(
        ("+experiment=vgg_slim", "model=torchvision", "model.name=mobilenet_v2", *IMAGES, "data.image_size=64"), 6, 3
    ),
    "detector": Network(
        ("+experiment=own_slim", "module._target_=examples.own.detector.GridDetector", "network=''",
         "data._target_=examples.own.scenes.Scenes", "+data.digits=3", "metric.name=f1", "metric.mode=max",
         "metric.percent=true", "penalty=l1", "sparse.shrink=0.3"),
        60, 30, photographs=False,
    ),
    "resnet56": Network(("+experiment=resnet_slim", "model.depth=56", *IMAGES), 3, 2),
}  # fmt: skip


def commands(name: str, data: Path, cache: Path) -> dict[str, list[str]]:
    """Run directory below ``cache/name`` -> overrides of the run that fills it: ``sparse`` first, then each budget."""
    network = NETWORKS[name]
    shared = [*network.overrides, *([f"data.dir={data}"] if network.photographs else []), "trainer.threads=1",
              f"sparse.epochs={network.sparse}", f"finetune.epochs={network.finetune}", f"name=deploy_{name}",
              "prune.ratio=null", "prune.round_to=8"]  # fmt: skip
    home = cache / name
    found = {"sparse": [*shared, "phases=[sparse]", "prune.macs=0.5"]}
    for budget, share in BUDGETS.items():
        begin = ["phases=[prune,finetune]", f"checkpoint={home / 'sparse' / 'model.safetensors'}"]
        found[budget] = [*shared, *begin, f"prune.macs={share}"]
    return {run: [*line, f"hydra.run.dir={home / run}"] for run, line in found.items()}


def train(name: str, data: Path, cache: Path) -> None:
    """Train and cut a network, as far as that is not done; a run that was stopped goes on.

    Raises:
        RunFailed: A run of the product ended with an error.
    """
    for run, line in commands(name, data, cache).items():
        state = cache / name / run / "state.json"
        if state.is_file() and read_json(state).get("finished"):
            continue
        line = [f"resume={state.parent}"] if state.is_file() else line
        if subprocess.run([sys.executable, "train.py", *line], check=False).returncode:
            raise RunFailed(
                f"A network must train. Got an error from {name}/{run}. Run python train.py {' '.join(line)}"
            )


def finished(name: str, cache: Path) -> bool:
    """Whether the dense and every thin network of ``name`` are there."""
    files = [cache / name / run / "model.safetensors" for run in ("sparse", *BUDGETS)]
    return all(file.is_file() for file in files)
