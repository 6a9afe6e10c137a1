"""An artifact says how its dense network is built; it cannot make its reader run or read anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import slim
from slim import recipe
from slim.artifact import read_header
from slim.errors import SlimError
from slim.models import recipe as recipe_of
from slim.models import vgg

VGG = {"_target_": "slim.models.vgg", "widths": [8, "M", 16], "num_classes": 10}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
called: list[Any] = []


def own(**options: Any) -> torch.nn.Module:
    """A builder that no file may name unless it is trusted."""
    called.append(options)
    return vgg(widths=[8, "M", 16], num_classes=10)


def saved(path: Path, builder: dict[str, Any] | None) -> torch.nn.Module:
    torch.manual_seed(3)
    result = slim.prune(vgg(widths=[8, "M", 16], num_classes=10), X, ratio=0.4, criterion="l1")
    slim.save(path, result.model, result.plan, builder=builder)
    return result.model.eval()


def test_an_artifact_loads_without_its_network(tmp_path: Path) -> None:
    """The same function, bit for bit, and the caller's random numbers stay where they were."""
    thin = saved(tmp_path / "thin.safetensors", VGG)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = slim.load(tmp_path / "thin.safetensors").eval()
    assert torch.equal(again(X), thin(X))
    assert torch.equal(torch.get_rng_state(), before)
    assert read_header(tmp_path / "thin.safetensors").builder == VGG


def test_an_artifact_without_a_builder_says_so(tmp_path: Path) -> None:
    saved(tmp_path / "thin.safetensors", None)
    with pytest.raises(SlimError, match=r"thin\.safetensors.*save with builder="):
        slim.load(tmp_path / "thin.safetensors")


def test_only_trust_calls_what_a_file_names(tmp_path: Path) -> None:
    builder = {"_target_": f"{__name__}.own", "depth": 3}
    thin = saved(tmp_path / "thin.safetensors", builder)
    called.clear()
    with pytest.raises(SlimError, match="trust=True"):
        slim.load(tmp_path / "thin.safetensors")
    assert not called
    assert torch.equal(slim.load(tmp_path / "thin.safetensors", trust=True).eval()(X), thin(X))
    assert called == [{"depth": 3}]


HOSTILE = [
    {"_target_": "os.system", "command": "touch exploded"},
    {"_target_": "slim.models.build.build", "target": "os.system", "num_classes": 3},
    {"_target_": "slim.models.build", "target": "os.getcwd", "num_classes": 3},
    {"_target_": "torchvision.io.write_file", "filename": "exploded"},
    {"_target_": "torchvision.models.get_model", "name": "fasterrcnn_resnet50_fpn"},  # it would fetch a backbone
    {"_target_": "timm.create_model", "model_name": "hf-hub:somebody/model"},
    {"_target_": "timm.create_model", "model_name": "resnet10t", "checkpoint_path": "weights.pth"},
    {"_target_": "timm.create_model", "model_name": "resnet10t", "pretrained_cfg": {"file": "weights.pth"}},
    {"_target_": "slim.models.timm_model", "name": "local-dir:/tmp/model"},
    {"_target_": "slim.models.torchvision_model", "name": "resnet18", "pretrained": True},
    {"_target_": "slim.models.transformers_model", "name": "somebody/model", "pretrained": False},
    {"_target_": "slim.models.transformers_model", "name": "resnet", "attn_implementation": "somebody/kernel"},
    {"_target_": "slim.models.transformers_model", "name": "resnet", "trust_remote_code": True},
    {"_target_": "slim.models.vgg", "widths": [8, "../../etc"], "num_classes": 3},
]


@pytest.mark.parametrize("builder", HOSTILE, ids=lambda builder: builder["_target_"])
def test_a_hostile_file_runs_and_reads_nothing(
    builder: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "thin.safetensors", builder)
    monkeypatch.setattr("slim.recipe.callable_at", lambda path, name: pytest.fail(f"{path} was imported"))
    with pytest.raises(SlimError, match="A file may"):
        slim.load("thin.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_path_that_is_dropped_is_none_that_is_read() -> None:
    """timm's and transformers' names for stochastic depth."""
    recipe.check({"_target_": "timm.create_model", "model_name": "convnext_atto", "drop_path_rate": 0.1})


@pytest.mark.parametrize(
    ("builder", "says"),
    [
        ({}, "dotted path"),
        ({"_target_": "vgg"}, "dotted path"),
        ({"_target_": "a.b", "x": {1, 2}}, "plain data"),
        ({"_target_": "a.b", "x": float("nan")}, "plain data"),
    ],
)
def test_a_recipe_is_plain_data(builder: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match=says):
        saved(tmp_path / "thin.safetensors", builder)
    assert not list(tmp_path.iterdir())


def test_a_header_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thin.safetensors"
    saved(path, VGG)
    body = path.read_bytes()
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["slim"])
    header["__metadata__"]["slim"] = json.dumps({**inner, "builder": ["os.system"]})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body[8 + size :])
    with pytest.raises(SlimError, match="malformed"):
        slim.load(path)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("vgg", {"widths": [8, "M", 16]}),
        ("resnet", {"depth": 8}),
        ("slim.models.mlp", {"hidden": [4], "image_size": 4}),
        ("slim.models.torchvision_model", {"name": "squeezenet1_1"}),
    ],
)
def test_a_recipe_builds_what_build_builds(target: str, options: dict[str, Any]) -> None:
    from slim.models import build

    found = recipe_of(target, 5, 3, **options)
    again, first = recipe.build(found), build(target, 5, 3, **options)
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [
        (k, v.shape) for k, v in first.state_dict().items()
    ]


def test_a_recipe_forgets_pretrained_weights() -> None:
    """They come from the artifact; what they changed in the forward stays."""
    found = recipe_of("torchvision", 10, name="googlenet", pretrained=True)
    assert found["pretrained"] is False and found["transform_input"] is True
    assert recipe.build(found).transform_input is True
