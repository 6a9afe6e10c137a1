"""What is installed from the wheel: the same configuration, from an empty folder, with the user's own parts."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import train
from slim.artifact import read_header
from tests.runs.tiny import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what pip would unpack; built without network and without a separate environment."""
    home = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


def start(site: Path, folder: Path, *line: str) -> str:
    """``python -m slim`` as installed, in ``folder``; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "slim", *line], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_travels(site: Path) -> None:
    """Configuration, modules and what they draw with; nothing else at the top."""
    for here, there in ((ROOT / "conf", site / "slim" / "conf"), (ROOT / "slim", site / "slim")):
        files = (path for path in here.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        expected = {path.relative_to(here) for path in files}
        assert expected and {path for path in expected if not (there / path).is_file()} == set()
        assert all((there / path).read_bytes() == (here / path).read_bytes() for path in expected)
    tops = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert tops <= {"slim", "hydra_plugins"}
    (entry,) = site.glob("*.dist-info/entry_points.txt")
    assert "slim = slim.command.main:program" in entry.read_text()


def test_the_installed_configuration_is_that_of_train_py(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["+experiment=vgg_slim", "prune.macs=0.5", "prune.ratio=null", "--cfg", "job"]
    assert train.main(line) == 0
    assert yaml.safe_load(start(site, tmp_path, "train", *line)) == yaml.safe_load(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_enough(site: Path, tmp_path: Path) -> None:
    """Own configuration and an own network from the current folder; outputs go there, and load anywhere."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "small.yaml").write_text(
        "# @package _global_\ndefaults:\n  - vgg_slim\n  - override /model: custom\n"
        "name: small\nmodel: {_target_: networks.small}\n"
    )
    (tmp_path / "networks.py").write_text(
        "import slim\nfrom slim.models import vgg\n\n"
        f"assert slim.__file__.startswith({str(site)!r}), slim.__file__\n\n"
        "def small(num_classes, in_channels):\n"
        "    return vgg(widths=[8, 'M', 16], num_classes=num_classes, in_channels=in_channels)\n"
    )
    tiny = [item for item in TINY if not item.startswith("model.")]
    line = ["--config-dir", "mine", "+experiment=small", *tiny, "sparse.epochs=1", "finetune.epochs=1"]
    start(site, tmp_path, "train", *line)
    (run,) = (tmp_path / "outputs" / "small").iterdir()
    header = read_header(run / "model.safetensors")
    assert header.plan is not None and header.builder == {
        "_target_": "networks.small", "num_classes": 10, "in_channels": 1
    }  # fmt: skip
