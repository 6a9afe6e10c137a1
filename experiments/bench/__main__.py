"""What slimming costs, as ratios: ``python -m experiments.bench [--quick] [--only penalty ...] [--data FOLDER]``.

Contenders take turns and ratios are medians over turns, because machines are noisy. Prints one table and writes
``results.json`` with the machine described, after every sub-benchmark: one that was stopped goes on where it was, as
long as machine, torch and revision are the same. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.bench.row import Row
from experiments.bench.table import fill
from slim.files import write_atomic
from slim.report.environment import describe, line

GROUPS = ("startup", "penalty", "loop", "profile", "precision", "thin", "memory", "growth", "slimming")
LONG = ("accuracy",)
"""Not part of a plain run: no times, so a busy machine will do."""
WHOLE_RUNS = ("slimming", "accuracy")
"""Take images, and go on with the runs of train.py that they began."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="experiments.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=GROUPS + LONG, default=list(GROUPS), help="these sub-benchmarks")
    parser.add_argument("--output", type=Path, help="results file (default: results.json here; none with --quick)")
    parser.add_argument("--again", action="store_true", help="measure what results.json has from this revision, too")
    parser.add_argument("--data", type=Path, help="images for slimming and accuracy: <folder>/{train,test}/<class>/")
    options = parser.parse_args()
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data must be a folder. Got {options.data}.")
    here = Path(__file__).with_name("results.json")
    target = options.output or (None if options.quick else here)
    done = _done(target)
    for group in options.only:
        environment = {**describe(), "load": os.getloadavg()[0]}
        images = None if options.data is None or group not in WHOLE_RUNS else options.data.name
        if not options.again and _same(done.get(group), environment, options.quick, images):
            print(f"{group}: measured before", file=sys.stderr, flush=True)
            continue
        start = time.perf_counter()
        extra = (options.data, options.again) if group in WHOLE_RUNS else ()
        rows = importlib.import_module(f"experiments.bench.{group}").run(options.quick, *extra)
        seconds = time.perf_counter() - start
        print(f"{group}: {seconds:.0f} s", file=sys.stderr, flush=True)
        done[group] = {
            "environment": environment,
            "quick": options.quick,
            "images": images,
            "seconds": round(seconds),
            "rows": [row.plain() for row in rows],
        }
        if target is not None:
            kept = {name: done[name] for name in GROUPS + LONG if name in done}
            write_atomic(target, json.dumps(kept, indent=1) + "\n")
            if target == here:
                fill(kept)
    _show([(group, done[group]) for group in options.only])
    return 0


def _done(target: Path | None) -> dict[str, Any]:
    return dict(json.loads(target.read_text())) if target is not None and target.is_file() else {}


def _same(before: Mapping[str, Any] | None, environment: Mapping[str, Any], quick: bool, images: str | None) -> bool:
    """Whether a sub-benchmark was measured as it would be now."""

    def key(told: Mapping[str, Any]) -> tuple[Any, ...]:
        # The results themselves are a changed file once the first of them is written.
        revision = str(told["git"]).rstrip("+")
        return revision, told["processor"], told["device"], told["threads"], told["versions"]["torch"]

    if before is None or (before["quick"], before.get("images")) != (quick, images):
        return False
    return key(before["environment"]) == key(environment)


def _show(measured: list[tuple[str, Mapping[str, Any]]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    loads = [told["environment"]["load"] for _, told in measured]
    load = f"load {min(loads):.1f} to {max(loads):.1f}"
    table = Table(title=f"{line(measured[0][1]['environment'])}, {load}", box=box.SIMPLE_HEAD)
    for name in ("", "what", "measured", "aim", "reached"):
        table.add_column(name, justify="right" if name in ("measured", "aim") else "left", overflow="fold")
    for _, told in measured:
        for row in told["rows"]:
            table.add_row(*Row.of(row).cells())
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    sys.exit(main())
