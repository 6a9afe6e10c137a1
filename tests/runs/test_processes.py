"""Several processes, started by torchrun or by Lightning: one plan, equal gammas, and no hang when one dies."""

from __future__ import annotations

import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train
from experiments.chaos.harness import exit_code, start
from slim.errors import RunFailed, SlimError
from slim.runs import processes
from slim.runs.checkpoint import Saver
from slim.runs.record import command
from slim.runs.schema import Hardware
from slim.runs.signals import Signals
from slim.runs.state import State
from tests.runs.tiny import FOUR_STEPS, TINY, run
from tests.waiting import BOUND, ended, until

ROOT = Path(__file__).parents[2]
REPLACED = ("data.limit_train", "model.widths", "sparse.epochs", "sparse.shrink", "finetune.epochs")
LINE = [
    "+experiment=vgg_slim", *(item for item in TINY if item.partition("=")[0] not in REPLACED), FOUR_STEPS,
    "model=custom", "model._target_=tests.runs.networks.watched", "trainer.checkpoint_every=2", "penalty=target",
    "sparse.epochs=3", "sparse.slim_every=1", "sparse.shrink=null", "finetune.epochs=1",
]  # fmt: skip


def environment(gammas: Path) -> dict[str, str]:
    gammas.mkdir(exist_ok=True)
    return {**os.environ, "GAMMAS": str(gammas), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def agent(argv: list[str], *, node: int, port: int) -> int:
    """What ``torchrun --nnodes=2 --nproc_per_node=1 --node_rank=<node> train.py`` does once it has read its line."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=2, max_nodes=2, nproc_per_node=1, run_id="test", max_restarts=0, start_method="fork",
        rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{port}", rdzv_configs={"rank": node, "timeout": BOUND},
    )  # fmt: skip
    (code,) = elastic_launch(config, train.main)(argv).values()
    return int(code)


def two_nodes(directory: Path, gammas: Path, line: list[str]) -> None:
    """A run started by torchrun's agents as on two machines, talking over this machine's loopback."""
    port, argv = free_port(), [*line, "trainer.num_nodes=2", f"hydra.run.dir={directory}"]
    said = [directory.with_name(f"stderr-{node}") for node in range(2)]
    agents = [
        start(argv, said[node], main=partial(agent, node=node, port=port), environment=environment(gammas))
        for node in range(2)
    ]
    for code, path in zip([ended(process) for process in agents], said, strict=True):
        assert code == 0, path.read_text()[-2000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[list[str]]]:
    """An undisturbed run on two nodes: its directory, its report, and each process's gammas at every step."""
    home = tmp_path_factory.mktemp("nodes")
    two_nodes(home / "run", home / "gammas", LINE)
    report = json.loads((home / "run" / "report.json").read_text())
    return home / "run", report, [(home / "gammas" / str(rank)).read_text().splitlines() for rank in range(2)]


def test_gammas_agree_bit_for_bit(whole: tuple[Path, dict[str, Any], list[list[str]]]) -> None:
    """At every step of sparse training and fine-tuning, before and after surgery in the middle of it."""
    place, report, (first, second) = whole
    assert report["phases"]["sparse"]["slimmed"], "surgery happened under DDP"
    assert report["phases"]["sparse"]["steps"] == 6  # 4 batches of 32 an epoch, shared by two
    assert len(first) == 6 + report["phases"]["finetune"]["steps"]
    assert first == second
    widths = [tuple(len(gamma) for gamma in line.split()) for line in first]
    assert widths[0] != widths[5], "thinner after surgery"
    assert len(set(first[:6])) == 6, "gammas move"
    assert State.load(place).finished


def launching(argv: list[str]) -> int:
    """``python train.py``, which Lightning's launcher starts again for the second process."""
    sys.argv = [str(ROOT / "train.py"), *argv]
    return train.main(argv)


def test_lightnings_own_launcher_runs_the_same(
    whole: tuple[Path, dict[str, Any], list[list[str]]], tmp_path: Path
) -> None:
    """``trainer.devices=2`` alone: the same gammas, the same plan."""
    line, said = [*LINE, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"], tmp_path / "stderr"
    process = start(line, said, main=launching, environment=environment(tmp_path / "gammas"))
    assert exit_code(process) == 0, said.read_text()[-2000:]
    assert [(tmp_path / "gammas" / str(rank)).read_text().splitlines() for rank in range(2)] == whole[2]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["plan_hash"] == whole[1]["plan_hash"]


def test_a_dead_process_ends_all_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL to the second process, with none to watch it; what is left goes on alone, and says what that changes."""
    place, said = tmp_path / "run", tmp_path / "stderr"
    line = [*LINE, "sparse.epochs=400", "sparse.slim_every=0", "trainer.num_nodes=2", f"hydra.run.dir={place}"]
    common = {
        **environment(tmp_path / "gammas"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0",
    }  # fmt: skip
    ranks = [
        start(line, said if rank == "0" else None, environment={**common, "RANK": rank, "GROUP_RANK": rank})
        for rank in "01"
    ]
    until((place / "sparse" / "last.ckpt").is_file, lambda: all(rank.is_alive() for rank in ranks))
    ranks[1].kill()
    assert exit_code(ranks[0]) == 1
    assert "Every process of a phase must live" in said.read_text()
    assert "Every process of a phase must live" in (place / "error.txt").read_text()
    assert not State.load(place).phases
    monkeypatch.setenv("GAMMAS", str(tmp_path / "gammas"))
    assert train.main([f"resume={place}", "trainer.num_nodes=1", "sparse.epochs=2"]) == 0
    said_then = capfd.readouterr().err
    assert "Goes on with 1 instead of 2 processes. The same: weights, plan" in said_then
    assert any("Not the same" in note for note in json.loads((place / "report.json").read_text())["notes"])


@pytest.mark.parametrize(
    ("called", "says"),
    [("train.py", "python train.py"), ("/my slim/train.py", "python '/my slim/train.py'"), ("/bin/slim", "slim train"),
     ("/site/slim/__main__.py", "python -m slim train"), ("/bin/pytest", "python train.py")],
)  # fmt: skip
def test_commands_call_the_program_as_the_user_did(called: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert command(["seed=1"]) == f"{says} seed=1"


def test_processes_that_were_started_must_be_those_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1",
                        "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "4"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(SlimError, match=r"Got 1 x 2, and 4 were started \(TorchElastic\)"):
        processes.connect(Hardware(num_nodes=2))
    assert processes.rank() == 1


def test_strategies_that_shard_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", "strategy=fsdp", code=2)
    assert "shards parameters" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["data.batch_size=40"], "Got batch_size=40 x 2 processes for 64 images. Set data.batch_size to at most 32."),
        (["data.val_fraction=0.01"], "an image of validation. Got 1 for 2 processes."),
        (["data.limit_test=1"], "an image of test. Got 1 for 2 processes. Raise data.limit_test."),
    ],
)
def test_what_does_not_go_around_is_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    run(tmp_path / "run", "trainer.devices=2", *options, code=2)
    assert says in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_broken_connection_is_the_end_of_a_process() -> None:
    with pytest.raises(RunFailed, match="Every process of a phase must live"), processes.explained():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3453")


def test_ranks_save_together() -> None:
    """Clocks differ: where one rank finds that it is time to save, all do; and the strongest signal counts."""
    others = torch.tensor([1, 2])
    trainer: Any = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(
            root_device=torch.device("cpu"), reduce=lambda mine, reduce_op: torch.maximum(mine, others)
        ),
    )
    saver = Saver(Path("last.ckpt"), beside=dict, signals=Signals())
    assert saver._agreed(trainer, False) == (True, "SIGTERM")
    others.zero_()
    assert saver._agreed(trainer, False) == (False, None)
    assert saver._agreed(trainer, True) == (True, None)


def joined(argv: list[str]) -> int:
    """One task of SLURM's: joins the others and writes down what it knows of them."""
    processes.connect(Hardware(num_nodes=2))
    shared = processes.shared(f"from rank {processes.rank()}")
    (Path(argv[0]) / str(processes.rank())).write_text(f"{type(processes.environment()).__name__}: {shared}")
    processes.barrier()
    torch.distributed.destroy_process_group()
    return 0


def test_slurm_starts_the_processes(tmp_path: Path) -> None:
    """Two tasks on two nodes, by the variables that ``srun`` sets."""
    common = {
        **os.environ, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "slim", "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [
        start([str(tmp_path)], None, main=joined, environment={**common, "SLURM_PROCID": task, "SLURM_NODEID": task})
        for task in "01"
    ]
    assert [exit_code(task) for task in tasks] == [0, 0]
    assert [(tmp_path / task).read_text() for task in "01"] == ["SLURMEnvironment: from rank 0"] * 2
