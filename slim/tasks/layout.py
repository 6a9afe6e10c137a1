"""How a network is run: memory format of images and weights, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Shapes = tuple[torch.Size, ...]


class Runner:
    """Calls ``network``, in one memory format and, if wanted, compiled.

    No module itself: a compiled network that is a child would put every weight into ``state_dict`` twice.

    Args:
        network: Any module. Its weights are laid out anew in place.
        channels_last: Keep images and convolution weights in channels-last memory.
        compile: Run the network through ``torch.compile``, anew whenever its parameters changed their shapes.
    """

    def __init__(self, network: nn.Module, *, channels_last: bool = False, compile: bool = False) -> None:
        self.network = network
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = compile
        self._compiled: tuple[Shapes, Callable[..., Any]] | None = None

    def prepare(self) -> None:
        """Give every convolution weight canonical strides; call it before an epoch.

        However a weight came to be (built, sliced, loaded): where channels are few, several strides describe the same
        layout, kernels differ between them, and so would the bits of a run that was resumed.
        """
        # Lightning evaluates in inference mode; a weight that is made there could never train again.
        with torch.inference_mode(False):
            for parameter in self.network.parameters():
                if parameter.dim() == 4:
                    fresh = torch.empty_like(parameter.data, memory_format=self._format)
                    if fresh.stride() != parameter.stride():
                        parameter.data = fresh.copy_(parameter.data)

    def __call__(self, *inputs: Any) -> Any:
        """``network(*inputs)``, with image batches ``(N, C, H, W)`` laid out as the weights are."""
        laid_out = (self._laid_out(value) if isinstance(value, Tensor) else value for value in inputs)
        return self._callable()(*laid_out)

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self._format) if x.dim() == 4 and self._format is torch.channels_last else x

    def _callable(self) -> Callable[..., Any]:
        if not self._compile:
            return self.network
        shapes = tuple(parameter.shape for parameter in self.network.parameters())
        if self._compiled is None or self._compiled[0] != shapes:
            self._compiled = shapes, torch.compile(self.network)
        return self._compiled[1]
