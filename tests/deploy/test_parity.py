"""Parity counts every image once, and nothing that is not a number passes."""

from __future__ import annotations

import pytest
import torch

from slim.deploy.parity import Parity, check_exact, check_quantized, compare, loss
from slim.errors import RunFailed


def test_batches_count_as_one() -> None:
    x, y = torch.randn(10, 4), torch.randn(10, 4)
    table = {float(a.sum()): b for a, b in zip(x, y, strict=True)}

    def other(batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([table[float(row.sum())] for row in batch])

    whole, parts = compare(lambda a: a, other, [x]), compare(lambda a: a, other, [x[:3], x[3:]])
    assert (whole.images, whole.difference, whole.scale) == (parts.images, parts.difference, parts.scale)
    assert whole.agreement == pytest.approx(parts.agreement)
    assert whole.agreement == pytest.approx(float((x.argmax(1) == y.argmax(1)).float().mean()))
    assert whole.difference == float((x - y).abs().max())


def test_structures_are_compared_leaf_by_leaf() -> None:
    found = compare(lambda x: {"a": x, "b": (x,)}, lambda x: {"a": x, "b": (x + 2,)}, [torch.ones(2, 3)])
    assert found.difference == 2 and found.agreement is None
    with pytest.raises(RunFailed, match="must have the network's outputs"):
        compare(lambda x: x, lambda x: x[:, :1], [torch.ones(2, 3)])


def test_nan_never_passes() -> None:
    found = compare(lambda x: x, lambda x: x * float("nan"), [torch.ones(2, 3)])
    found.reference, found.metric = 0.9, 0.9
    with pytest.raises(RunFailed):
        check_exact(found, "onnx", 1.0)
    with pytest.raises(RunFailed):
        check_quantized(found, "int8", 1.0)
    with pytest.raises(RunFailed):
        check_quantized(Parity(images=3, scale=1.0, reference=0.9, metric=float("nan")), "int8", 0.1)
    with pytest.raises(RunFailed):
        check_exact(Parity(), "onnx", 1.0)


@pytest.mark.parametrize(
    ("reference", "metric", "better", "percent", "expected"),
    [(0.9, 0.88, 1, True, 0.02), (2.0, 2.1, -1, False, 0.05), (2.0, 1.9, -1, False, -0.05)],
)
def test_loss(reference: float, metric: float, better: int, percent: bool, expected: float) -> None:
    found = Parity(images=1, reference=reference, metric=metric)
    assert loss(found, better, percent) == pytest.approx(expected)
    check_quantized(found, "int8", expected + 1e-6, better, percent)
    with pytest.raises(RunFailed):
        check_quantized(found, "int8", expected - 1e-6, better, percent)
