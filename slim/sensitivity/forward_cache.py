"""Repeated forwards of a network in which some layers changed: outputs of the layers before them are cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.criteria.tensors import in_groups, weights

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class ForwardCache:
    """Caches the output of every convolution and linear layer of one forward and reuses it in later ones.

    The model's own ``forward`` runs in full each time, so that no structure is assumed; the layers called before the
    first changed one return their cached output. A context manager: inside, the layers' ``forward`` is replaced.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.first: dict[str, int] = {}  # the first call of every layer
        self._layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))}
        self._outputs: list[Tensor] = []
        self._written: set[int] = set()  # outputs that later operations modify in place
        self._from, self._call, self._recording = 0, 0, False

    def __enter__(self) -> ForwardCache:
        for name, layer in self._layers.items():
            layer.forward = self._wrapped(name, layer.forward)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers.values():
            del layer.forward
        self._outputs.clear()

    def record(self, *args: Any, **kwargs: Any) -> Any:
        """One complete forward whose outputs are cached."""
        self._outputs, self._written, self.first = [], set(), {}
        out = self._run(0, True, args, kwargs)
        self._written = {i for i, t in enumerate(self._outputs) if t._version > 0}
        if self._written:
            self._outputs = []
            out = self._run(0, True, args, kwargs)
        return out

    def run_from(self, call: int, *args: Any, **kwargs: Any) -> Any:
        """A forward in which the layers called before the ``call``-th return their cached output."""
        return self._run(call, False, args, kwargs)

    @property
    def bytes(self) -> int:
        """Size of the cache in bytes."""
        return sum(t.numel() * t.element_size() for t in self._outputs)

    def _run(self, start: int, recording: bool, args: Any, kwargs: Any) -> Any:
        self._from, self._call, self._recording = start, 0, recording
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def _wrapped(self, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            call, self._call = self._call, self._call + 1
            if call < self._from:
                kept = self._outputs[call]
                return kept.clone() if call in self._written else kept
            out = forward(*args, **kwargs)
            if self._recording:
                self.first.setdefault(name, call)
                self._outputs.append(out.clone() if call in self._written else out)
            return out

        return wrapped


@contextmanager
def zeroed_inputs(graph: ChannelGraph, removed: npt.NDArray[np.bool_]) -> Iterator[list[str]]:
    """Inside, the weight columns that read the ``removed`` groups (n_groups,) are zero; afterwards they are restored.

    Yields:
        The layers that read any of them. For exactly removable groups the network equals the masked one.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    readers: list[str] = []
    try:
        with torch.no_grad():
            for module, name, dim in weights(graph):
                groups = in_groups(graph, name, dim)
                if groups is None or not removed[groups[groups >= 0]].any():
                    continue
                gone = torch.from_numpy((groups >= 0) & removed[groups])
                weight: Tensor = graph.model.get_parameter(name)
                saved.append((weight, weight.detach().clone()))
                readers.append(module)
                _zero_columns(weight, 1 - dim, gone.to(weight.device))
        yield readers
    finally:
        with torch.no_grad():
            for parameter, before in saved:
                parameter.copy_(before)


def _zero_columns(weight: Tensor, dim: int, gone: Tensor) -> None:
    if len(gone) == weight.shape[dim]:
        weight.index_fill_(dim, gone.nonzero()[:, 0], 0)
        return
    # A grouped convolution stores its columns per block: (blocks, out / blocks, in / blocks, ...).
    blocks = len(gone) // weight.shape[1]
    view = weight.view(blocks, -1, *weight.shape[1:])
    shape = [blocks, 1, weight.shape[1]] + [1] * (weight.ndim - 2)
    view.mul_((~gone).view(shape).to(weight))
