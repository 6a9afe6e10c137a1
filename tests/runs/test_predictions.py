"""Images that two networks see differently: found for every kind of prediction, drawn, and never a reason to fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from slim.report.predictions import Seen, picture
from slim.runs.predictions import compared, predict

IMAGES = torch.rand(5, 3, 6, 6)
LABELS = torch.arange(5)
MAPS = torch.zeros(5, 6, 6, dtype=torch.int64)
BOX = {"boxes": torch.tensor([[0.0, 0.0, 3.0, 3.0]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
FAINT = {**BOX, "scores": torch.tensor([0.1])}


class Says(pl.LightningModule):
    """Predicts what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Data(pl.LightningDataModule):
    def __init__(self, truths: Any) -> None:
        super().__init__()
        self.truths = truths

    def val_dataloader(self) -> Any:
        return DataLoader([(IMAGES, self.truths)], batch_size=None)  # type: ignore[arg-type]


def seen(truths: Any, before: Any, after: Any) -> list[Seen]:
    parts: Any = SimpleNamespace(data=Data(truths), hardware=SimpleNamespace(device=torch.device("cpu")))
    return compared(predict(parts, Says(before)), predict(parts, Says(after)))


def test_classes_differ_where_the_largest_logit_does() -> None:
    found = seen(LABELS, torch.eye(5), torch.eye(5)[[0, 1, 2, 4, 3]])
    assert [(one.truth, one.before, one.after) for one in found if one.amount] == [(3, 3, 4), (4, 4, 3)]
    figure = picture(found, names=("a", "b", "c", "d", "e"), title="two of five")
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["is d\ndense d, thin e", "is e\ndense e, thin d"]


def test_maps_differ_by_their_share_of_pixels() -> None:
    after = MAPS.clone()
    after[2, :3] = 1
    found = seen(MAPS, MAPS, after)
    assert [one.amount for one in found] == [0, 0, 0.5, 0, 0]
    figure = picture(found)
    assert figure is not None and len(figure.axes) == 5, "one image: it, the truth, both maps, where they differ"


def test_boxes_differ_where_only_one_network_has_them() -> None:
    moved = {**BOX, "boxes": torch.tensor([[3.0, 3.0, 6.0, 6.0]])}
    renamed, near = {**BOX, "labels": torch.tensor([2])}, {**BOX, "boxes": torch.tensor([[0.0, 0.0, 3.0, 2.5]])}
    found = seen([BOX] * 5, [BOX] * 5, [BOX, FAINT, moved, renamed, near])
    assert [one.amount for one in found] == [0, 1, 2, 2, 0]
    figure = picture(found)
    assert figure is not None
    figure.draw_without_rendering()


@pytest.mark.parametrize("answer", [RuntimeError("mine"), torch.rand(5), "text", None, torch.rand(4, 5)])
def test_what_is_not_known_makes_no_picture(answer: Any) -> None:
    assert seen(LABELS, answer, answer) == []
    assert picture([]) is None


def test_images_in_another_order_are_not_compared() -> None:
    images = np.zeros((2, 4, 4, 3)), np.ones((2, 4, 4, 3))
    first = [(images[0][0], 0, 0), (images[1][0], 1, 1)]
    assert compared(first, first[::-1]) == []
