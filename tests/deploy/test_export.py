"""Laws of an export: every file computes what the network does, for any batch, or no file stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim import deploy
from slim.deploy import extras, onnx_file
from slim.deploy.capture import capture, graph_of
from slim.deploy.export import save_program
from slim.deploy.quantize import has_vnni
from slim.errors import RunFailed, SlimError
from tests.deploy.small import SIZE, images, network

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

METADATA = {"mean": [0.5] * 3, "std": [0.2] * 3, "size": SIZE, "classes": list("abcde"), "plan": None}
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 does not write a BatchNorm as ONNX that no convolution comes before")
    return network()


def compared(net: nn.Module) -> Any:
    return lambda runner: deploy.compare(net, runner, images(2, seed=1))


@pytest.fixture(scope="module")
def exported(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, deploy.Exported]:
    folder = tmp_path_factory.mktemp("export")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = deploy.Options(formats=("onnx", "int8", "pt2"), max_loss=0.2)
    found = deploy.export(net, EXAMPLE, folder, options, compare=compared(net), calibration=images, metadata=METADATA)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return folder, found


def outputs(folder: Path, form: str, x: Tensor) -> Tensor:
    runner = deploy.FORMATS[form].load(folder / deploy.FORMATS[form].file, None, 1)
    with torch.no_grad():
        found: Tensor = runner(x)
    return found


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_float_files_are_equal_for_any_batch(form: str, batch: int, net: nn.Module, exported: Any) -> None:
    x = torch.randn(batch, 3, SIZE, SIZE)
    torch.testing.assert_close(outputs(exported[0], form, x), net(x), rtol=1e-4, atol=1e-4)


def test_int8_is_close_smaller_and_in_int8(net: nn.Module, exported: Any) -> None:
    folder, found = exported
    x = torch.cat(images(4, seed=2))
    reference = net(x)
    assert (outputs(folder, "int8", x) - reference).abs().max() < 0.2 * reference.abs().max()
    assert found.parity["int8"].agreement > 0.9 and found.parity["int8"].difference > 0
    model = onnx.load(str(folder / "model.int8.onnx"))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    weights = [(arrays[node.input[0]], arrays[node.input[1]]) for node in nodes if arrays[node.input[0]].ndim == 4]
    assert len(weights) == 3
    for weight, scale in weights:
        assert weight.dtype.name == "int8" and scale.shape == weight.shape[:1]


class Scored(nn.Module):
    """Arithmetic after the last weights, as boxes are made."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return torch.cat([(2 * logits).sigmoid() + 1, logits.exp() * 3], 1)


def test_what_comes_after_the_last_weights_stays_in_float(net: nn.Module, tmp_path: Path) -> None:
    scored = Scored(net)
    options = deploy.Options(formats=("int8",), max_loss=0.2)
    deploy.export(scored, EXAMPLE, tmp_path, options, compare=compared(scored), calibration=images)
    model = onnx.load(str(tmp_path / "model.int8.onnx"))
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    quantized = {
        made[node.input[0]] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in made
    }
    assert quantized >= {"Conv", "Gemm"} and not quantized & {"Sigmoid", "Mul", "Exp", "Concat"}
    assert made[model.graph.output[0].name] == "Concat"


def test_batch_norm_is_folded_where_a_convolution_comes_before(net: nn.Module, exported: Any) -> None:
    operators = [str(node.target) for node in graph_of(capture(net, EXAMPLE)).graph.nodes]
    assert operators.count("aten.batch_norm.default") == 1  # of three: the one that a sum comes before
    model = onnx.load(str(exported[0] / "model.onnx"))
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) <= 1
    stored = set(capture(net, EXAMPLE).state_dict)
    assert not any(name.startswith(("one.", "norm1.", "norm2.")) for name in stored)


class Odd(nn.Module):
    """BatchNorms that no layer can take in: a computed scale, a computed bias, features that are not axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.linear = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 6)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm1d(6)])
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norms[0]
        x = F.batch_norm(self.one(x), norm.running_mean, norm.running_var, 1 + norm.weight, norm.bias)
        x = self.norms[1](F.conv2d(x, self.two.weight, self.two.bias + self.shift))
        rows = x[:, :, :6, :6].mean(1)
        return self.norms[2](self.linear(rows)).flatten(1)


def test_what_cannot_be_folded_stays_a_batch_norm() -> None:
    odd, x = Odd(), torch.randn(5, 3, SIZE, SIZE)
    odd(x), odd.eval()
    graph = graph_of(capture(odd, x))
    torch.testing.assert_close(graph(x), odd(x), rtol=1e-4, atol=1e-4)
    assert [str(node.target) for node in graph.graph.nodes].count("aten.batch_norm.default") == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_of_another_precision_is_captured_in_float32(dtype: torch.dtype, net: nn.Module) -> None:
    other, x = network().to(dtype), torch.randn(3, 3, SIZE, SIZE)
    found = graph_of(capture(other, EXAMPLE.to(dtype)))(x)
    torch.testing.assert_close(found, other.float()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_histograms_take_a_last_batch_that_is_not_full(calibration: str, net: nn.Module, tmp_path: Path) -> None:
    options = deploy.Options(("int8",), calibration=calibration, max_loss=0.5)
    deploy.export(
        net, EXAMPLE, tmp_path, options, compare=compared(net), calibration=lambda: [images(1)[0], images(1)[0][:5]]
    )
    assert (tmp_path / "model.int8.onnx").is_file()


def test_onnx_carries_metadata_and_nothing_of_this_machine(exported: Any) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        assert onnx_file.metadata_of(exported[0] / name) == METADATA
        content = (exported[0] / name).read_bytes()
        assert not any(word in content for word in (b"stack_trace", b"forward", str(Path.cwd()).encode()))
    model = onnx.load(str(exported[0] / "model.onnx"))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert "model.int8.onnx" in (exported[0] / "predict.py").read_text()


def test_a_failed_parity_leaves_the_files_of_before(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"before")

    def other(runner: nn.Module) -> deploy.Parity:
        return deploy.compare(lambda x: net(x) + 1, runner, images(1))

    with pytest.raises(RunFailed, match="onnx must compute what the network does"):
        deploy.export(net, EXAMPLE, tmp_path, deploy.Options(), compare=other, metadata=METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"before"


def test_int8_without_the_range_of_real_images_fails(net: nn.Module, tmp_path: Path) -> None:
    def dark() -> list[Tensor]:
        return [torch.full((4, 3, SIZE, SIZE), 1e-3)]

    with pytest.raises(RunFailed, match="int8 must be nearly as good"):
        deploy.export(
            net, EXAMPLE, tmp_path, deploy.Options(("int8",), max_loss=0.1), compare=compared(net), calibration=dark
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("onxn",)}, "Did you mean onnx"),
        ({"formats": ()}, "must name a format"),
        ({"formats": ("int8",)}, "int8 needs real images"),
        ({"calibration": "mean"}, "export.calibration must be known"),
    ],
)
def test_impossible_options_are_refused_first(
    options: dict[str, Any], message: str, net: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(SlimError, match=message) as caught:
        deploy.export(net, EXAMPLE, tmp_path / "new", deploy.Options(**options), compare=compared(net))
    assert caught.value.exit_code == 2 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("opset", [5, 17, 99])
def test_an_opset_that_the_exporter_does_not_write_is_refused(opset: int, net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match=rf"Got opset={opset}, it wrote \d+\. Set export.opset"):
        deploy.export(net, EXAMPLE, tmp_path, deploy.Options(opset=opset), compare=compared(net))
    assert not list(tmp_path.iterdir())


def test_an_opset_that_it_writes_is_in_the_file(net: nn.Module, tmp_path: Path) -> None:
    found = deploy.export(net, EXAMPLE, tmp_path, deploy.Options(opset=18), compare=compared(net))
    assert [each.version for each in onnx.load(found.files["onnx"]).opset_import if not each.domain] == [18]


def test_a_folder_that_cannot_be_made_is_one_line(net: nn.Module) -> None:
    with pytest.raises(SlimError, match=r"must be writable. Got /proc/nowhere") as caught:
        deploy.export(net, EXAMPLE, Path("/proc/nowhere"), deploy.Options(), compare=compared(net))
    assert caught.value.exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line() -> None:
    program = capture(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(RunFailed, match=r"The disk must have room for full\. Got No space left on device"):
        save_program(program, Path("/dev/full"))


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "not_there", "openvino")
    with pytest.raises(SlimError, match=r"needs the package not_there.* Install slim-channels\[openvino\]"):
        extras.need("not_there")


def test_a_network_that_cannot_be_followed_is_one_line(tmp_path: Path, capfd: Any) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(RunFailed, match=r"must be exportable by torch.export\. Got .*Branching"):
        deploy.export(Branching(), torch.zeros(1, 3), tmp_path, deploy.Options(), compare=compared(nn.Identity()))
    assert capfd.readouterr() == ("", ""), "and not the graph as far as it came"


def test_openvino_reads_both(net: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    options = deploy.Options(("openvino", "openvino_int8"), max_loss=0.2)
    found = deploy.export(net, EXAMPLE, tmp_path, options, compare=compared(net), calibration=images)
    assert found.parity["openvino"].relative < 1e-4 < found.parity["openvino_int8"].relative
    assert {path.suffix for path in tmp_path.iterdir()} == {".xml", ".bin"}
    rows = found.described()
    assert rows["openvino_int8"]["bytes"] > (tmp_path / "model.int8.openvino.xml").stat().st_size


@pytest.mark.parametrize(
    ("machine", "flags", "whole"),
    [
        ("x86_64", "flags : sse avx2", False),
        ("AMD64", "flags : avx2 avx_vnni", True),
        ("x86_64", "flags : amx_int8", True),
        ("aarch64", "Features : asimd", True),
        ("x86_64", None, True),
    ],
)
def test_products_of_bytes_saturate_where_vnni_lacks(
    machine: str, flags: str | None, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can tell (no /proc), weights keep their eight bits."""

    def read(*_: Any, **__: Any) -> str:
        if flags is None:
            raise FileNotFoundError("/proc/cpuinfo")
        return flags

    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert has_vnni() == whole
