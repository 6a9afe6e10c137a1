"""Measure networks in turns on this machine, beside the dense network they were made from.

slim bench thin.safetensors
slim bench outputs/vgg_slim/<id> other.safetensors --batch 1 64 --seconds 2
Every figure is a median of runs in which all networks take turns; only their ratios carry over to another day.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import slim
from slim.channels.text_table import align, with_prefix
from slim.command import model
from slim.command.model import Model
from slim.errors import SlimError


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    model.arguments(parser, several=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="batch sizes (default: 1 64)")
    parser.add_argument("--seconds", type=float, default=1.0, help="to spend per network and batch size (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0, ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="of the processor (default: PyTorch's)")
    parser.add_argument("--no-dense", action="store_true", help="leave out the dense network")


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; the first network is what the others are compared with."""
    from slim.report import latency

    if min(args.batch) < 1 or not 0 < args.seconds < math.inf or (args.threads is not None and args.threads < 1):
        raise SlimError(
            "Batch sizes, seconds and threads must be positive, and finite. "
            f"Got --batch {args.batch} --seconds {args.seconds} --threads {args.threads}. Set them to at least 1."
        )
    device = _device(args.device)
    found = [model.find(name, args) for name in args.model]
    networks, example = _beside(found, dense=not args.no_dense)
    sizes = {name: slim.trace(network, example) for name, network in networks.items()}
    with _threads(args.threads) as threads:
        ready = {name: network.to(device) for name, network in networks.items()}
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), example)
        measured = latency.compare(ready, inputs, batches=args.batch, seconds=args.seconds)
    first = measured.millis[next(iter(networks))]
    return {
        "input": next(iter(sizes.values())).input_shapes,
        "device": str(device),
        "threads": threads,
        "networks": [
            {
                "name": name,
                "macs": sizes[name].macs(),
                "params": sizes[name].params(),
                "ms": {str(batch): millis for batch, millis in measured.millis[name].items()},
                "times_as_fast": {str(batch): first[batch] / ms for batch, ms in measured.millis[name].items()},
            }
            for name in networks
        ],
        "statements": list(measured.statements.values()),
    }


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    batches = list(found["networks"][0]["ms"])
    heads = [head for batch in batches for head in (f"ms, batch {batch}", "x as fast")]
    rows: list[tuple[str, ...]] = [("network", "MACs", "params", *heads, "")]
    for row in found["networks"]:
        cells = [cell for b in batches for cell in (f"{row['ms'][b]:.3f}", f"{row['times_as_fast'][b]:.2f}")]
        rows.append((row["name"], with_prefix(row["macs"]), with_prefix(row["params"]), *cells, ""))
    where = f"{found['device']}, {found['threads']} threads, input {found['input']}, median of runs in turns"
    return "\n".join([*align(rows), "", where, *found["statements"]])


def _beside(found: list[Model], *, dense: bool) -> tuple[dict[str, Any], Any]:
    """Networks by name, the dense ones first, and the input that all of them take."""
    shapes = [[tuple(tensor.shape) for tensor in _tensors(one.example)] for one in found]
    for one, shape in zip(found, shapes, strict=True):
        if shape != shapes[0]:
            raise SlimError(
                f"Networks must take the same input to be compared. Got {shapes[0]} for {found[0].name} and {shape} "
                f"for {one.name}. Give --input, or measure them apart."
            )
    networks: dict[str, Any] = {}
    built: list[Any] = []
    for one in found if dense else []:
        if one.thin and one.builder not in built:
            built.append(one.builder)
            networks["dense" if len(built) == 1 else f"dense {len(built)}"] = one.dense()
    for one in found:
        name = one.name if one.name not in networks else f"{one.name} ({len(networks)})"
        networks[name] = one.network
    return networks, found[0].example


def _tensors(example: Any) -> tuple[Any, ...]:
    return example if isinstance(example, tuple) else (example,)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SlimError(f"A device must be there. Got --device {text} ({error}). Set --device cpu.") from None
    return device


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)
