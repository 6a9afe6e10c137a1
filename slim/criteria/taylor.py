"""First-order Taylor expansion of the loss: Molchanov et al. 2017 (arXiv:1611.06440) and 2019 (arXiv:1906.10771)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from slim.criteria.batches import Loss, batches_of, loss_of, run
from slim.criteria.registry import Evidence, criterion
from slim.criteria.tensors import out_groups, rows_of, weights
from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

FORMS = ("auto", "gamma", "weight")


@criterion("taylor", reduce="sum")
def taylor(
    graph: ChannelGraph,
    loader: Iterable[Any] | None = None,
    batches: int = 8,
    form: str = "auto",
    beta: bool = False,
    loss: Loss | None = None,
    seed: int = 0,
) -> Evidence:
    """|sum of parameter * gradient| over what a group removes, averaged over batches.

    The signed products of one group are summed before the absolute value, because its members go together (2019,
    equation 8); the papers differ in squaring it, which ranks the same within one batch.

    Args:
        graph: The network's channels.
        loader: Iterable of (x, y).
        batches: How many of them.
        form: ``gamma``: scales of normalization layers. ``weight``: filters and their biases. ``auto``: gamma if any.
        beta: Count the shift too: the gate of the 2019 paper, which takes a normalization's whole output away.
        loss: ``loss(output, target)``, the batch's mean; cross entropy by default.
        seed: Of all generators while the loader is read.

    Yields:
        One value per group that a form reaches.
    """
    slices = _slices(graph, form, beta)
    names = list(dict.fromkeys(name for name, _, _ in slices))
    total = np.zeros(len(graph))
    covered = np.zeros(len(graph), dtype=bool)
    count = 0
    with batches_of(graph, loader, batches, seed, name="taylor", target=True) as read:
        for batch in read:
            leaves = {n: p.detach().requires_grad_(p.is_floating_point()) for n, p in graph.model.named_parameters()}
            with torch.enable_grad():
                output = run(graph.model, batch, leaves)
                used = [leaves[n] for n in names]
                gradients = torch.autograd.grad(loss_of(output, batch, loss), used, allow_unused=True)
            gradient = dict(zip(names, gradients, strict=True))
            signed = np.zeros(len(graph))
            for name, dim, groups in slices:
                grad = gradient[name]
                if grad is not None:
                    product = _per_channel(leaves[name].detach() * grad, dim, len(groups))
                    inside = groups >= 0
                    np.add.at(signed, groups[inside], product[inside])
                    covered[groups[inside]] = True
            total += np.abs(signed)
            count += 1
    yield np.flatnonzero(covered), total[covered] / max(count, 1)


def _slices(graph: ChannelGraph, form: str, beta: bool) -> list[tuple[str, int, Any]]:
    """(parameter, axis, groups) of every parameter whose products are summed."""
    if form not in FORMS:
        raise SlimError(f"form must be one of {', '.join(FORMS)}. Got form={form!r}. Set criterion.form.")
    scales = [s for s in graph.scales if s.weight is not None]
    if form == "gamma" and not scales:
        raise SlimError("Form gamma reads normalization scales. Got a network without any. Set criterion.form=weight.")
    if form == "gamma" or (form == "auto" and scales):
        slices = [(s.weight, 0, s.groups) for s in scales if s.weight is not None]
        return slices + [(s.bias, 0, s.groups) for s in scales if beta and s.bias is not None]
    present = {n for n, _ in graph.model.named_parameters()}
    slices = []
    for module, weight, dim in weights(graph):
        groups = out_groups(graph, weight, dim)
        if groups is None:
            continue
        slices.append((weight, dim, groups))
        if f"{module}.bias" in present:
            slices.append((f"{module}.bias", 0, groups))
    return slices


def _per_channel(product: Tensor, dim: int, channels: int) -> Any:
    """Sum of ``product`` per channel of its output axis, (channels,) float64."""
    return rows_of(product.double(), dim, channels).sum(1).cpu().numpy()
