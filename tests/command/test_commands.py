"""The commands say what the public API says, in text and as JSON, and complain in one line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import slim
from slim.command.export import _images
from slim.command.main import COMMANDS, main
from slim.command.model import Model
from slim.models import vgg
from tests.command.conftest import Call

ROOT = Path(__file__).parents[2]
TINY = ("slim.models:vgg", "--arg", "widths=[8,M,16]", "--input", "3x8x8")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net() -> torch.nn.Module:
    torch.manual_seed(5)
    return vgg(widths=[8, "M", 16], num_classes=10).eval()


def test_the_overview_names_every_command(call: Call) -> None:
    assert all(f"\n  {name} " in call("--help") for name in COMMANDS)
    assert call() == call("-h")


def test_the_input_that_an_artifact_keeps_is_the_one_it_was_cut_on(call: Call, tmp_path: Path) -> None:
    """With its batch, also where it has fewer numbers than images: vectors, signals, several inputs."""
    thin = str(tmp_path / "thin.safetensors")
    given = ("--arg", "image_size=2", "--arg", "hidden=[6]", "--input", "4", "--ratio", "0.5")
    call("prune", "slim.models:mlp", *given, "-o", thin)
    assert json.loads(call("inspect", thin, "--json"))["input"] == "1x4"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_command_has_help(name: str, call: Call) -> None:
    said = call(name, "--help")
    assert said.startswith(f"usage: slim {name}") and "JSON" in said
    assert said == call(name, "-h")


def test_options_of_hydra_stand_between_overrides_too(call: Call) -> None:
    said = call("train", "seed=3", "--cfg", "job", "data.batch_size=7")
    assert said == call("train", "--cfg", "job", "seed=3", "data.batch_size=7")
    assert "batch_size: 7\n" in said and "\nseed: 3\n" in said
    assert call("train", "seed=3", "--hydra-help").startswith("Hydra (1.")


def test_module_and_program_are_one() -> None:
    done = subprocess.run([sys.executable, "-m", "slim", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()[0].isdigit()


PROGRAM = """
import atexit, sys
from slim.command.exits import as_program
class Heavy:
    def __del__(self):
        print("freed", file=sys.stderr, flush=True)
def action():
    global heavy, file
    heavy, file = Heavy(), open(sys.argv[1], "w")
    file.write("kept")
    atexit.register(print, "registered")
    print("said")
    return 3
sys.exit(as_program(action))
"""


def test_a_program_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """Files are written that nobody closed, what is registered happens; the objects are not taken apart."""
    file = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\nregistered\n", "")
    assert file.read_text() == "kept"


def test_no_encoding_of_a_terminal_is_a_failure() -> None:
    said = "print('a', chr(0x2026), chr(0xDCFF)) or 0"
    line = f"import sys; from slim.command.exits import as_program; sys.exit(as_program(lambda: {said}))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a \\u2026 \\udcff\n", "")


@pytest.mark.parametrize(("command", "code"), [("--version >&-", 0), ("nothing 2>&-", 2), ("nothing >&- 2>&-", 2)])
def test_no_output_at_all_is_no_failure(command: str, code: int) -> None:
    """What was meant for the one stream does not go to the other."""
    line = ["sh", "-c", f'"$0" -m slim {command}', sys.executable]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_folder_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    line = f'mkdir gone && cd gone && rmdir "$PWD" && PYTHONPATH={ROOT} exec "$0" -m slim --version'
    done = subprocess.run(["sh", "-c", line, sys.executable], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def stopped(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", stopped)
    assert main(["inspect", "resnet18"]) == 130
    assert capfd.readouterr().err == "Stopped by Ctrl-C before anything began.\n"


def test_a_reader_that_leaves_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "slim", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_inspect_is_the_graph(call: Call) -> None:
    graph = slim.trace(net(), X[:1])
    found = call("inspect", *TINY, as_json=True)
    assert (found["groups"], found["macs"], found["params"]) == (len(graph), graph.macs(), graph.params())
    assert found["prunable"] == int(graph.prunable.sum())
    assert sum(layer["width"] for layer in found["layers"]) == len(graph)
    assert sum(layer["macs"] for layer in found["layers"]) == graph.macs()
    assert "features.0" in call("inspect", *TINY)


def test_prune_is_slim_prune_and_its_file_needs_no_network(call: Call, tmp_path: Path) -> None:
    torch.save(net().state_dict(), "dense.pt")
    budget = ("--macs", "0.5", "--criterion", "l1", "--round-to", "2", "--min-channels", "2")
    found = call("prune", *TINY, "--weights", "dense.pt", *budget, "-o", "thin.safetensors", as_json=True)
    expected = slim.prune(net(), X[:1], macs=0.5, criterion="l1", round_to=2, min_channels=2)
    assert found["widths"] == {name: list(pair) for name, pair in expected.report.widths.items()}
    assert found["achieved"] == expected.report.achieved and not found["notes"]
    assert torch.equal(slim.load(tmp_path / "thin.safetensors").eval()(X), expected.model.eval()(X))


def test_a_thin_network_can_be_cut_again(call: Call, tmp_path: Path) -> None:
    """One plan from the dense network; the input is the file's own."""
    call("prune", *TINY, "--ratio", "0.25", "--criterion", "l1", "-o", "one.safetensors")
    first = call("inspect", "one.safetensors", as_json=True)
    assert first["thin"]
    again = call(
        "prune", "one.safetensors", "--macs", "0.5", "--criterion", "l1", "-o", "two.safetensors", as_json=True
    )
    assert again["macs"][0] == first["macs"] and again["macs"][1] <= 0.5 * first["macs"]
    assert call("inspect", "two.safetensors", as_json=True)["macs"] == again["macs"][1]
    assert slim.load("two.safetensors")(X).shape == (2, 10)


def test_prune_without_output_writes_nothing(call: Call, tmp_path: Path) -> None:
    said = call("prune", *TINY, "--ratio", "0.5")
    assert "Nothing written" in said and "untrained" in said
    assert not list(tmp_path.iterdir())


def test_bench_puts_the_dense_network_beside(call: Call) -> None:
    call("prune", *TINY, "--ratio", "0.5", "--criterion", "l1", "-o", "thin.safetensors")
    short = ("--batch", "1", "2", "--seconds", "0.001", "--threads", "1")
    found = call("bench", "thin.safetensors", "thin.safetensors", *short, as_json=True)
    dense, thin, twin = found["networks"]
    assert (dense["name"], thin["name"]) == ("dense", "thin.safetensors")
    assert dense["macs"] == slim.trace(net(), X[:1]).macs() > thin["macs"] == twin["macs"]
    assert dense["times_as_fast"] == {"1": 1.0, "2": 1.0} and set(thin["ms"]) == {"1", "2"}
    assert "batch 2" in call("bench", "thin.safetensors", "--no-dense", *short)


DIGITS = ("data=digits", "data.image_size=8", "data.limit_test=64", "trainer=cpu", "trainer.precision=fp32")


def test_a_file_is_evaluated_as_the_network_that_it_describes(call: Call, tmp_path: Path) -> None:
    """Unless the user says otherwise, or the file names code; an equals sign is part of a path."""
    builder = {"_target_": "slim.models.vgg", "widths": [8, "M", 16], "num_classes": 10, "in_channels": 1}
    network = vgg(widths=[8, "M", 16], num_classes=10, in_channels=1)
    (tmp_path / "a=1").mkdir()
    file = str(slim.save("a=1/own.safetensors", network, builder=builder))
    found = json.loads(call("evaluate", file, *DIGITS))
    assert found["params"] == sum(parameter.numel() for parameter in network.parameters())
    assert "configured model" in call("evaluate", file, *DIGITS, "model.widths=[8,M,8]", code=2)
    slim.save("code.safetensors", network, builder={**builder, "_target_": "tests.models.anything"})
    assert "model=custom" in call("evaluate", "code.safetensors", *DIGITS, code=2)


def test_names_of_torchvision_bring_their_input(call: Call) -> None:
    found = call("inspect", "squeezenet1_1", as_json=True)
    assert found["input"] == "1x3x224x224"


def test_reports_are_shown_and_compared(call: Call, tmp_path: Path) -> None:
    import json

    same = "python train.py +experiment=toy 'model.widths=[8, M]'"
    for name, value in (("a", 0.9), ("b", 0.8)):
        (tmp_path / name).mkdir()
        rows = {"dense": {"metric": value, "macs": 100, "params": 10, "channels": 4}}
        (tmp_path / name / "report.json").write_text(
            json.dumps({"experiment": name, "rows": rows, "command": f"{same} seed={value}"})
        )
    assert call("report", "a").startswith("# a")
    both = call("report", "a", "b").splitlines()
    assert len(both) == 3 and "90.0" in both[1] and "80.0" in both[2]
    assert [row.endswith(f"  seed={value}") for row, value in zip(both[1:], (0.9, 0.8), strict=True)] == [True, True]
    assert list(call("report", "a", "b", as_json=True)) == ["a", "b"]
    assert list(call("report", ".", "--page", "both.html", as_json=True)) == ["a", "b"], "the jobs of a sweep"
    page = (tmp_path / "both.html").read_text()
    assert "Runs side by side" in page and "<td class=text>seed=0.8</td>" in page
    record = json.loads((tmp_path / "b" / "report.json").read_text())
    record["metric"] = {"name": "mae", "mode": "min", "percent": False}
    (tmp_path / "b" / "report.json").write_text(json.dumps(record))
    head, *both = call("report", "a", "b").splitlines()
    assert "  metric  " in head and "  accuracy 90.00%  " in both[0] and "  mae 0.8  " in both[1]
    call("report", "a", "--page", "one.html")
    assert "<h1>a</h1>" in (tmp_path / "one.html").read_text()


def test_the_report_of_a_run_that_was_moved_says_where_its_files_are(call: Call, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    paths = {"artifact": "/there/run/model.safetensors", "page": None, "tensorboard": "/there/run"}
    record = {"rows": {"dense": {"metric": 0.5}}, "paths": paths}
    (tmp_path / "here" / "report.json").write_text(json.dumps(record))
    said, found = call("report", "here"), call("report", "here", as_json=True)["here"]["paths"]
    assert f"`{tmp_path}/here/model.safetensors`" in said and f"--logdir {tmp_path}/here`" in said
    assert found["page"] is None and "/there" not in said


BAD: list[tuple[tuple[str, ...], str]] = [
    (("prnue", "x"), "prune"),
    (("--completion", "tcsh"), "bash"),
    (("inspect",), "slim inspect --help"),
    (("inspect", "resnet17"), "resnet18"),
    (("inspect", "nowhere.safetensors"), "nowhere.safetensors"),
    (("inspect", "empty"), "model.safetensors"),
    (("inspect", "begun"), "resume=begun"),
    (("inspect", "text.txt"), "slim.save"),
    (("inspect", "slim.models:vg"), "vgg"),
    (("inspect", "no_such_package:net"), "no_such_package"),
    (("inspect", "slim.models:"), "package.module:name"),
    (("inspect", "slim.models:vgg"), "--input"),
    (("inspect", *TINY, "--arg", "depth"), "key=value"),
    (("inspect", *TINY, "--arg", "dept=11"), "dept"),
    (("inspect", "slim.models:vgg", "--input", "3x0x8"), "3x0x8"),
    (("inspect", "slim.models:vgg", "--input", "4x8x8"), "inputs"),
    (("inspect", *TINY, "--weights", "nowhere.pt"), "nowhere.pt"),
    (("inspect", *TINY, "--weights", "text.txt"), "text.txt"),
    (("inspect", *TINY, "--residual", "grp"), "group"),
    (("inspect", "os:getcwd"), "torch.nn.Module"),
    (("train", "--foo"), "--foo"),
    (("train", "-x"), "-x"),
    (("train", "--cfg", "nothing"), "nothing"),
    (("train", "--cfg", "job", "--package", "nowhere"), "nowhere"),
    (("train", "--info", "--multirun"), "at a time"),
    (("evaluate",), "nothing"),
    (("evaluate", "data=digits"), "data=digits"),
    (("evaluate", "a=b.safetensors"), "a=b.safetensors"),
    (("evaluate", "text.txt", "--foo"), "--foo"),
    (("train", "--config-dir", "nowhere"), "--config-dir nowhere"),
    (("train", "--config-path", "empty"), "Give --config-dir"),
    (("train", "--experimental-rerun", "text.txt"), "Give resume="),
    (("prune", *TINY), "--ratio"),
    (("prune", *TINY, "--ratio", "1"), "ratio must be in [0, 1)"),
    (("prune", *TINY, "--ratio", "0.5", "--macs", "0.5"), "not allowed"),
    (("prune", *TINY, "--macs", "1e-9"), "within reach"),
    (("prune", *TINY, "--ratio", "0.5", "--criterion", "gama"), "gamma"),
    (("prune", *TINY, "--ratio", "0.5", "--criterion", "taylor"), "--criterion must be one that needs no data"),
    (("prune", *TINY, "--ratio", "0.5", "--granularity", "chanel"), "channel"),
    (("prune", *TINY, "--ratio", "0.5", "-o", "/proc/nowhere/thin.safetensors"), "writable"),
    (("bench", *TINY, "--batch", "0"), "--batch"),
    (("bench", *TINY, "--threads", "0"), "--threads"),
    (("bench", *TINY, "--seconds", "nan"), "--seconds"),
    (("bench", *TINY, "--seconds", "inf"), "--seconds"),
    (("bench", *TINY, "--device", "toaster"), "--device"),
    (("export", *TINY, "--count", "0"), "--count"),
    (("report", "empty"), "report.json"),
    (("report", "begun"), "resume=begun"),
    (("report", "odd.json"), "a row per network"),
]


@pytest.mark.parametrize(("line", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_a_bad_line_is_one_line(line: tuple[str, ...], says: str, call: Call, tmp_path: Path) -> None:
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / "state.json").write_text("{}")
    (tmp_path / "text.txt").write_text("no network")
    (tmp_path / "odd.json").write_text('{"rows": {"dense": 3}}')
    before = sorted(tmp_path.rglob("*"))
    assert says in call(*line, code=2)
    assert sorted(tmp_path.rglob("*")) == before


def test_completion_offers_commands_options_and_groups(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def after(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        found: Any = call("--complete")
        return found.split()

    assert after("slim pr") == list(COMMANDS)
    assert {"--macs", "-o", "--json"} <= set(after("slim prune resnet18 --"))
    assert {"model=vgg", "model=resnet"} <= set(after("slim train model="))
    assert "complete" in call("--completion", "bash")


def test_images_for_an_export_are_prepared_as_the_artifact_says_and_named(tmp_path: Path) -> None:
    """A network of timm knows how others trained it, too; that is not how this one was."""
    network = net()
    network.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 8, 8)}  # type: ignore[assignment]
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "a.png")
    metadata = {"mean": "[0.1, 0.1, 0.1]", "std": "[0.2, 0.2, 0.2]"}
    found = Model("mine", network, torch.zeros(1, 3, 8, 8), {}, False, True, metadata)
    args = Namespace(images=str(tmp_path), mean=None, std=None, count=None)
    batches, told = _images(found, found.network, args)
    assert told["mean"] == [0.1] * 3 and told["std"] == [0.2] * 3
    torch.testing.assert_close(next(iter(batches())), torch.full((1, 3, 8, 8), 0.5))
    assert "classes" not in told
    metadata["classes"] = '["cat", "dog", "cow"]'
    assert "classes" not in _images(found, found.network, args)[1], "the network has ten"
    metadata["classes"] = json.dumps(list("abcdefghij"))
    assert _images(found, found.network, args)[1]["classes"] == list("abcdefghij")
    (tmp_path / "b.png").write_bytes(b"no image")
    batches, _ = _images(found, found.network, args)
    with pytest.raises(slim.SlimError, match=r"b\.png \(not an image\) \(in "):
        list(batches())
