"""Second order: OBD (LeCun et al. 1990) with Fisher information as Hessian (Theis et al. 2018, arXiv:1801.05787)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from slim.criteria.batches import Loss, batches_of, loss_of, run
from slim.criteria.gates import gated
from slim.criteria.registry import Evidence, criterion
from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("fisher", reduce="sum")
def fisher(
    graph: ChannelGraph,
    loader: Iterable[Any] | None = None,
    batches: int = 8,
    beta: bool = False,
    loss: Loss | None = None,
    seed: int = 0,
) -> Evidence:
    """Half the mean over samples of (gamma * dL/dgamma)^2: OBD's saliency, h gamma^2 / 2, with h = E[(dL/dgamma)^2].

    The gradients are per sample, from a gate on every channel; a group's gates are summed before the square, because
    its members go together. Networks without scales carry the gates behind their convolutions and linear layers.

    Args:
        graph: The network's channels.
        loader: Iterable of (x, y).
        batches: How many of them.
        beta: Let the gate take the shift away too.
        loss: ``loss(output, target)``, the batch's mean; cross entropy by default.
        seed: Of all generators while the loader is read.

    Yields:
        One value per group with a gate.

    Raises:
        SlimError: See :func:`score`; or a network that folds another axis into that of several samples.
    """
    total = np.zeros(len(graph))
    covered = np.zeros(len(graph), dtype=bool)
    samples = 0
    # Nothing but the gates asks for gradients, so none is computed for any weight.
    frozen = {n: p.detach() for n, p in graph.model.named_parameters()}
    with batches_of(graph, loader, batches, seed, name="fisher", target=True) as read:
        for batch in read:
            with gated(graph, beta=beta) as calls:
                output = run(graph.model, batch, frozen)
                mean = loss_of(output, batch, loss)
                gradients = torch.autograd.grad(mean * batch.size, [gate for _, gate in calls], allow_unused=True)
            joint = np.zeros((batch.size, len(graph)))
            for (groups, _), gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    inside = groups >= 0
                    rows = _by_sample(gradient, batch.size)
                    np.add.at(joint.T, groups[inside], rows.double().cpu().numpy().T[inside])
                    covered[groups[inside]] = True
            total += (joint**2).sum(0) / 2
            samples += batch.size
    yield np.flatnonzero(covered), total[covered] / max(samples, 1)


def _by_sample(gradient: Tensor, samples: int) -> Tensor:
    """The gradient of a gate, (N, C): of one sample whatever the network folded into its axis (frames, regions)."""
    if samples == 1:
        return gradient.sum(0, keepdim=True)
    if len(gradient) != samples:
        raise SlimError(
            f"Criterion fisher needs the samples apart. Got a layer that sees {len(gradient)} for a batch of {samples}:"
            " the network folds another axis into the batch. Give a loader of batches of one sample, or use taylor."
        )
    return gradient
