"""One safe file: exact when whole, refused in one line and at once when not."""

from __future__ import annotations

import copy
import json
import pickle
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import slim
from slim.artifact import read_header
from slim.errors import SlimError
from slim.models import resnet, vgg
from tests.channels.laws import removal


def thin_resnet() -> nn.Module:
    net = resnet(depth=8)
    graph = slim.trace(net, torch.zeros(1, 3, 32, 32))
    return slim.rebuild(net, graph.plan(removal(graph, 0.5, 0)))


def dense_resnet() -> nn.Module:
    return resnet(depth=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slim.save(tmp_path_factory.mktemp("artifact") / "a.safetensors", thin_resnet(), metadata={"data": "digits"})


def test_save_then_load_is_exact(tmp_path: Path) -> None:
    thin = thin_resnet()
    path = slim.save(tmp_path / "a.safetensors", thin)
    again = slim.load(path, dense_resnet())
    assert repr(again) == repr(thin)
    for key, value in thin.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert not [p for p in tmp_path.iterdir() if p != path]


def test_after_several_cuts_the_plan_of_the_last_one_makes_the_same_file(tmp_path: Path) -> None:
    network, x = dense_resnet(), torch.zeros(1, 3, 32, 32)
    for _ in range(2):
        last = slim.prune(network, x, ratio=0.2)
        network = last.model
    path = slim.save(tmp_path / "a.safetensors", network, last.plan)
    assert repr(slim.load(path, dense_resnet())) == repr(network)
    assert path.read_bytes() == slim.save(tmp_path / "b.safetensors", network).read_bytes()


def test_two_saves_are_the_same_bytes(tmp_path: Path) -> None:
    thin = thin_resnet()
    first, second = (slim.save(tmp_path / name, thin, metadata={"a": "1", "b": "2"}) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_header_carries_plan_and_metadata(whole: Path) -> None:
    header = read_header(whole)
    assert header.plan is not None and header.metadata == {"data": "digits"}


def test_a_dense_network_and_shared_weights(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    net = Tied()
    again = slim.load(slim.save(tmp_path / "t.safetensors", net), Tied())
    assert torch.equal(again.b.weight, net.a.weight) and again.a.weight is again.b.weight


def refused(path: Path) -> str:
    """The one line with which the file is refused, within a second of processor time."""
    start = time.process_time()
    with pytest.raises(SlimError) as caught:
        slim.load(path, dense_resnet())
    assert time.process_time() - start < 1.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_files(whole: Path, tmp_path: Path) -> None:
    data, bad = whole.read_bytes(), tmp_path / "bad.safetensors"
    start = 8 + struct.unpack("<Q", data[:8])[0]

    def spoiled(content: bytes) -> Path:
        bad.write_bytes(content)
        return bad

    assert "readable" in refused(tmp_path / "missing.safetensors")
    assert "whole" in refused(spoiled(b""))
    assert "whole" in refused(spoiled(pickle.dumps(Path("/"))))
    assert "whole" in refused(spoiled(b"PK\x03\x04" + b"\xff" * 64))
    assert "header" in refused(spoiled(struct.pack("<Q", 100 * 2**20) + b"{" * 1000))
    assert re.search("whole|checksum", refused(spoiled(data[: len(data) // 2])))
    assert "checksum" in refused(spoiled(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]))
    header = data[8:start]
    name, entry = next((k, v) for k, v in json.loads(header).items() if v.get("dtype") == "F32")
    at = header.index(b'"F32"', header.index(f'"{name}"'.encode()))
    other = header[:at] + b'"I32"' + header[at + 5 :]
    assert "checksum" in refused(spoiled(data[:8] + other + data[start:])), "the same bytes, read as whole numbers"
    assert entry["shape"]
    foreign = json.dumps({"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    assert "slim.save" in refused(spoiled(struct.pack("<Q", len(foreign)) + foreign + b"\0" * 4))


def test_a_path_for_a_name_matches_nothing(tmp_path: Path) -> None:
    class Evil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("../../etc/passwd".replace(".", "_"), nn.Parameter(torch.zeros(1)))

    path = slim.save(tmp_path / "evil.safetensors", Evil())
    assert "match its network" in refused(path)


def test_another_architecture(whole: Path) -> None:
    with pytest.raises(SlimError, match=r"lacks|match"):
        slim.load(whole, vgg(depth=11))


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    net = dense_resnet()
    with torch.no_grad():
        net.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SlimError, match=r"finite.*conv1"):
        slim.save(tmp_path / "nan.safetensors", net)
    assert not list(tmp_path.iterdir())


def test_a_file_with_weights_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is right: whoever wrote it did not look."""
    net = dense_resnet()
    with torch.no_grad():
        net.conv1.weight[0, 0, 0, 0] = float("inf")
    with monkeypatch.context() as careless:
        careless.setattr("slim.artifact._check_finite", lambda *_: None)
        path = slim.save(tmp_path / "inf.safetensors", net)
    assert "finite" in refused(path)


class Holding(nn.Module):
    """A layer, and a buffer of any kind."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("held", buffer)


def test_an_attention_mask_is_no_weight_that_diverged(tmp_path: Path) -> None:
    net = Holding(torch.full((3, 3), float("-inf")).triu(1))
    assert torch.equal(slim.load(slim.save(tmp_path / "a", net), net).held, net.held)
    for spoiled in (torch.tensor([float("inf"), 1.0]), torch.tensor([float("nan"), 0.0]), net.held * 1j):
        with pytest.raises(SlimError, match=r"finite.*held"):
            slim.save(tmp_path / "b", Holding(spoiled))


@pytest.mark.parametrize(
    "odd", [torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse(), torch.zeros(2, device="meta")]
)
def test_a_tensor_that_no_file_holds_is_one_line(odd: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match=r"plain tensors\. Got held"):
        slim.save(tmp_path / "a", Holding(odd))


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.LazyLinear(2), r"weight \(UninitializedParameter\)"),
        (Holding(TwoTensor(torch.ones(2), torch.ones(2))), r"held \(TwoTensor\)"),
    ],
)
def test_weights_that_are_not_there_yet_or_of_another_class_are_one_line(
    net: nn.Module, says: str, tmp_path: Path
) -> None:
    with pytest.raises(SlimError, match=rf"plain tensors\. Got {says}"):
        slim.save(tmp_path / "a", net)


@pytest.mark.parametrize("metadata", [{"accuracy": 0.9}, {1: "a"}, ["a"]])
def test_metadata_that_could_not_be_read_back_are_refused(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="metadata must be"):
        slim.save(tmp_path / "a", nn.Linear(2, 2), metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_a_transposed_view_is_not_the_same_weight(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3)
            self.decode.weight = nn.Parameter(self.encode.weight.detach().t())

    net = Tied()
    again = slim.load(slim.save(tmp_path / "a", net), Tied())
    assert torch.equal(again.encode.weight, net.encode.weight) and torch.equal(again.decode.weight, net.decode.weight)


@given(st.binary(max_size=400))
def test_random_bytes_only_raise_slim_errors(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(content)
        with pytest.raises(SlimError):
            slim.load(path, nn.Linear(2, 2))


@given(st.data())
def test_random_damage_only_raises_slim_errors(whole: Path, data: st.DataObject) -> None:
    import tempfile

    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(content)
        try:
            slim.load(path, resnet(depth=8))
        except SlimError:
            pass
        else:
            assert at < 8 + struct.unpack("<Q", bytes(whole.read_bytes()[:8]))[0]  # only in the header's own text


def test_a_network_may_be_loaded_in_another_precision(tmp_path: Path) -> None:
    """The plan was made in double precision, the weights load as copy_ takes them."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    found = slim.prune(copy.deepcopy(net).double(), torch.zeros(1, 3, 8, 8, dtype=torch.float64), ratio=0.5)
    path = slim.save(tmp_path / "thin.safetensors", found.model, found.plan)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        thin = slim.load(path, copy.deepcopy(net).to(dtype))
        assert torch.equal(thin[0].weight, found.model[0].weight.to(dtype))


def test_layers_that_ask_for_their_version_find_it(tmp_path: Path) -> None:
    """Such as MNASNet; a state dict holds it beside its tensors, a file does not."""

    class Versioned(nn.Conv2d):
        _version = 2

        def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
            assert local_metadata["version"] == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    net = nn.Sequential(Versioned(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    found = slim.prune(net, torch.zeros(1, 3, 8, 8), ratio=0.5)
    thin = slim.load(slim.save(tmp_path / "thin.safetensors", found.model, found.plan), net)
    assert torch.equal(thin[0].weight, found.model[0].weight)
