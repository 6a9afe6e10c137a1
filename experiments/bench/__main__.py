"""What slimming costs, as ratios: ``python -m experiments.bench [--quick] [--only penalty loop ...]``.

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
from slim.files import write_atomic
from slim.report.environment import describe, line

GROUPS = ("startup", "penalty", "loop", "precision", "thin", "memory", "growth")


def main() -> int:
    parser = argparse.ArgumentParser(prog="experiments.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="these sub-benchmarks")
    parser.add_argument("--output", type=Path, help="results file (default: results.json here; none with --quick)")
    parser.add_argument("--again", action="store_true", help="measure what results.json has from this revision, too")
    options = parser.parse_args()
    target = options.output or (None if options.quick else Path(__file__).with_name("results.json"))
    done = _done(target)
    for group in options.only:
        environment = {**describe(), "load": os.getloadavg()[0]}
        if not options.again and _same(done.get(group), environment, options.quick):
            print(f"{group}: measured before", file=sys.stderr, flush=True)
            continue
        start = time.perf_counter()
        rows = importlib.import_module(f"experiments.bench.{group}").run(options.quick)
        seconds = time.perf_counter() - start
        print(f"{group}: {seconds:.0f} s", file=sys.stderr, flush=True)
        done[group] = {
            "environment": environment,
            "quick": options.quick,
            "seconds": round(seconds),
            "rows": [row.plain() for row in rows],
        }
        if target is not None:
            write_atomic(target, json.dumps({name: done[name] for name in GROUPS if name in done}, indent=1) + "\n")
    _show([(group, done[group]) for group in options.only])
    return 0


def _done(target: Path | None) -> dict[str, Any]:
    return dict(json.loads(target.read_text())) if target is not None and target.is_file() else {}


def _same(before: Mapping[str, Any] | None, environment: Mapping[str, Any], quick: bool) -> bool:
    """Whether a sub-benchmark was measured as it would be now."""

    def key(told: Mapping[str, Any]) -> tuple[Any, ...]:
        # The results themselves are a changed file once the first of them is written.
        revision = str(told["git"]).rstrip("+")
        return revision, told["processor"], told["device"], told["threads"], told["versions"]["torch"]

    return before is not None and before["quick"] == quick and key(before["environment"]) == key(environment)


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
