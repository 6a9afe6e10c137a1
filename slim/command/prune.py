"""Cut a network to a budget and write it as one safe file, which knows how its dense network is built.

slim prune resnet18 --pretrained --macs 0.5 -o thin.safetensors
slim prune slim.models:vgg --arg depth=11 --weights vgg.pt --input 3x32x32 --ratio 0.7 --round-to 8 -o thin.safetensors
Without -o nothing is written: what would go is shown.
"""

from __future__ import annotations

import argparse
from typing import Any

import slim
from slim.channels.text_table import align
from slim.command import model
from slim.command.inspect import tracing
from slim.criteria import needs_data
from slim.errors import SlimError
from slim.selection.reasons import as_lines

BUDGETS = {
    "ratio": "fraction of the channels that goes, in [0, 1)",
    "macs": "multiply-accumulates that stay: a fraction in (0, 1], or a number above 1",
    "params": "parameters that stay, likewise",
    "memory": "largest input and output of a layer that stay, in numbers, likewise",
    "latency": "milliseconds that stay on this machine, likewise (measured)",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    model.arguments(parser)
    budget = parser.add_argument_group("budget, of the network that is given (one)").add_mutually_exclusive_group(
        required=True
    )
    for name, what in BUDGETS.items():
        budget.add_argument(f"--{name}", type=float, help=what)
    rule = parser.add_argument_group("which channels")
    rule.add_argument(
        "--criterion", default="gamma", help="gamma, l1, l2, random, ... or an import path; one without data"
    )
    rule.add_argument("--strategy", default="global", help="global, marginal, layer (default: global)")
    rule.add_argument("--granularity", default="channel", help="channel, layer (whole branches), both")
    rule.add_argument("--round-to", type=int, default=1, help="widths become multiples of this (default: 1)")
    rule.add_argument("--min-channels", type=int, default=1, help="every layer keeps so many (default: 1)")
    rule.add_argument("--max-layer-ratio", type=float, default=1.0, help="and loses at most this share (default: 1)")
    rule.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="layers that stay whole")
    rule.add_argument("--inexact", action="store_true", help="also what changes statistics over channels")
    tracing(rule)  # type: ignore[arg-type]
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write, such as thin.safetensors")


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """Cut and write; returns the numbers of the cut."""
    if needs_data(args.criterion):
        raise SlimError(
            f"--criterion must be one that needs no data. Got --criterion {args.criterion}. Such as gamma or l1; "
            "slim.prune with criterion_options={'loader': ...}, and slim train, give it data."
        )
    found = model.find(args.model, args)
    result = slim.prune(
        found.network,
        found.example,
        criterion=args.criterion,
        residual=args.residual,
        grouped=args.grouped,
        **{name: getattr(args, name) for name in BUDGETS if getattr(args, name) is not None},
        min_channels=args.min_channels,
        max_layer_ratio=args.max_layer_ratio,
        round_to=args.round_to,
        ignore=args.ignore,
        strategy=args.strategy,
        granularity=args.granularity,
        inexact=args.inexact,
    )
    report = result.report
    if args.output:
        kept = {**found.metadata, "input": report.input_shapes}
        # The plan that the network carries, from the dense one: what was given may have been thin.
        slim.save(args.output, result.model, builder=found.builder, metadata=kept)
    return {
        "model": found.name,
        "output": args.output,
        "input": report.input_shapes,
        "criterion": report.criterion,
        "requested": report.requested,
        "achieved": report.achieved,
        "macs": list(report.macs),
        "params": list(report.params),
        "depth": list(report.depth),
        "widths": {name: list(pair) for name, pair in report.widths.items()},
        "notes": [*report.notes, *([] if found.trained else [f"{found.name}: {model.UNTRAINED}."])],
        "stayed": list(report.stayed),
    }


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    requested = ", ".join(f"{name}={value:g}" for name, value in found["requested"].items())
    achieved = found["achieved"]
    rows = [("layer", "dense", "thin", "")]
    rows += [(name, str(a), str(b), "") for name, (a, b) in found["widths"].items() if a != b]
    lines = [
        f"criterion {found['criterion']}, {requested}: {achieved['ratio']:.1%} of the channels go",
        *(
            f"{name:<7}{found[name][0]:>16,} -> {found[name][1]:>16,}  {note}"
            for name, note in (
                ("macs", f"({achieved['macs']:.1%} stay; FLOPs = 2 x MACs; input {found['input']})"),
                ("params", f"({achieved['params']:.1%} stay)"),
                ("depth", "(convolutions and linear layers)"),
            )
        ),
        *align(rows),
        *found["notes"],
        *as_lines(found["stayed"]),
    ]
    written = f"Written to {found['output']}." if found["output"] else "Nothing written: give -o thin.safetensors."
    return "\n".join([*lines, written])
