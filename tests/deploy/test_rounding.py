"""The smallest multiple that is nearly as fast as the fastest, measured once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slim.deploy import rounding
from slim.errors import SlimError

NET = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 1))
EXAMPLE = torch.zeros(1, 3, 4, 4)


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_blocks_of_the_runtime_are_found(block: int) -> None:
    """A runtime that computes in blocks takes as long for a part of one as for all of it."""

    def time(layer: rounding.Layer, widths: Sequence[int]) -> list[float]:
        assert layer == rounding.Layer(128, 3, 4)
        return [float((-(-width // block) * block) ** 2) for width in widths]

    found = rounding.measure(NET, EXAMPLE, time=time)
    assert found.multiple == block
    assert f"round_to=auto is {block}:" in found.line


def test_the_layer_that_reads_the_images_is_not_what_is_measured() -> None:
    """Three channels have no multiples to compare, and it is the most expensive layer of many networks."""
    stem = nn.Conv2d(3, 64, 7, stride=2, padding=3)
    net = nn.Sequential(stem, nn.Conv2d(64, 64, 1), nn.Conv2d(64, 128, 1, stride=2), nn.Conv2d(128, 8, 3, padding=1))
    assert rounding.typical(net, torch.zeros(1, 3, 8, 8)) == rounding.Layer(64, 1, 4)
    assert rounding.typical(stem, torch.zeros(1, 3, 8, 8)) == rounding.Layer(3, 7, 4)  # nothing else to measure


def test_widths_are_of_their_multiple_alone() -> None:
    for channels in (8, 16, 64, 100, 512):
        for multiple in rounding.MULTIPLES:
            width = rounding._width(channels, multiple)
            if width is None:
                assert multiple > channels // 2
                continue
            assert width % multiple == 0 and channels // 4 < width <= channels
            assert all(width % larger for larger in rounding.MULTIPLES if multiple < larger <= channels // 2)


def test_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def time(layer: rounding.Layer, widths: Sequence[int]) -> list[float]:
        calls.append(1)
        return [float(width**2) for width in widths]

    monkeypatch.setattr(rounding, "_time", time)
    first = rounding.measure(NET, EXAMPLE)
    assert rounding.measure(NET, EXAMPLE) == first and len(calls) == 1
    next(tmp_path.rglob("rounding-*.json")).write_text("{}")
    assert rounding.measure(NET, EXAMPLE) == first and len(calls) == 2


def test_the_machine_is_measured() -> None:
    """Eight channels take microseconds; that they take any is all that a test can say."""
    assert min(rounding._time(rounding.Layer(8, 3, 4), [4, 8])) > 0
    with pytest.raises(SlimError, match="round_to=auto needs a convolution"):
        rounding.measure(nn.Linear(3, 3), torch.zeros(1, 3))


def test_a_time_is_of_one_image_in_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_millisecond_each(networks: list[Any], inputs: Any, **_: Any) -> list[float]:
        return [float(len(network.given)) * rounding.DEPTH for network in networks]

    monkeypatch.setattr(rounding, "side_by_side", one_millisecond_each)
    assert rounding._time(rounding.Layer(64, 3, 4), [33, 36]) == [1.0, 1.0]
