"""Jobs that cost nothing: they leave a report that follows from their overrides, as a run does. Knows no torch."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any


def leave(folder: Path, overrides: list[str]) -> None:
    """What a run of ``overrides`` comes to: more channels removed cost accuracy and save MACs; a bad seed fails."""
    given = dict(item.lstrip("+").split("=", 1) for item in overrides)
    ratio = float(given.get("prune.ratio", 0.5))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "began").open("a") as file:
        file.write(f"{os.getpid()}\n")
    report: dict[str, Any] = {
        "status": "finished",
        "phases": {"sparse": {"val": 0.5}, "prune": {"val": 1 - ratio**2}},
        "rows": {"dense": {"macs": 1000}, "recovered": {"macs": round(1000 * (1 - ratio))}},
    }
    if given.get("seed") == "13":
        report = {"status": "failed", "error": "The loss must be finite. Got nan."}
    if given.get("seed") == "14":
        report["phases"]["prune"]["val"] = None
        report["phases"]["sparse"]["val"] = None
    (folder / "report.json").write_text(json.dumps(report))


class CheapJob:
    """What a launcher runs: see :func:`leave`. With ``kill`` every job of that seed kills its worker the first time."""

    def __init__(self, kill: str = "") -> None:
        self.kill = kill

    def __call__(self, cfg: Any) -> float:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
        if self.kill in overrides and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        told = json.loads((folder / "job.json").read_text())
        (folder / "threads").write_text(str(told["threads"]))
        leave(folder, overrides)
        return 0.0


class CheapLauncher:
    """Runs jobs in this process; ``die`` is called before a job, and may raise."""

    def __init__(self, directory: Path, die: Any = lambda overrides: None) -> None:
        self.directory, self.die = directory, die
        self.ran: list[list[str]] = []

    def launch(self, job_overrides: Any, initial_job_idx: int) -> list[Any]:
        for overrides in job_overrides:
            (number,) = [item.partition("=")[2] for item in overrides if item.startswith("hydra.sweep.subdir=")]
            mine = [item for item in overrides if not item.startswith("hydra.")]
            self.die(mine)
            self.ran.append(mine)
            leave(self.directory / number, mine)
        return []
