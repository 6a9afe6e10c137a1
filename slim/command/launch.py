"""Jobs through one of Hydra's launchers; what became of them is in their folders, whatever became of their workers."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from slim.runs.signals import Interrupted, Signals
from slim.sweeps.jobs import Job, forget_failure


def launch(launcher: Any, jobs: Sequence[Job], attempts: int = 1) -> list[Job]:
    """Run the jobs that have not ended; one whose worker died before it is told, and begun again.

    A job that begins again goes on with its last checkpoint.

    Args:
        launcher: A plugin of Hydra's, which returns when all jobs have ended.
        jobs: With folders.
        attempts: How often a job is begun.

    Returns:
        The jobs that did not end.

    Raises:
        Interrupted: A signal asked to stop between jobs, or while workers have them.
    """
    for job in jobs:
        job.write()
        forget_failure(job)
    todo = list(jobs)
    for attempt in range(attempts):
        if attempt:
            for job in todo:
                say(f"job {job.number}: its worker died; begun again, {attempt + 1} of {attempts}")
        try:
            with Signals():  # otherwise SIGTERM would end this process alone, and leave its workers
                launcher.launch([_line(job) for job in todo], initial_job_idx=0)
        except Interrupted as stop:
            again = f"The same command with hydra.sweep.dir={shlex.quote(str(todo[0].directory))} goes on"
            raise Interrupted(stop.name, f"Stopped by {stop.name}; what is done is kept. {again}.") from None
        except Exception as error:  # each launcher has its own for a worker that died
            say(f"A worker died. Got {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        todo = [job for job in todo if job.outcome().status == "open"]
        if not todo:
            break
    return todo


def threads(launcher: Mapping[str, Any], jobs: int) -> int | None:
    """Threads for each of ``jobs`` jobs at the same time, so that together they have as many as there are cores.

    ``None`` where a scheduler gives each job cores of its own, or there is only one.

    >>> threads({"_target_": "x.JoblibLauncher", "n_jobs": 4}, 100) == max(1, cores() // 4)
    True
    """
    name = str(launcher.get("_target_", "")).rpartition(".")[2]
    asked = launcher.get("cpus_per_task") or (launcher.get("remote") or {}).get("num_cpus")
    if asked:
        return max(int(asked), 1)
    if name == "JoblibLauncher":
        return max(cores() // min(workers(launcher), max(jobs, 1)), 1)
    return max(cores() // max(jobs, 1), 1) if name == "LocalLauncher" else None


def workers(launcher: Mapping[str, Any]) -> int:
    """How many jobs a launcher runs at the same time on this machine; 1 where it does not say."""
    if (count := launcher.get("n_jobs")) is not None:
        return int(count) if int(count) > 0 else max(cores() + 1 + int(count), 1)
    if "remote" in launcher:
        there = (launcher.get("init") or {}).get("num_cpus") or cores()
        return max(int(there / ((launcher["remote"] or {}).get("num_cpus") or 1)), 1)
    return 1


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(line: str) -> None:
    """Tell the user."""
    print(line, file=sys.stderr, flush=True)


def _line(job: Job) -> list[str]:
    return [*job.overrides, f"hydra.sweep.subdir={job.number}"]
