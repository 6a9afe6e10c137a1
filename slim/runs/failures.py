"""Errors and warnings of Lightning and torch: those with a known cause as one line, those without use silenced."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from slim.errors import RunFailed, SlimError
from slim.files import FULL

QUIET = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*GPU available but not used.*",
    ".*TPU available.*",
    ".*The `srun` command is available.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`.*_module_state_dict`.*",
    ".*Grad strides do not match bucket view strides.*",
    ".*This DataLoader will create .* worker processes.*",
    ".*Total length of .* across ranks is zero.*",
)
"""Lightning's warnings about choices that are ours on purpose."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, Lightning prints no tips, hardware lists, or warnings about settings that are chosen on purpose."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [(logger, logger.level) for logger in loggers]
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in levels:
                logger.setLevel(level)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on the device, in torch on the CPU, or in Python."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def explained(batch_size: Any, key: str = "data.batch_size") -> Iterator[None]:
    """Inside, errors with a known cause become a RunFailed or SlimError of one line.

    Args:
        batch_size: Of what runs here.
        key: Where it is set.

    Raises:
        RunFailed: Out of memory, a full disk, a dead data loader worker, an operation that cannot repeat itself, or
            nobody who reads what is printed.
    """
    try:
        yield
    except SlimError:
        raise
    except BrokenPipeError as error:
        # It would pass for a reader who has seen enough of something that is done.
        raise RunFailed(
            "What a run says must be read to its end. Got a closed pipe. Go on with resume=<run directory>; to a file "
            "(2> log) or with trainer.progress=none."
        ) from error
    except OSError as error:  # of somebody else's files, such as TensorBoard's: ours say it themselves
        if error.errno not in FULL:
            raise
        raise RunFailed(
            f"The disk must have room for what a run writes. Got {error.strerror}. Free space, and go on with "
            "resume=<run directory>."
        ) from error
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        half = f"{max(int(batch_size) // 2, 1)}" if isinstance(batch_size, int) else "half of it"
        more = " and trainer.accumulate=2" if key == "data.batch_size" else ""
        if out_of_memory(error):
            raise RunFailed(
                f"The batch must fit in memory. Got {key}={batch_size} (out of memory). "
                f"Set {key}={half}{more}; the last checkpoint is kept."
            ) from error
        # One that was caught in a worker is the data's own error, and that worker lives.
        if "DataLoader worker" in text and not text.startswith("Caught "):
            raise RunFailed(
                f"Data loader workers must live. Got {text.splitlines()[0][:200]}. Lower data.num_workers or free "
                "memory; the last checkpoint is kept."
            ) from error
        if "does not have a deterministic implementation" in text:
            raise RunFailed(
                "A run repeats itself bit by bit only where its operations do. "
                f"Got {text.split(' ', 1)[0]}, which has no such implementation here. Set trainer.deterministic=false."
            ) from error
        raise
