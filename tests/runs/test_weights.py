"""Checkpoints of anybody's training are weights to begin with, whatever their module called the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.runs import weights
from slim.runs.state import State


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def filled(path: Path, state: dict[str, Tensor], key: str = "state_dict") -> nn.Module:
    torch.save({key: state}, path)
    empty, module = network(), nn.Module()
    module.ours = empty
    weights.fill(module, empty, weights.read(path)[1], path)
    return empty


@pytest.mark.parametrize("place", ["", "net.", "_orig_mod.", "net._orig_mod.", "module.model.backbone."])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_a_network_under_another_name(tmp_path: Path, place: str, key: str) -> None:
    given = network().state_dict()
    beside = {"loss.weight": torch.ones(3), "accuracy.total": torch.zeros(())} if place.startswith("net") else {}
    found = filled(tmp_path / "a.ckpt", {f"{place}{name}": value for name, value in given.items()} | beside, key)
    assert all(torch.equal(value, given[name]) for name, value in found.state_dict().items())


def test_a_deeper_network_and_two_networks_are_refused(tmp_path: Path) -> None:
    deeper = nn.Sequential(*network(), nn.Conv2d(2, 2, 3)).state_dict()
    with pytest.raises(SlimError, match="0 weights missing, 2 unknown"):
        filled(tmp_path / "deeper.ckpt", {f"net.{name}": value for name, value in deeper.items()})
    twice = {f"{place}.{name}": value for place in ("net", "ema") for name, value in network().state_dict().items()}
    with pytest.raises(SlimError, match=r"Got 2, under net\., ema\."):
        filled(tmp_path / "twice.ckpt", twice)


def test_safetensors_of_anybody(tmp_path: Path) -> None:
    given, empty, module, path = network().state_dict(), network(), nn.Module(), tmp_path / "a.safetensors"
    save_file({f"model.{name}": value for name, value in given.items()}, path, metadata={"format": "pt"})
    module.ours = empty
    plan, read = weights.read(path)
    weights.fill(module, empty, read, path)
    assert plan is None and all(torch.equal(value, given[name]) for name, value in empty.state_dict().items())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SlimError, match="must be whole"):
        weights.read(path)


def test_a_thin_network_is_kept_with_what_its_module_has_beside_it(tmp_path: Path) -> None:
    """The plan names the weights of the network alone."""
    module = LightningModule()
    module.net, module.head = nn.Sequential(*network(), nn.Conv2d(2, 3, 3)), nn.Linear(3, 2)
    plan = slim.prune(module.net, torch.zeros(1, 1, 8, 8), ratio=0.5).plan
    slim.rebuild(module.net, plan, in_place=True)
    weights.save(tmp_path / "a.safetensors", module, module.net)
    found, read = weights.read(tmp_path / "a.safetensors")
    assert found is not None and found.hash == plan.hash
    assert {name: value.shape for name, value in read.items()} == {
        name: value.shape for name, value in module.state_dict().items()
    }


def test_layers_that_ask_for_their_version_find_it(tmp_path: Path) -> None:
    """Such as MNASNet; a state dict holds it beside its tensors, a file does not."""

    class Versioned(nn.BatchNorm2d):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
            assert local_metadata["version"] == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    empty, module, path = Versioned(2), nn.Module(), tmp_path / "a.safetensors"
    save_file({"net." + name: value + 1 for name, value in empty.state_dict().items()}, path)
    module.ours = empty
    weights.fill(module, empty, weights.read(path)[1], path)
    assert (empty.weight == 2).all()


def test_the_last_network_of_a_run_is_that_of_its_last_phase(tmp_path: Path) -> None:
    """However old the files are: a run that was copied has them in the order of the copy."""
    state = State(tmp_path, {}, [])
    for age, phase in enumerate(("sparse", "prune", "finetune", "export")):
        if phase != "export":
            (tmp_path / phase).mkdir()
            weights.save(tmp_path / phase / weights.NETWORK, module := LightningModule(), module)
            os.utime(tmp_path / phase / weights.NETWORK, (1000 - age, 1000 - age))
        state.finish(phase, {})
    assert weights._last_of(tmp_path).parent.name == "finetune"
