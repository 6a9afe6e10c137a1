"""The selection layer: a normalization layer reads some channels of a shared stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelSelect(nn.Module):
    """Picks channels by index: (N, C, ...) -> (N, len(index), ...). The index is a buffer, not a parameter."""

    is_channel_select = True
    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.to(torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Select channels of ``x`` (N, C, ...)."""
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        """The number of channels picked."""
        return f"{self.index.numel()}"


class _Selecting:
    """Mixin for normalization classes: select channels, then normalize them. State-dict names do not change."""

    select: ChannelSelect

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the selected channels of ``x`` (N, C, ...)."""
        out: Tensor = super().forward(self.select(x))  # type: ignore[misc]
        return out


class SelectBatchNorm1d(_Selecting, nn.BatchNorm1d):
    """A BatchNorm1d that reads some channels of a wider stream."""


class SelectBatchNorm2d(_Selecting, nn.BatchNorm2d):
    """A BatchNorm2d that reads some channels of a wider stream."""


class SelectBatchNorm3d(_Selecting, nn.BatchNorm3d):
    """A BatchNorm3d that reads some channels of a wider stream."""


class SelectSyncBatchNorm(_Selecting, nn.SyncBatchNorm):
    """A SyncBatchNorm that reads some channels of a wider stream."""


SELECTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SelectBatchNorm1d,
    nn.BatchNorm2d: SelectBatchNorm2d,
    nn.BatchNorm3d: SelectBatchNorm3d,
    nn.SyncBatchNorm: SelectSyncBatchNorm,
}


def set_select(norm: nn.Module, index: Tensor) -> None:
    """Let ``norm`` read only the channels in ``index`` of its input (changes ``norm`` in place)."""
    if type(norm) in SELECTING:
        norm.__class__ = SELECTING[type(norm)]
    place = next((t.device for t in norm.buffers()), torch.device("cpu"))
    norm.select = ChannelSelect(index.to(place))


def unset_select(norm: nn.Module) -> None:
    """Let ``norm`` read all of its input again (changes ``norm`` in place)."""
    plain = {selecting: kind for kind, selecting in SELECTING.items()}
    if type(norm) in plain:
        del norm.select
        norm.__class__ = plain[type(norm)]


def can_select(norm: nn.Module) -> bool:
    """Whether a selection layer can be put in front of this layer."""
    return type(norm) in SELECTING or isinstance(norm, _Selecting)
