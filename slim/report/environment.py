"""The environment of a run: versions, processor, memory, revision."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "numpy",
    "torchmetrics",
    "hydra-core",
    "tensorboard",
    "safetensors",
)


def processor() -> str:
    """The processor's marketing name, as reported by the operating system."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Main memory in GiB, or ``None`` where the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def revision(folder: Path | None = None) -> str | None:
    """The git revision of the source (12 hex digits, ``+`` when files are changed), or ``None`` outside a clone."""
    where = str(folder or Path(__file__).resolve().parent)
    # An installed copy may lie inside another repository (a project's .venv), whose revision is not ours.
    if "site-packages" in where:
        return None
    try:
        head = subprocess.run(
            ["git", "-C", where, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        dirty = subprocess.run(
            ["git", "-C", where, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def describe() -> dict[str, object]:
    """The machine and the software of this process, as JSON-able plain data.

    >>> sorted(describe())[:3]
    ['cores', 'device', 'git']
    """
    git, versions = _software()
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "device": accelerator or "cpu",
        "git": git,
        "versions": dict(versions),
    }


@cache
def _software() -> tuple[str | None, dict[str, str]]:
    """Revision and versions of what this process has loaded: once in its life, however the files change later."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # optional
    return revision(), versions


def line(environment: dict[str, object]) -> str:
    """One line for the foot of a table: processor, threads, accelerator, torch.

    >>> line({"processor": "X", "threads": 2, "device": "cpu", "versions": {"torch": "2.6"}})
    'X, 2 threads, torch 2.6'
    """
    parts = [str(environment.get("processor") or "unknown processor"), f"{environment.get('threads', '?')} threads"]
    if environment.get("device") not in (None, "cpu"):
        parts.append(str(environment["device"]))
    versions = environment.get("versions")
    if isinstance(versions, dict) and "torch" in versions:
        parts.append(f"torch {versions['torch']}")
    return ", ".join(parts)
