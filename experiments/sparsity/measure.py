"""Measured latency of every method's network, in turns: eager torch, ONNX Runtime, and torch's CSR product.

Time depends on shapes and on where zeros are, not on what the weights were trained to: networks are built again from
the shapes in results.json, so that this runs on any machine, without images.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.bench.turns import take_turns
from experiments.nocliff.data import Images
from experiments.nocliff.network import vgg
from experiments.sparsity import int8, methods

BATCHES = (1, 64)
RUNS = {1: 20, 64: 2}  # of one contender in one turn; its time is their median


def latency(results: dict[str, Any], turns: int, threads: int) -> dict[str, Any]:
    """Milliseconds, and the share of the dense network's time in the same runtime, of all networks of seed 0.

    Returns:
        ``batches``: batch -> runtime (torch, onnx, csr) -> method -> ``ms`` and ``ratio``, medians over the turns.
        ``two_four``: what the 2:4 product took, or the error that torch gave.
    """
    shapes = {name.removesuffix("/s0"): r["shape"] for name, r in results.items() if name.endswith("/s0")}
    networks = {name: shaped(shape) for name, shape in shapes.items()}
    made: dict[str, dict[str, Any]] = {"torch": {}, "onnx": {}, "csr": {}}
    noise = Images(torch.randint(0, 256, (100, 32, 32, 3), dtype=torch.uint8), torch.zeros(100, dtype=torch.long))
    for name, model in networks.items():
        quantized = "int8" in shapes[name]
        made["onnx"][name] = int8.session(int8.quantize(model, noise) if quantized else int8.export(model), threads)
        if not quantized:
            made["torch"][name] = model
        if "density" in shapes[name]:
            made["csr"][name] = in_csr(shaped(shapes[name]))
    told: dict[str, Any] = {
        "machine": f"{platform.machine()}, {processor()}, {threads} threads, torch {torch.__version__}",
        "turns": turns,
        "load": round(os.getloadavg()[0], 1),
        "two_four": two_four_product(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "batches": {},
    }
    for batch in BATCHES:
        told["batches"][str(batch)] = _turns(made, batch, turns)
        print(f"batch {batch} done", flush=True)
    return told


def missing(results: dict[str, Any]) -> set[str]:
    """Methods with a network of seed 0 that has not been timed."""
    timed_before = results["latency"]["batches"]["1"]["onnx"] if "latency" in results else {}
    return {name.removesuffix("/s0") for name in results if name.endswith("/s0")} - set(timed_before)


def _turns(made: dict[str, dict[str, Any]], batch: int, turns: int) -> dict[str, Any]:
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    spread, plain = x.to(memory_format=torch.channels_last), x.numpy()
    calls: dict[str, Callable[[], object]] = {}
    for runtime, contenders in made.items():
        for name, one in contenders.items():
            if runtime == "onnx":
                calls[f"{runtime}/{name}"] = partial(one.run, None, {"images": plain})
            else:
                calls[f"{runtime}/{name}"] = partial(one, spread if runtime == "torch" else x)
    gc.freeze()  # take_turns collects before every contender, which takes longer than the contenders do
    with torch.inference_mode():
        seen = take_turns({name: partial(timed, call, RUNS[batch]) for name, call in calls.items()}, turns)
    gc.unfreeze()
    found: dict[str, Any] = {}
    for key in calls:
        runtime, _, name = key.partition("/")
        base = "onnx/dense" if runtime == "onnx" else "torch/dense"
        cell = {"ms": round(1e3 * seen.median(key), 4), "ratio": round(seen.ratio(key, base), 4)}
        found.setdefault(runtime, {})[name] = cell
    return found


def timed(call: Callable[[], object], runs: int) -> float:
    """Median seconds of ``runs`` calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def shaped(shape: dict[str, Any]) -> nn.Sequential:
    """A network of this shape with fresh weights, in eval mode; zeros at random places, as many as each layer has."""
    torch.manual_seed(0)
    model = vgg(shape["widths"])
    if "ranks" in shape:
        methods.factor(model, shape["ranks"])
    for layer, density in zip(methods.layers(model), shape.get("density", []), strict=False):
        with torch.no_grad():
            kept = torch.randperm(layer.weight.numel()) < round(density * layer.weight.numel())
            layer.weight.mul_(kept.reshape(layer.weight.shape))
    return model.eval()


class CsrConv(nn.Module):
    """A convolution without bias as the product of a CSR matrix with the unfolded image."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = compressed(conv.weight)
        self.kernel, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H', W')``."""
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(
            x.shape[2:], self.padding, self.kernel, self.stride, strict=True)]  # fmt: skip
        columns = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)
        product = self.weight @ columns.movedim(1, 0).flatten(1)
        return product.unflatten(1, (len(x), *size)).movedim(1, 0)


class CsrLinear(nn.Module):
    """A linear layer whose weight is a CSR matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = compressed(linear.weight), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in)`` to ``(B, out)``."""
        return (self.weight @ x.T).T + self.bias


def compressed(weight: Tensor) -> Tensor:
    """CSR of the ``(out, in * kh * kw)`` matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: its CSR is in beta
        return weight.detach().flatten(1).contiguous().to_sparse_csr()


def in_csr(model: nn.Sequential) -> nn.Sequential:
    """The network with every convolution and linear layer but the first in CSR, in place."""
    chosen = {id(layer) for layer in methods.layers(model)}
    for i, layer in enumerate(model):
        if id(layer) in chosen:
            model[i] = CsrConv(layer) if isinstance(layer, nn.Conv2d) else CsrLinear(layer)  # type: ignore[arg-type]
    return model


def two_four_product(device: torch.device) -> str:
    """What torch's 2:4 product of a 128 x 1152 weight (this network's largest layer) takes beside the dense one."""
    dense = torch.randn(128, 1152, device=device, dtype=torch.float16)
    weight = dense * methods.two_four_mask(dense)
    x = torch.randn(1152, 4096, device=device, dtype=torch.float16)
    try:
        sparse = torch.sparse.to_sparse_semi_structured(weight)
        seen = take_turns({"dense": lambda: weight @ x, "2:4": lambda: sparse @ x}, 50, warmup=5)
    except (RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return f"{seen.ratio('2:4', 'dense'):.2f} x the dense product's time on {torch.cuda.get_device_name(device)}"


def processor() -> str:
    """Its name, and what of it int8 arithmetic depends on."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = file.read().splitlines()
    except OSError:
        return platform.processor()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    stripped = {key.strip(): value.strip() for key, value in values.items()}
    flags = stripped.get("flags", "").split()
    has = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return f"{stripped.get('model name', '')} ({' '.join(has)})"
