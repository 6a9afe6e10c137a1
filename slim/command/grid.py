"""``hydra/sweeper=basic``: every combination of the values, without what is finished already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slim.command.launch import launch, say, threads, workers
from slim.command.space import line
from slim.errors import SlimError
from slim.files import write_json
from slim.runs import record
from slim.sweeps.jobs import Job, assigned, write_table


def grid(sweeper: Any, arguments: list[str]) -> list[Job]:
    """Run the jobs of a grid that are not finished; returns all of them.

    Args:
        sweeper: The plugin: ``options`` has ``params``, ``max_batch_size`` and ``attempts``.
        arguments: Of the command line.
    """
    from omegaconf import OmegaConf

    config, options = sweeper.config, sweeper.options
    directory = Path(config.hydra.sweep.dir)
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, directory / "multirun.yaml")
    lines = combinations([*params(options), *arguments], sweeper.hydra_context.config_loader)
    launcher: Any = OmegaConf.to_container(config.hydra.launcher)
    size = options.get("max_batch_size") or len(lines)
    jobs = assigned(directory, lines, threads=threads(launcher, min(workers(launcher), len(lines), size)))
    todo = [job for job in jobs if job.outcome().status != "finished"]
    if len(todo) < len(jobs):
        say(f"{len(jobs) - len(todo)} of {len(jobs)} jobs are finished ({directory})")
    for first in range(0, len(todo), size):
        for job in launch(sweeper.launcher, todo[first : first + size], options.get("attempts") or 1):
            error = "Its worker died before it ended. Start the sweep again with the same hydra.sweep.dir to go on."
            say(f"job {job.number}: {error}")
            write_json(job.folder / "report.json", record.failed(str(config.name), error))
            write_table(directory)
    return jobs


def params(options: dict[str, Any]) -> list[str]:
    """``hydra.sweeper.params`` as overrides, which the command line may replace."""
    return [line(key, value) for key, value in (options.get("params") or {}).items()]


def varied(arguments: list[str]) -> list[str]:
    """The keys that are given several values.

    >>> varied(["seed=1,2", "prune.ratio=interval(0.1,0.5)", "phases=[sparse,prune]"])
    ['seed', 'prune.ratio']
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(arguments)
    return [item.get_key_element().lstrip("+") for item in parsed if item.is_sweep_override()]


def combinations(arguments: list[str], loader: Any = None) -> list[list[str]]:
    """The overrides of every job of a basic sweep.

    Raises:
        SlimError: A sweep that is no set of values, or an empty one.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    for item in parsed:
        if item.is_interval_sweep() or (item.is_sweep_override() and not any(True for _ in item.sweep_iterator())):
            raise SlimError(
                f"Every combination of some values needs some. Got {item.input_line}. Give choice(...), range(...) "
                "or glob(...) that holds some; an interval(...) is for hydra/sweeper=optuna."
            )
    return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]
