"""What every process of the suite needs: a thousand look-ups made once, event files in order. To import it is all."""

from __future__ import annotations

import copy
import functools
import os
import pickle
from collections.abc import Callable
from typing import Any

from lightning_utilities.core import imports

from slim.command.compose import CONF
from slim.importing import seldom_collected

# torchmetrics imports transformers and SciPy wherever they are, for metrics of texts and sounds: two seconds.
_there, _known = imports.package_available, imports.RequirementCache.__bool__
imports.package_available = lambda name: name != "scipy" and _there(name)
imports.RequirementCache.__bool__ = lambda self: (
    not self.requirement.startswith(("transformers", "scipy")) and _known(self)
)

with seldom_collected():
    import torch
    import torchmetrics  # noqa: F401
    from hydra._internal import config_loader_impl
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.plugins.config_source import ConfigResult
    from lightning_fabric.utilities import registry
    from pytorch_lightning.utilities import argparse
    from tensorboard.summary.writer import event_file_writer

imports.package_available, imports.RequirementCache.__bool__ = _there, _known

# TensorBoard reads event files by name: second, process, a counter without leading zeros. Runs that stop and go on in
# one process within one second would be read in the wrong order where the counter gets another digit.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)

# Lightning looks for plug-ins among all installed packages whenever a Trainer is made, and for each argument in the
# environment; a run makes a dozen.
registry.entry_points = functools.cache(registry.entry_points)
argparse._parse_env_variables = functools.cache(argparse._parse_env_variables)

# Of every seeding torch keeps the stack, for a GPU that may be used later; a run seeds fifteen times.
if not torch.cuda.is_available():
    torch.cuda.manual_seed_all = lambda seed: None

# A run waits thirty times until the disk has what it wrote. Only a power cut would show the difference: a killed
# process leaves its files whole without. That it asks for it, and when, is tested (tests/files/test_files.py).
os.fsync = lambda file: None

# For every export PyTorch reads the thousand functions again of which it makes ONNX.
_export = torch.onnx.export


def export(*args: Any, **options: Any) -> Any:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    torch.onnx.export = _export
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    return _export(*args, **options)


torch.onnx.export = export

# For every configuration Hydra copies, with all they hold, the places where it looks, and parses the same values again.
ConfigRepository.__deepcopy__ = lambda self, memo: copy.copy(self)
_parse_rule = OverridesParser.parse_rule
_parsed = functools.cache(lambda line: _parse_rule(OverridesParser.create(), line, "override"))


def parse_rule(self: OverridesParser, line: str, rule: str) -> Any:
    return copy.copy(_parsed(line)) if rule == "override" else _parse_rule(self, line, rule)


OverridesParser.parse_rule = parse_rule

# Hydra reads and merges thirty files for a configuration, before it looks at a command line's values. Those in conf/
# and in packages stay as they are.
_defaults = config_loader_impl.create_defaults_list
_load, _merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
_kept: dict[tuple[Any, ...], bytes] = {}


def _once(repository: Any, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What ``make`` gives, a copy of its own for each who asks; made again where it may change.

    That is where tests have files of their own, what is missing (it may come), and what Python code registers.
    """
    places = [source.full_path() for source in repository.get_sources()]
    if any(place.startswith("file:") and place != f"file://{CONF}" for place in places):
        return make()
    key = (*places, *what)
    if key not in _kept:
        found = make()
        if found is None or (isinstance(found, ConfigResult) and found.path.startswith("structured:")):
            return found
        _kept[key] = pickle.dumps(found)
    return pickle.loads(_kept[key])


def load_config(self: ConfigRepository, config_path: str) -> Any:
    return _once(self, (config_path,), lambda: _load(self, config_path))


def merged(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    key = [(each.config_path, each.parent, each.package, each.is_self, each.primary) for each in defaults]
    return _once(repo, ("merged", *key), lambda: _merge(self, defaults, repo))


def defaults_list(repo: Any, config_name: str, overrides_list: list[Any], **options: Any) -> Any:
    choices = [each for each in overrides_list if not each.is_sweep_override() and repo.group_exists(each.key_or_group)]
    choices = [each for each in choices if not isinstance(each.value(), dict)]
    key = ("defaults", config_name, *options.items(), *(each.input_line for each in choices))
    found = _once(repo, key, lambda: _defaults(repo, config_name, choices, **options))
    # Values do not change which files are read: only those of this line are applied, later.
    found.config_overrides = [each for each in overrides_list if each not in choices and not each.is_sweep_override()]
    return found


config_loader_impl.create_defaults_list = defaults_list
ConfigRepository.load_config = load_config
ConfigLoaderImpl._compose_config_from_defaults_list = merged
