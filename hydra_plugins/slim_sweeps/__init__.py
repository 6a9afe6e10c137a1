"""Where Hydra looks for plugins. It loads this file whenever it starts, so everything else is imported in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction


class _Sweeper(Sweeper):
    def __init__(self, **options: Any) -> None:
        self.options = options
        self.hydra_context, self.config, self.launcher = None, None, None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: Any) -> None:
        """Make the launcher."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class GridSweeper(_Sweeper):
    """Every combination of the values, as Hydra's BasicSweeper; started again, it leaves out what is finished."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs."""
        from slim.command.grid import grid

        return grid(self, arguments)


class StudySweeper(_Sweeper):
    """Optuna chooses the values: one objective or several, one process or many."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until the study has all of them."""
        from slim.command.search import search

        return search(self, arguments)


class RayLauncher(Launcher):
    """Jobs as tasks of Ray, on this machine or on a cluster."""

    def __init__(self, init: dict[str, Any], remote: dict[str, Any]) -> None:
        self.init, self.remote = init, remote

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: Any) -> None:
        """Keep what jobs need."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and wait for all of them."""
        from slim.command.ray_launcher import launch

        return launch(self, job_overrides, initial_job_idx)
