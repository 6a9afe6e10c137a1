"""``slim train --multirun``: many runs, and one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from slim.command.compose import compose, hydra_job, places, plain_data, quoted
from slim.command.exits import guarded


def sweep(overrides: list[str], args: Any) -> int:
    """Run every job of a sweep, whatever becomes of the others; one table at the end."""
    failed: list[str] = []
    directory = _check_jobs(overrides, args)

    def job(cfg: Any) -> float:
        from hydra.core.hydra_config import HydraConfig

        from slim.files import write_json
        from slim.runs import record
        from slim.runs.phases import run
        from slim.runs.prepare import prepare

        hydra = HydraConfig.get()
        place, mine = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        found: dict[str, Any] = {}
        print(f"── job {hydra.job.num}: {' '.join(mine)}", file=sys.stderr, flush=True)
        count = len(failed)
        code = guarded(lambda: found.update(run(prepare(plain_data(cfg)), place, mine)) or 0, bool(cfg.debug), failed)
        if code >= 128:
            raise SystemExit(code)
        if len(failed) > count:
            write_json(place / "report.json", record.failed(str(cfg.name), failed[-1]))
        return float(found["phases"][next(reversed(found["phases"]))].get("val", "nan")) if found else float("nan")

    hydra_job(["--multirun", *places(args), *overrides, f"hydra.sweep.dir={quoted(directory)}"], job)
    from rich.console import Console

    from slim.report import sweep

    sweep.write(directory)
    Console().print(sweep.table(directory))
    print(directory)
    return 1 if failed else 0


def _check_jobs(overrides: list[str], args: Any) -> Path:
    """Compose every job before any begins; the sweep is refused when one cannot be composed, or none is valid."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    if any(item.is_sweep_override() and not item.is_discrete_sweep() for item in parsed):
        # Another sweeper will choose the values; what is fixed can be checked.
        jobs = [[str(item.input_line) for item in parsed if not item.is_sweep_override()]]
    else:
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    composed = [compose(job, args) for job in jobs]
    from slim.errors import SlimError
    from slim.runs.config import read
    from slim.runs.directory import make

    faults = []
    for config, _ in composed:
        try:
            read(config)
        except SlimError as error:
            faults.append(error)
    if len(faults) == len(composed):
        raise faults[0]
    directory = Path(composed[0][1].sweep.dir)
    make(directory)
    return directory
