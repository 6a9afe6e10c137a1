"""Operations on meta tensors: what is answered without PyTorch's kernels is what PyTorch would answer."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from slim.channels.check import on_meta

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def answer(call: Any, *, shortcut: bool) -> Any:
    """Shape, strides (of axes that have some), dtype and device of the result, or the kind of the error."""
    try:
        if shortcut:
            with torch.no_grad(), on_meta():
                out = call()
        else:
            with torch.no_grad():
                out = call()
    except RuntimeError as error:
        return type(error)
    strides = [stride for stride, size in zip(out.stride(), out.shape, strict=True) if size > 1]
    return out.shape, strides, out.dtype, out.device


@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Channels that do not fit and images that are too small are errors in both."""
    rank, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    number = st.integers(1, 3)
    bias = data.draw(st.booleans())
    layer = CONVOLUTIONS[rank - 1](
        groups * data.draw(number), groups * data.draw(number), data.draw(number), data.draw(number),
        data.draw(st.integers(0, 2)), data.draw(number), groups, bias, device="meta",
    )  # fmt: skip
    wrong = data.draw(st.sampled_from((0, 0, 0, 1)))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    image = torch.empty(data.draw(st.integers(1, 2)), layer.in_channels + wrong, *sizes, device="meta")
    if rank == 2 and data.draw(st.booleans()):
        image = image.to(memory_format=torch.channels_last)
    assert answer(lambda: layer(image), shortcut=True) == answer(lambda: layer(image), shortcut=False)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms())
def test_elementwise(shape: list[int], random: Any) -> None:
    """A result keeps the strides that PyTorch gives it, of a permuted tensor and of a slice, too."""
    order = list(range(len(shape)))
    random.shuffle(order)
    tensor = torch.empty(*shape, device="meta").permute(order)
    other = torch.empty([random.choice((1, n)) for n in tensor.shape], device="meta")
    for made in (tensor, tensor[..., ::2], tensor[:1]):
        calls: list[Any] = [lambda made=made: F.silu(made), lambda made=made: made + made]
        calls += [lambda made=made: made.mean(0), lambda made=made: made.mean((0, -1), keepdim=True)]
        if made is tensor:
            calls.append(lambda: tensor * other)
        for call in calls:
            assert answer(call, shortcut=True) == answer(call, shortcut=False)
