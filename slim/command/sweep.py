"""``slim train --multirun``: many runs, and one table."""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from slim.command.compose import (
    check_replaced,
    compose,
    config_loader,
    hydra_job,
    key_of,
    options,
    places,
    plain_data,
    quoted,
    replacing,
    unreadable,
)
from slim.command.exits import guarded

_SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "submitit")
PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "optuna": ("optuna", "sweep"),
    "ray": ("ray", "ray"),
    **dict.fromkeys(("slurm", "submitit_local", "submitit_slurm"), _SUBMITIT),
}
"""Launcher or sweeper -> the module that it needs, and the extra that brings it."""


def sweep(overrides: list[str], args: Any) -> int:
    """Run every job of a sweep that is not finished, whatever becomes of the others; one table at the end."""
    typed = overrides
    # Ours does what Hydra's does, and goes on where it stopped.
    overrides = ["hydra/sweeper=grid" if item == "hydra/sweeper=basic" else item for item in overrides]
    _check_plugins(overrides)
    # What is wrong is told before Lightning is imported.
    directory, hydra, varied, asked = _check_jobs(overrides, args)
    from slim.runs.processes import program
    from slim.sweeps.jobs import keep_command

    keep_command(directory, f"{program()} {shlex.join(['-m', *places(args), *typed])}")
    _register()
    line = ["--multirun", *places(args), *overrides, f"hydra.sweep.dir={quoted(directory)}"]
    with suppress(BrokenPipeError):  # nobody hears how it ends: the code tells
        hydra_job(line, SweepJob(args, varied))
    from slim.report import sweep, tables
    from slim.sweeps.jobs import write_table

    write_table(directory)
    with suppress(BrokenPipeError):
        tables.terminal().print(sweep.table(directory))
        print(directory)
    return _code(directory, asked, searches="n_trials" in hydra.sweeper)


def _code(directory: Path, asked: Sequence[Sequence[str]], *, searches: bool) -> int:
    """Of the jobs that were asked for; of a search, for which a job that fails is an answer, too, of any."""
    from slim.report import sweep
    from slim.sweeps.jobs import identity, numbers, outcome

    known, mine = numbers(directory), map(identity, asked)
    names = [] if searches else [str(known[job]) for job in mine if job in known]  # others are of earlier calls
    ends = [outcome(directory / name).status for name in names or [name for name, _ in sweep.jobs(directory)]]
    return int("finished" not in ends if searches else "failed" in ends or "open" in ends)


class SweepJob:
    """One job, in the process that a launcher runs it in.

    Args:
        args: Where Hydra looks for configuration.
        varied: Keys that the sweep gives several values.
    """

    def __init__(self, args: Any, varied: Sequence[str]) -> None:
        self.sweeper = os.getpid()
        self.args, self.varied = args, varied

    def __call__(self, cfg: Any) -> float:
        """Run the job, or go on with it; returns the last phase's metric on held-out data, NaN where it failed.

        Raises:
            SystemExit: The sweep was told to stop.
        """
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        from slim.sweeps.jobs import write_table

        hydra = HydraConfig.get()
        place, mine = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        for key in replacing(mine):  # Hydra composed it, which does not know of it
            OmegaConf.update(cfg, key, None)
        print(f"── job {place.name}: {' '.join(mine)}", file=sys.stderr, flush=True)
        _wait_for(place)
        changed = partial(self._changed, cfg, dict(hydra.runtime.choices), mine)
        value, code = _run(cfg, place, lambda: _train(cfg, place, mine, changed, options(self.args)))
        if code >= 128 and os.getpid() == self.sweeper:
            raise SystemExit(code)
        write_table(place.parent)
        return value

    def _changed(self, cfg: Any, choices: dict[str, Any], overrides: list[str]) -> list[str]:
        from slim.command.changed import changed

        return changed(overrides, plain_data(cfg), choices, self.args, self.varied)


def _run(cfg: Any, place: Path, train: Callable[[], dict[str, Any]]) -> tuple[float, int]:
    """Run the job in ``place``; returns its value and its exit code."""
    from slim.files import write_json
    from slim.runs import record
    from slim.runs.watch import Pruned
    from slim.sweeps import objectives
    from slim.sweeps.jobs import outcome

    before = outcome(place)
    if before.status == "finished":  # by a process whose sweep was killed
        return objectives.values(before.record, ["val"])[0], 0
    found: dict[str, Any] = {}
    pruned: list[str] = []
    lines: list[str] = []

    def action() -> int:
        try:
            found.update(train())
        except Pruned as stop:
            pruned.append(str(stop))
        return 0

    code = guarded(action, bool(cfg.debug), lines)
    if pruned:
        print(pruned[0], file=sys.stderr, flush=True)
        write_json(place / "report.json", {**record.failed(str(cfg.name), pruned[0]), "status": "pruned"})
    elif code and code < 128:
        write_json(place / "report.json", record.failed(str(cfg.name), lines[-1]))
    return (objectives.values(found, ["val"])[0] if found else math.nan), code


def _train(
    cfg: Any, place: Path, overrides: list[str], changed: Callable[[], list[str]], options: list[str]
) -> dict[str, Any]:
    import dataclasses

    import torch

    from slim.errors import SlimError
    from slim.files import read_json
    from slim.runs.phases import check_begin, run
    from slim.runs.prepare import prepare
    from slim.sweeps.jobs import FILE

    try:
        told = read_json(place / FILE, what="job")
    except SlimError:  # a sweeper that is not ours
        told = {}
    if told.get("threads") and cfg.trainer.get("threads") is None:
        torch.set_num_threads(told["threads"])
    begun = (place / "state.json").is_file()
    config = plain_data(cfg)
    check_replaced(overrides, config)
    parts = prepare(config, begun=begun)
    _check_job(parts.config)
    if not begun:
        check_begin(parts)
    if told.get("trial"):
        from slim.sweeps.watch import TrialWatch

        parts = dataclasses.replace(parts, watch=TrialWatch(told["trial"]))
    return run(parts, place, overrides, changed=changed, options=options)


def _wait_for(place: Path) -> None:
    """Wait while another process runs this job: one whose sweep was killed, or of a sweep in the same directory."""
    from slim.sweeps.jobs import holder

    told = False
    while (name := holder(place)) is not None:
        if not told:
            print(f"job {place.name} is run by {name}; waiting for it", file=sys.stderr, flush=True)
        told = True
        time.sleep(0.5)


# Before the first job


def _check_jobs(overrides: list[str], args: Any) -> tuple[Path, Any, list[str], list[list[str]]]:
    """Compose every job before any begins; the sweep is refused when one cannot be composed, or none is valid.

    Of a search, whose values nobody knows yet, points with every choice and both ends of every range.

    Returns:
        The directory, Hydra's part of the configuration, the keys that are given several values, and the jobs.
    """
    from slim.command import grid, space
    from slim.errors import SlimError
    from slim.runs.config import read
    from slim.runs.directory import make

    if unread := next(filter(None, map(unreadable, overrides)), ""):
        raise SlimError(unread)
    hydra = compose([item for item in overrides if key_of(item).startswith("hydra")], args)[1].hydra
    _check_hydra(hydra)
    arguments, loader = [*grid.params(dict(hydra.sweeper)), *overrides], config_loader(args)
    if "n_trials" in hydra.sweeper:
        searched, fixed = space.parse(arguments, loader)
        jobs = [[*fixed, *point] for point in space.probes(searched)] if searched else [fixed]
    else:
        jobs = grid.combinations(arguments, loader)
    composed = [compose(job, args) for job in jobs]
    faults = []
    for job, (config, _) in zip(jobs, composed, strict=True):
        try:
            check_replaced(job, config)
            _check_job(read(config))
        except SlimError as error:
            faults.append(error)
    if len(faults) == len(composed):
        raise faults[0]
    if faults:  # each is reported as failed in its turn, which may be in hours
        what = "points tried" if "n_trials" in hydra.sweeper else "jobs"
        print(f"{len(faults)} of {len(composed)} {what} cannot run. {faults[0]}", file=sys.stderr, flush=True)
    hydra = composed[0][1].hydra
    if "n_trials" in hydra.sweeper:
        _check_search(hydra, arguments, composed[0][0], loader)
    directory = Path(hydra.sweep.dir)
    make(directory)
    return directory, hydra, grid.varied(arguments), jobs


def _check_job(config: Any) -> None:
    """A job trains. Several processes start each other by the line of the sweep, and would run all of it."""
    from slim.errors import SlimError

    hardware = config.trainer
    if config.task != "train":
        raise SlimError(f"A job of a sweep trains. Got task={config.task}. Leave --multirun out, and run one by one.")
    if hardware.processes > 1:
        raise SlimError(
            f"A job of a sweep is one process. Got trainer.devices={hardware.devices}, trainer.num_nodes="
            f"{hardware.num_nodes}. Set trainer.devices=1, or begin each run by itself."
        )


def _check_hydra(hydra: Any) -> None:
    """What Hydra is told of the sweep that has no effect, or would only be read when jobs begin."""
    from omegaconf import OmegaConf

    from slim.errors import SlimError, expect_number, expect_whole

    given: Any = OmegaConf.to_container(hydra.sweep, resolve=False)
    if given["subdir"] != "${hydra.job.num}":
        raise SlimError(
            f"A job's folder is its number, by which it is found again. Got hydra.sweep.subdir={given['subdir']}. "
            "Leave it out."
        )
    for name in ("n_trials", "attempts", "max_batch_size", "n_jobs"):
        key, value = f"hydra.sweeper.{name}", hydra.sweeper.get(name, 1)  # each sweeper has some of them
        if value is not None or name in ("n_trials", "attempts"):
            expect_whole(key, value, 1, f"Set {key}.")
    for name in ("heartbeat", "grace"):
        key = f"hydra.sweeper.{name}"
        expect_number(key, hydra.sweeper.get(name, 1), "(0, inf)", f"Set {key} to seconds.")
    if hydra.launcher.get("n_jobs") == 0:
        raise SlimError("Jobs need a process. Got hydra.launcher.n_jobs=0. Set it to 1 or more, or to -1: all cores.")


def _check_search(hydra: Any, arguments: list[str], config: dict[str, Any], loader: Any) -> None:
    """What a search can be told wrong, before anything is written."""
    from omegaconf import OmegaConf

    from slim.command.search import settings_of
    from slim.sweeps.study import check

    whole = OmegaConf.create({**config, "hydra": {"sweep": {"dir": str(hydra.sweep.dir)}}})
    options: Any = OmegaConf.to_container(hydra.sweeper, resolve=True)
    check(settings_of(options, arguments, whole, loader)[0])


def _check_plugins(overrides: list[str]) -> None:
    """Say which extra is missing, before Hydra says that it does not know the name."""
    from slim.errors import SlimError

    for item in overrides:
        key, _, name = item.partition("=")
        module, extra = PLUGINS.get(name, ("", "")) if key in ("hydra/launcher", "hydra/sweeper") else ("", "")
        parent = module.partition(".")[0]
        if module and (importlib.util.find_spec(parent) is None or importlib.util.find_spec(module) is None):
            raise SlimError(
                f"{item} needs a package. Got none ({module}). Install it with: pip install 'slim-channels[{extra}]'."
            )


def _register() -> None:
    """Make our plugins known, wherever this package is installed: Hydra only looks into folders."""
    from hydra.core.plugins import Plugins

    import hydra_plugins.slim_sweeps as ours

    known = Plugins.instance()
    for plugin in (ours.GridSweeper, ours.StudySweeper, ours.RayLauncher):
        known.register(plugin)
