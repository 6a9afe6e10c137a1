"""What the networks of a run say of the same held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from slim.report.predictions import Seen
from slim.runs.components import Components
from slim.runs.evaluation import validation_batches

IMAGES, BATCHES = 256, 8
SURE = 0.5
"""Score from which a box counts."""

ROWS = ("dense", "sparse", "recovered", "restarted", "finetuned")
"""Whose predictions may be compared."""


def predict(parts: Components, module: pl.LightningModule) -> list[tuple[Any, Any, Any]]:
    """Image, truth and prediction for some held-out images; empty where the module has no predictions of a known kind.

    Known are logits ``(N, classes)``, classes of pixels ``(N, H, W)``, and dicts of boxes, labels and scores, from the
    module's ``predict_step``. What the module does with its batches is its own affair: whatever it raises here, there
    is no picture.
    """
    if not is_overridden("predict_step", module):
        return []
    found: list[tuple[Any, Any, Any]] = []
    mode, device = module.training, parts.hardware.device
    module.eval().to(device)
    try:
        with torch.no_grad():
            for index, batch in enumerate(islice(validation_batches(parts.data), BATCHES)):
                images, truths = batch
                batch = module.transfer_batch_to_device(batch, device, 0)
                said = _plain(module.predict_step(batch, index))
                found += zip(map(_pixels, images), _plain(truths), said, strict=True)
                if len(found) >= IMAGES:
                    break
    except Exception:
        return []
    finally:
        module.cpu().train(mode)
    return found[:IMAGES]


def compared(first: Sequence[Any], second: Sequence[Any]) -> list[Seen]:
    """Two lists of :func:`predict`, as far as they are of the same images (training batches may come in any order)."""
    return [
        Seen(image, truth, before, after)
        for (image, truth, before), (other, _, after) in zip(first, second, strict=False)
        if np.array_equal(image, other)
    ]


def _plain(said: Any) -> list[Any]:
    """One class, one map of classes, or one pair of boxes and classes per image."""
    if isinstance(said, Tensor):
        if said.is_floating_point() and said.dim() == 2:
            said = said.argmax(1)
        if said.is_floating_point() or said.dim() not in (1, 3):
            raise TypeError("no classes")
        return [int(one) if one.dim() == 0 else one.cpu().numpy() for one in said]
    pairs = []
    for one in said:
        sure = one["scores"] >= SURE if "scores" in one else slice(None)
        pairs.append((one["boxes"][sure].float().cpu().numpy(), one["labels"][sure].cpu().numpy()))
    return pairs


def _pixels(image: Tensor) -> np.ndarray[Any, Any]:
    """``(C, H, W)`` of any scale as ``(H, W, 3)`` in [0, 1]."""
    given = image.detach().float().cpu()
    given = given - given.min()
    given = (given / given.max().clamp(min=1e-6))[:3]
    return given.expand(3, -1, -1).permute(1, 2, 0).numpy() if len(given) == 1 else given.permute(1, 2, 0).numpy()
