"""Several processes for a training phase: this one is rank 0 and starts the others, which live as long as the phase."""

from __future__ import annotations

import contextlib
import os
import signal
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

PATIENCE = 5.0
"""Seconds for a connection to break by itself, or for a process to say why it ended."""

Process = subprocess.Popen[str]


class RankLost(RunFailed):
    """Another process of the phase is gone."""


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
        RankLost: A rank died; the message is what it said, if it said anything.
    """
    if devices == 1:
        yield
        return
    leader = "LOCAL_RANK" not in os.environ
    before = dict(os.environ)
    if leader:
        slim.save(directory / name / BEGIN, network, plan_of(network))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "LOCAL_RANK": "0", "RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(devices), "LEADER": str(os.getpid())}
    others = _start([str(directory), name, str(number)], devices) if leader else {}
    said: dict[int, str] = {}
    for index, process in others.items():
        threading.Thread(target=_listen, args=(index, process, said), daemon=True).start()
    over = threading.Event()
    threading.Thread(target=_watch, args=(others, said, over), daemon=True).start()
    patience = PATIENCE
    try:
        torch.distributed.init_process_group("nccl" if gpu else "gloo", rank=rank(), world_size=devices)
        yield
        patience = 60.0  # they end as this one does
    except RuntimeError as error:
        broken = any(word in str(error).lower() for word in ("connection", "gloo", "nccl"))
        if not broken and not isinstance(error, torch.distributed.DistError):
            raise
        raise RankLost(_reason(others, said, str(error))) from error
    finally:
        over.set()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for process in others.values():
            try:
                process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if leader:
            os.environ.clear()
            os.environ.update(before)


def _start(arguments: list[str], devices: int) -> dict[int, Process]:
    command = [sys.executable, "-m", "slim.pipeline.rank", *arguments]
    started = {}
    for index in range(1, devices):
        place = {**os.environ, "LOCAL_RANK": str(index), "RANK": str(index), "PYTHONPATH": os.pathsep.join(sys.path)}
        # A session of its own: Ctrl-C at the terminal reaches rank 0, which tells the others when to stop.
        started[index] = subprocess.Popen(
            command, env=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    return started


def _listen(index: int, process: Process, said: dict[int, str]) -> None:
    """Keep the one line with which a rank says why it failed; pass on everything else."""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            if line.startswith(f"rank {index}: "):
                said[index] = line.strip()
            else:
                sys.stderr.write(line)


def _reason(others: dict[int, Process], said: dict[int, str], error: str) -> str:
    """One line for the end of the run: a rank's own words, or which rank ended how."""
    deadline = time.monotonic() + PATIENCE
    while others and not said and not _dead(others) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # the last words of a process may arrive after its end
    if said:
        return said[min(said)]
    got = _dead(others) or f"{' '.join(error.split())[:160]} (rank {rank()})"
    return f"Every process of a phase must live. Got {got}. Go on with resume=<run directory>."


def _dead(others: dict[int, Process]) -> str:
    """How ranks ended; those that were killed say nothing themselves, and come first."""
    codes = {index: process.returncode for index, process in others.items() if process.poll()}
    killed = {index: code for index, code in codes.items() if code < 0} or codes
    return ", ".join(
        f"the end of rank {index} ({signal.Signals(-code).name if code < 0 else f'code {code}'})"
        for index, code in killed.items()
    )


def _watch(others: dict[int, Process], said: dict[int, str], over: threading.Event) -> None:
    """End this process when a rank dies, or (in a rank) when its leader does: a collective may wait forever."""
    leader = int(os.environ["LEADER"])
    while not over.wait(0.5):
        orphan = rank() > 0 and os.getppid() != leader
        # Time for the connection to break by itself, which is the tidier end.
        if (orphan or _dead(others)) and not over.wait(PATIENCE):
            if not orphan:  # nobody reads what an orphan says
                print(_reason(others, said, ""), file=sys.stderr, flush=True)
            for process in others.values():
                process.kill()
            os._exit(1)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
