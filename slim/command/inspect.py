"""Show a network's channel groups, widths and MACs, what may go, and why the rest must stay.

slim inspect resnet18
slim inspect slim.models:vgg --arg depth=11 --input 3x32x32
slim inspect outputs/vgg_slim/<id> --json
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import slim
from slim.channels import ChannelGraph
from slim.channels.text_table import align, with_prefix
from slim.command import model
from slim.selection.reasons import as_lines, reasons


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    model.arguments(parser)
    tracing(parser)


def tracing(parser: argparse.ArgumentParser) -> None:
    """How channels are grouped."""
    parser.add_argument("--residual", default="group", help="shared streams: group, select, keep (default: group)")
    parser.add_argument("--grouped", default="balance", help="grouped convolutions: balance, whole (default: balance)")


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """The graph of a network as plain data: the same numbers as :meth:`slim.ChannelGraph.report`."""
    found = model.find(args.model, args)
    graph = slim.trace(found.network, found.example, residual=args.residual, grouped=args.grouped)
    return {
        "model": found.name,
        "thin": found.thin,
        "input": graph.input_shapes,
        "groups": len(graph),
        "prunable": int(graph.prunable.sum()),
        "inexact": int(np.sum(graph.inexact)),
        "macs": graph.macs(),
        "flops": 2 * graph.macs(),
        "params": graph.params(),
        "layers": _layers(graph),
        "branches": [branch.name for branch, _ in graph.branches],
        "stayed": reasons(graph),
        "unknown_operations": dict(graph.unknown),
        "unreached_parameters": list(graph.unreached),
    }


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    rows = [("layer", "width", "may go", "MACs", "coupled with / why not")]
    rows += [
        (layer["name"], str(layer["width"]), str(layer["may_go"]), with_prefix(layer["macs"]), layer["note"])
        for layer in found["layers"]
    ]
    lines = [
        *align(rows),
        "",
        f"{found['groups']} channel groups, {found['prunable']} may go, {found['inexact']} more with inexact; "
        f"{with_prefix(found['macs'])} MACs ({with_prefix(found['flops'])} FLOPs) on {found['input']}; "
        f"{with_prefix(found['params'])} parameters",
    ]
    if found["branches"]:
        lines.append(f"{len(found['branches'])} whole residual branches may go (--granularity layer)")
    lines += as_lines(found["stayed"])
    lines += [f"operation without a rule: {name} (in {place})" for name, place in found["unknown_operations"].items()]
    if found["unreached_parameters"]:
        lines.append("parameters the forward never reached: " + ", ".join(found["unreached_parameters"][:8]))
    return "\n".join(lines)


def _layers(graph: ChannelGraph) -> list[dict[str, Any]]:
    """One entry per space of channels: its width, how many may go, its MACs, and why the others must stay."""
    macs: dict[str, int] = {}
    for layer, count in zip(graph.layers, graph.layer_macs(), strict=True):
        macs[layer.module] = macs.get(layer.module, 0) + count
    return [
        {
            "name": space.name,
            "width": len(space.groups),
            "may_go": int(graph.prunable[space.groups].sum()),
            "macs": macs.get(space.name, 0),
            "modules": list(space.modules),
            "note": graph.space_note(space),
        }
        for space in graph.spaces
    ]
