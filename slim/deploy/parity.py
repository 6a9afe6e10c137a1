"""Whether an exported file computes what the PyTorch network does, on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slim.deploy.pt2e import call
from slim.errors import RunFailed


@dataclass
class Parity:
    """How far two networks are apart.

    Attributes:
        images: Samples compared.
        difference: Largest absolute difference between two outputs.
        scale: Largest absolute output of the reference.
        agreement: Share of equal predictions (argmax over axis 1) where there is one output ``(N, classes, ...)``;
            ``None`` for other outputs.
        reference, metric: The task's metric of both, where somebody has measured them.
    """

    images: int = 0
    difference: float = 0.0
    scale: float = 0.0
    agreement: float | None = None
    reference: float | None = None
    metric: float | None = None

    @property
    def relative(self) -> float:
        """Largest difference as a share of the largest output."""
        return self.difference / max(self.scale, 1e-12)

    def add(self, wanted: Any, got: Any) -> None:
        """Count the outputs of a batch, in any structure of tensors.

        Raises:
            RunFailed: The structures or shapes are not the same, or an output is not finite.
        """
        pairs = list(zip(_tensors(wanted), _tensors(got), strict=False))
        shapes = [[tuple(leaf.shape) for leaf in _tensors(side)] for side in (wanted, got)]
        if shapes[0] != shapes[1] or not pairs:
            raise RunFailed(
                f"An exported file must have the network's outputs. Got {shapes[1]} for {shapes[0]}. Tell us."
            )
        count = len(pairs[0][0])
        for a, b in pairs:
            off = float((a - b).abs().max()) if a.numel() else 0.0
            # A comparison with NaN is false: it would pass as no difference.
            self.difference = max(self.difference, off) if off == off else float("inf")
            self.scale = max(self.scale, float(a.abs().max()) if a.numel() else 0.0)
        if len(pairs) == 1 and pairs[0][0].dim() >= 2 and pairs[0][0].shape[1] > 1:
            same = float((pairs[0][0].argmax(1) == pairs[0][1].argmax(1)).float().mean())
            self.agreement = ((self.agreement or 0.0) * self.images + same * count) / (self.images + count)
        self.images += count


def compare(reference: Callable[..., Any], candidate: Callable[..., Any], inputs: Iterable[Any]) -> Parity:
    """Run both networks on ``inputs``, batches as in an example.

    >>> compare(torch.relu, lambda x: torch.relu(x) + 0.5, [torch.zeros(2, 3)]).difference
    0.5
    """
    found = Parity()
    with torch.no_grad():
        for batch in inputs:
            found.add(call(reference, batch), call(candidate, batch))
    return found


def check_exact(found: Parity, name: str, largest: float) -> None:
    """A file in float must compute the same.

    Raises:
        RunFailed: Outputs differ by more than the share ``largest`` of the largest output.
    """
    if found.relative > largest or found.images == 0:
        raise RunFailed(
            f"{name} must compute what the network does. Got difference={found.relative:.2g} of the largest output "
            f"over {found.images} images, more than {largest:g}. Leave it out of export.formats, or raise "
            "export.max_difference."
        )


def check_quantized(found: Parity, name: str, max_loss: float, better: int = 1, percent: bool = True) -> None:
    """A quantized file may lose a little.

    Args:
        found: With both metrics; without them the agreement stands in.
        name: Of the format.
        max_loss: How much of the metric may go: of a percentage so many points in [0, 1], of others the share.
        better: 1 where more of the metric is better, -1 where less is.
        percent: Whether the metric is a percentage.

    Raises:
        RunFailed: It loses more.
    """
    lost = loss(found, better, percent)
    if lost is None:
        lost = 1.0 - found.agreement if found.agreement is not None else found.relative
    if not lost <= max_loss or found.difference == float("inf") or found.images == 0:
        raise RunFailed(
            f"{name} must be nearly as good as the network. Got loss={lost:.3f} over {found.images} images, more than "
            f"{max_loss:g}. Set export.qat=auto, export.calibration=percentile, or raise export.max_loss."
        )


def loss(found: Parity, better: int = 1, percent: bool = True) -> float | None:
    """What the file loses of the metric; ``None`` where it was not measured.

    >>> round(loss(Parity(reference=0.9, metric=0.88)), 3)
    0.02
    """
    if found.reference is None or found.metric is None:
        return None
    lost = better * (found.reference - found.metric)
    return lost if percent else lost / max(abs(found.reference), 1e-12)


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf.detach().cpu().to(torch.float32) for leaf in leaves]
