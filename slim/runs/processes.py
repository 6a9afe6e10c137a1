"""The processes of a run. Starting and connecting them is Lightning's: torchrun, SLURM, or its own launcher."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from slim.errors import RunFailed, SlimError
from slim.runs.schema import Hardware


def program() -> str:
    """How the user calls this program again."""
    path = Path(sys.argv[0])
    if path.parts[-2:] == ("slim", "__main__.py"):
        return "python -m slim train"
    if path.stem == "slim":
        return "slim train"
    return f"python {shlex.quote(str(path))}" if path.name == "train.py" else "python train.py"


def environment() -> ClusterEnvironment | None:
    """The cluster environment that started this process; ``None`` where it was started alone."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        return SLURMEnvironment()
    # Set by Lightning's launcher in the processes that it starts.
    return LightningEnvironment() if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def rank() -> int:
    """This process's rank over all nodes; 0 where there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    found = environment()
    if found is None:
        return 0
    if isinstance(found, LightningEnvironment):
        return int(os.environ.get("NODE_RANK", "0")) * _local_world() + found.local_rank()
    return found.global_rank()


def connect(trainer: Hardware) -> None:
    """Join the other processes before the run directory is chosen, where an environment has started them all.

    Lightning's own launcher starts the others later, with the first training phase, and tells them the directory.

    Args:
        trainer: How many processes the configuration counts on.

    Raises:
        SlimError: Another number was started.
    """
    found = environment()
    if found is not None and not isinstance(found, LightningEnvironment) and found.world_size() != trainer.processes:
        raise SlimError(
            "trainer.devices x trainer.num_nodes must be the processes that were started. "
            f"Got {trainer.devices} x {trainer.num_nodes}, and {found.world_size()} were started "
            f"({type(found).__name__.removesuffix('Environment')}). Set trainer.devices per node and trainer.num_nodes."
        )
    several = found is not None and not isinstance(found, LightningEnvironment) and found.world_size() > 1
    if found is None or not several or torch.distributed.is_initialized():
        return
    os.environ.setdefault("MASTER_ADDR", found.main_address)
    os.environ.setdefault("MASTER_PORT", str(found.main_port))
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", rank=found.global_rank(), world_size=found.world_size()
    )


def shared(value: Any) -> Any:
    """Broadcast ``value`` of rank 0 to all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all processes, if there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Inside, errors of a broken connection become a RunFailed that says that another process ended.

    Raises:
        RunFailed: In place of the error of gloo or nccl.
    """
    try:
        yield
    except SlimError:
        raise
    except RuntimeError as error:
        broken = any(word in str(error).lower() for word in ("connection", "gloo", "nccl"))
        if not broken and not isinstance(error, torch.distributed.DistError):
            raise
        raise RunFailed(
            f"Every process of a phase must live. Got a broken connection on rank {rank()} "
            f"({' '.join(str(error).split())[:120]}). Go on with resume=<run directory>."
        ) from error


def _local_world() -> int:
    return max(int(os.environ.get("WORLD_SIZE", "1")) // max(int(os.environ.get("NUM_NODES", "1")), 1), 1)
