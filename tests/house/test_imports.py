"""Who may import what, and when: the parts of the architecture that import-linter cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "slim" / "channels").rglob("*.py"))
HEAVY = {"pytorch_lightning", "torchvision", "torchmetrics", "matplotlib", "sklearn", "tensorboard", "hydra", "rich"}


def imported_modules(path: Path) -> set[str]:
    """Top-level names of everything that ``path`` imports absolutely, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


def test_import_slim_is_light() -> None:
    """``import slim`` loads torch and numpy, and nothing heavy beyond what torch itself loads."""
    script = (
        "import sys, torch; before = set(sys.modules); import slim; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_what_needs_no_torch_does_not_wait_for_it() -> None:
    """Help, version, a name or a value that is wrong: told in a second, not in ten."""
    script = (
        "import sys; from slim.command.main import main; "
        "codes = [main(['--version']), main(['train', '--help']), main(['train', '+experiment=nothing']), "
        "main(['train', '+experiment=vgg_slim', 'prune.ratio=2']), "
        "main(['train', '-m', '+experiment=vgg_slim', 'prune.ratio=2,3'])]; "
        "print(*codes, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.splitlines()[-1] == "0 0 2 2 2 False", done.stderr


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_knows_only_torch_and_numpy(path: Path) -> None:
    third_party = imported_modules(path) - set(sys.stdlib_module_names)
    assert third_party <= {"torch", "numpy", "slim"}


def test_nothing_depends_on_the_lightning_package() -> None:
    """``pytorch_lightning`` is the dependency; ``lightning`` is another distribution."""
    for path in (ROOT / "slim").rglob("*.py"):
        assert "lightning" not in imported_modules(path), path
