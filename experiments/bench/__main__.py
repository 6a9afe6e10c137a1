"""What slimming costs, as ratios: ``python -m experiments.bench [--quick] [--only penalty loop ...]``.

Contenders take turns and ratios are medians over turns, because machines are noisy. Prints one table and writes
``results.json`` with the machine described. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

from slim.files import write_atomic
from slim.report.environment import describe, line

GROUPS = ("startup", "penalty", "loop", "precision", "thin", "memory", "growth")


def main() -> int:
    parser = argparse.ArgumentParser(prog="experiments.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="these sub-benchmarks")
    parser.add_argument("--output", type=Path, help="results file (default: results.json here; none with --quick)")
    options = parser.parse_args()
    environment = {**describe(), "load": os.getloadavg()[0]}
    rows = []
    for group in options.only:
        start = time.perf_counter()
        rows += importlib.import_module(f"experiments.bench.{group}").run(options.quick)
        print(f"{group}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    from rich import box
    from rich.console import Console
    from rich.table import Table

    load = f"load {environment['load']:.1f} when it began"
    table = Table(title=f"{line(environment)}, {load}", box=box.SIMPLE_HEAD)
    for name in ("", "what", "measured", "aim", "reached"):
        table.add_column(name, justify="right" if name in ("measured", "aim") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    target = options.output or (None if options.quick else Path(__file__).with_name("results.json"))
    if target is not None:
        told = {"environment": environment, "quick": options.quick, "rows": [row.plain() for row in rows]}
        write_atomic(target, json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
