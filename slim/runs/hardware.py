"""What this machine is good at: accelerator, precision and memory layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from slim.errors import SlimError
from slim.runs.schema import NO_FP16, Hardware

FAST_BF16 = ("amx_bf16", "avx512_bf16")
"""Processor flags with which bf16 convolutions are faster than fp32 ones (oneDNN)."""


@dataclass(frozen=True)
class Choice:
    """Hardware settings of a run. ``precision`` is Lightning's name for it; ``line`` tells the user why."""

    accelerator: str
    device: torch.device
    precision: str
    channels_last: bool
    line: str


def choose(wanted: Hardware, cpu_flags: frozenset[str] | None = None) -> Choice:
    """Fill in what is ``auto``.

    Args:
        wanted: The trainer's configuration.
        cpu_flags: Processor flags, read from the system by default.

    Raises:
        SlimError: A GPU is asked for and there is none, or not as many; fp16 is asked for and it comes to a CPU.

    >>> choose(Hardware(accelerator="cpu"), frozenset({"avx512_bf16"})).precision
    'bf16-mixed'
    >>> choose(Hardware(accelerator="cpu"), frozenset()).line
    'cpu, fp32 (no AMX or AVX512-BF16)'
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.accelerator == "gpu" and gpus < wanted.devices:
        raise SlimError(
            f"trainer.devices must not exceed the GPUs. Got devices={wanted.devices}, GPUs={gpus}. Set trainer=cpu."
        )
    gpu = wanted.accelerator == "gpu" or (wanted.accelerator == "auto" and gpus >= wanted.devices)
    if gpu:
        good = torch.cuda.get_device_capability(0) >= (8, 0)
        where, why = torch.cuda.get_device_name(0), "Ampere or newer" if good else "older than Ampere"
    else:
        flags = _cpu_flags() if cpu_flags is None else cpu_flags
        found = [flag for flag in FAST_BF16 if flag in flags]
        good, where = bool(found), "cpu"
        why = found[0].upper().replace("_", "-") if found else "no AMX or AVX512-BF16"
    precision = wanted.precision
    if precision == "fp16" and not gpu:
        raise SlimError(NO_FP16)
    if precision == "auto":
        precision = "bf16" if good else "fp32"
    else:
        why = "as asked"
    layout = good if wanted.channels_last is None else wanted.channels_last
    label = {"fp32": "fp32", "bf16": "bf16 autocast", "fp16": "fp16 autocast"}[precision]
    return Choice(
        accelerator="gpu" if gpu else "cpu",
        device=torch.device("cuda" if gpu else "cpu"),
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
        channels_last=layout,
        line=f"{where}, {label}{', channels last' if layout else ''} ({why})",
    )


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass  # not Linux: fp32 is always right
    return frozenset()
