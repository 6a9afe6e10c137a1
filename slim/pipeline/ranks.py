"""Several processes for a training phase: this one is rank 0 and starts the others, which live as long as the phase."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import slim
from slim.channels import plan_of
from slim.errors import RunFailed

BEGIN = "begin.safetensors"
"""The network that the ranks of a phase begin with."""


def rank() -> int:
    """This process's rank in the phase; 0 where there is one process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def together(
    directory: Path, name: str, number: int, network: torch.nn.Module, devices: int, gpu: bool
) -> Iterator[None]:
    """Start the other ranks of the phase ``name``, connect to them, and see them off at the end.

    Args:
        directory: The run directory, from whose state the ranks read what to do.
        name: Of the phase.
        number: Of the pass.
        network: What the phase begins with.
        devices: Number of processes, this one included. 1: nothing happens.
        gpu: Connect through nccl instead of gloo.

    Raises:
        RunFailed: A rank died.
    """
    if devices == 1:
        yield
        return
    others: list[subprocess.Popen[bytes]] = []
    leader = "LOCAL_RANK" not in os.environ
    before = dict(os.environ)
    if leader:
        slim.save(directory / name / BEGIN, network, plan_of(network))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "LOCAL_RANK": "0", "RANK": "0"}
        os.environ["WORLD_SIZE"] = str(devices)
        command = [sys.executable, "-m", "slim.pipeline.rank", str(directory), name, str(number)]
        for index in range(1, devices):
            place = {
                **os.environ,
                "LOCAL_RANK": str(index),
                "RANK": str(index),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            others.append(subprocess.Popen(command, env=place, stdout=subprocess.DEVNULL))
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(others, over), daemon=True)
    watch.start()
    try:
        torch.distributed.init_process_group("nccl" if gpu else "gloo", rank=rank(), world_size=devices)
        yield
        over.set()
    except RuntimeError as error:
        if "onnection" in str(error) or "gloo" in str(error).lower() or "nccl" in str(error).lower():
            raise RunFailed(
                f"Every process of a phase must live. Got {' '.join(str(error).split())[:160]} (rank {rank()}). "
                "Go on with resume=<run directory>; the last checkpoint is kept."
            ) from error
        raise
    finally:
        over.set()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for process in others:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        if leader:
            os.environ.clear()
            os.environ.update(before)


def _watch(others: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process when a rank dies, or (in a rank) when its leader does: a collective would wait forever."""
    leader = os.getppid()
    while not over.wait(0.5):
        dead = [(index, process.returncode) for index, process in enumerate(others, 1) if process.poll()]
        orphan = not others and os.getppid() != leader
        if (dead or orphan) and not over.wait(5.0):
            # Time for the connection to break by itself, which is the tidier end.
            who = "rank 0" if orphan else f"rank {dead[0][0]} (code {dead[0][1]})"
            print(
                f"Every process of a phase must live. Got the end of {who}. Go on with resume=<run directory>.",
                file=sys.stderr,
                flush=True,
            )
            for process in others:
                process.kill()
            time.sleep(0.1)
            os._exit(1)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
