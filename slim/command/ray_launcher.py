"""``hydra/launcher=ray``: jobs as Ray's tasks; a worker that dies takes nothing but its own job along."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slim.errors import SlimError


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
    """Run the jobs and wait for all of them.

    Args:
        launcher: The plugin: ``init`` has arguments of ``ray.init``, ``remote`` options of a task.
        job_overrides: One list per job.
        initial_job_idx: Number of the first.

    Returns:
        What each job returned; of a worker that died its error, as that of a failed job.

    Raises:
        SlimError: Ray is not installed, does not start, or could not start workers.
    """
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobReturn, JobStatus

    ray = start(launcher.init)
    task = ray.remote(_execute).options(**launcher.remote)
    state = Singleton.get_state()
    shared = ray.put((launcher.hydra_context, launcher.config, launcher.task_function, state))
    running = [
        task.remote(initial_job_idx + index, list(overrides), shared) for index, overrides in enumerate(job_overrides)
    ]
    found: list[Any] = []
    for reference in running:
        try:
            found.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            found.append(JobReturn(status=JobStatus.FAILED, _return_value=error))
            print(f"A worker died. Got {type(error).__name__}.", file=sys.stderr, flush=True)
    return found


def start(options: dict[str, Any]) -> Any:
    """Ray, connected to the cluster of ``options``, or to one on this machine that ends with this process."""
    try:
        import ray
    except ImportError as error:
        raise SlimError(
            f"hydra/launcher=ray needs Ray. Got none ({error}). Install it with: pip install 'slim-channels[ray]'."
        ) from error
    if not ray.is_initialized():
        # Workers find what this process finds: own modules in the current folder, too.
        path = os.pathsep.join(dict.fromkeys(str(Path(place).resolve()) for place in ["", *sys.path]))
        environment = {"env_vars": {"PYTHONPATH": path}}
        given = {key: value for key, value in options.items() if value is not None}
        if " " in sys.executable and "address" not in given:
            # Its shell reads an unquoted line; workers would be started and started again, for ever.
            raise SlimError(
                f"Ray cannot start a Python whose path has spaces. Got {sys.executable}. Move the environment, or take "
                "hydra/launcher=joblib."
            )
        quiet = {"include_dashboard": False, "logging_level": "warning", "runtime_env": environment}
        try:
            ray.init(**{**({} if "address" in given else quiet), **given})
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise SlimError(
                f"Ray must start. Got hydra.launcher.init={given} ({text}). Set hydra.launcher.init.address."
            ) from error
    return ray


def _execute(number: int, overrides: list[str], shared: Any) -> Any:
    """In a worker: what Hydra's own launcher does for a job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    context, config, function, state = shared
    setup_globals()
    Singleton.set_state(state)
    swept = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(swept):
        swept.hydra.job.id = f"{swept.hydra.job.name}_{number}"
        swept.hydra.job.num = number
    HydraConfig.instance().set_config(swept)
    return run_job(
        hydra_context=context,
        config=swept,
        task_function=function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
