"""``round_to=auto``: the multiple of channels that this machine's runtime likes, measured on a layer of the network."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim.errors import SlimError
from slim.files import read_json, user_cache, write_json
from slim.selection.latency import side_by_side

MULTIPLES = (1, 4, 8, 16, 32)
CLOSE = 1.08
"""A multiple is as good as another when its time per MAC is within this factor: measurements differ as much."""
DEPTH = 3
"""Convolutions in a row that are timed."""
ENOUGH = 16
"""Channels from which a layer tells multiples apart; one that reads the images has three, and often the most MACs."""


@dataclass(frozen=True)
class Rounding:
    """What was measured.

    Attributes:
        multiple: The smallest of :data:`MULTIPLES` that is nearly as fast as the fastest.
        runtime: ``onnxruntime 1.x`` or ``torch 2.x``, and the processor.
        layer: Channels, kernel and image of the convolution, as text.
        nanoseconds: Multiple -> nanoseconds per 1,000 MACs.
    """

    multiple: int
    runtime: str
    layer: str
    nanoseconds: Mapping[str, float]

    @property
    def line(self) -> str:
        """For the report."""
        times = ", ".join(f"{multiple}: {value:.2f}" for multiple, value in self.nanoseconds.items())
        return (
            f"round_to=auto is {self.multiple}: ns per 1,000 MACs of a convolution of {self.layer}, by what its "
            f"width is a multiple of: {times} ({self.runtime})."
        )


@dataclass(frozen=True)
class Layer:
    """A typical convolution: its channels, kernel size, and the height and width of its input."""

    channels: int
    kernel: int
    size: int


def measure(
    network: nn.Module, example: Any, *, time: Callable[[Layer, Sequence[int]], list[float]] | None = None
) -> Rounding:
    """Choose the multiple for a network; measured once per machine and layer, then read from the user's cache folder.

    Args:
        network: Left as it is.
        example: One input of it.
        time: Milliseconds of one image in the layer at each of some widths; by default ONNX Runtime's where it is
            installed, else torch's.

    Raises:
        SlimError: The network has no convolution to measure.
    """
    layer = typical(network, example)
    runtime = _runtime()
    place = user_cache() / f"rounding-{layer.channels}-{layer.kernel}-{layer.size}.json"
    if time is None and place.is_file():
        known = _read(place)
        if known is not None and known.runtime == runtime:
            return known
    widths = {multiple: width for multiple in MULTIPLES if (width := _width(layer.channels, multiple)) is not None}
    millis = (time or _time)(layer, list(widths.values()))
    macs = [width * width * layer.kernel**2 * layer.size**2 for width in widths.values()]
    each = {str(m): 1e9 * ms / n for m, ms, n in zip(widths, millis, macs, strict=True)}
    best = min(each.values())
    multiple = next(int(m) for m, value in each.items() if value <= CLOSE * best)
    shape = f"{layer.channels} channels, {layer.kernel}x{layer.kernel}, on {layer.size}x{layer.size}"
    found = Rounding(multiple, runtime, shape, {m: round(value, 3) for m, value in each.items()})
    if time is None:
        _write(place, found)
    return found


def typical(network: nn.Module, example: Any) -> Layer:
    """The convolution of ``network`` with the most MACs, of those that are not depthwise, grouped or very thin.

    Raises:
        SlimError: There is none.
    """
    from slim.channels.meta_forward import call_arguments

    seen: list[tuple[int, Layer]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert isinstance(module, nn.Conv2d)
        kernel = int(module.kernel_size[0])
        macs = module.in_channels * module.out_channels * kernel**2 * output.shape[-1] * output.shape[-2]
        channels = min(module.in_channels, module.out_channels)
        seen.append((macs, Layer(channels, kernel, int(output.shape[-1]))))

    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    handles = [module.register_forward_hook(note) for module in modules]
    modes = [(module, module.training) for module in network.modules()]
    args, kwargs = call_arguments(example)
    try:
        with torch.no_grad():
            network.eval()(*args, **kwargs)
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    if not seen:
        raise SlimError("round_to=auto needs a convolution to measure. Got none. Set prune.round_to to a number.")
    return max(seen, key=lambda entry: (min(entry[1].channels, ENOUGH), entry[0], -entry[1].channels))[1]


def _width(channels: int, multiple: int) -> int | None:
    """A width above half of ``channels`` that is a multiple of ``multiple`` and of nothing larger in the list.

    It lies just above a multiple of the largest, where the unused part of a runtime's blocks is largest. ``None`` where
    a step would be more than half of the layer.
    """
    largest = max(m for m in MULTIPLES if m <= max(1, channels // 2))
    return channels // 2 // largest * largest + multiple if multiple <= largest else None


def _time(layer: Layer, widths: Sequence[int]) -> list[float]:
    """Milliseconds of one image in the layer, by width, in turns; of many at once, so that starting counts little."""
    batch = min(256, max(8, round(2e7 / (min(widths) * layer.kernel * layer.size) ** 2)))
    inputs = [torch.randn(batch, width, layer.size, layer.size) for width in widths]
    depth = DEPTH
    try:
        networks: list[nn.Module] = [_onnx_layer(width, layer.kernel) for width in widths]
    except (ImportError, SlimError):
        depth = 1
        networks = [nn.Conv2d(width, width, layer.kernel, padding=layer.kernel // 2) for width in widths]

    class Fed(nn.Module):
        def __init__(self, network: nn.Module, given: torch.Tensor) -> None:
            super().__init__()
            self.network, self.given = network, given

        def forward(self, _: torch.Tensor) -> Any:
            return self.network(self.given)

    fed = [Fed(network, given) for network, given in zip(networks, inputs, strict=True)]
    # Whoever shares the machine stretches some of the runs: the least time is of the layer alone.
    times = side_by_side(fed, torch.zeros(1), seconds=0.3, statistic=min)
    return [millis / (batch * depth) for millis in times]


def _onnx_layer(width: int, kernel: int) -> nn.Module:
    """A few of the convolution in a row in ONNX Runtime: it chooses layouts for a graph, not for a layer."""
    import tempfile

    from slim.deploy.extras import need
    from slim.deploy.onnx_file import OnnxNetwork

    onnx = need("onnx")
    nodes, weights = [], []
    for index in range(DEPTH):
        nodes.append(
            onnx.helper.make_node(
                "Conv", [f"x{index}", f"w{index}"], [f"c{index}"], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4
            )
        )
        nodes.append(onnx.helper.make_node("Relu", [f"c{index}"], [f"x{index + 1}"]))
        values = (torch.randn(width, width, kernel, kernel) / width).numpy()
        weights.append(onnx.numpy_helper.from_array(values, f"w{index}"))
    shape = ["n", width, "h", "w"]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x0", f"x{DEPTH}")]
    graph = onnx.helper.make_graph(nodes, "layer", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(model, str(path))
        return OnnxNetwork(path)


def _runtime() -> str:
    from importlib import metadata

    try:
        found = f"onnxruntime {metadata.version('onnxruntime')}"
    except metadata.PackageNotFoundError:
        found = f"torch {torch.__version__}"
    return f"{found}, {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _read(path: Path) -> Rounding | None:
    try:
        found = Rounding(**read_json(path))
        return found if found.multiple in MULTIPLES else None
    except (SlimError, TypeError):
        return None


def _write(path: Path, found: Rounding) -> None:
    with contextlib.suppress(SlimError):  # a cache that cannot be written costs seconds, no more
        write_json(path, json.loads(json.dumps(asdict(found))))
