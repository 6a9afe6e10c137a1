"""Discrimination-aware channel pruning. Zhuang et al. 2018, arXiv:1810.11809."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from slim.channels.calls import after_call
from slim.criteria.batches import batches_of, run
from slim.criteria.contributions import readers_of
from slim.criteria.patches import blocks_of
from slim.criteria.registry import Evidence, criterion
from slim.errors import SlimError, expect_number, expect_whole

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("dcp")
def dcp(
    graph: ChannelGraph,
    loader: Iterable[Any] | None = None,
    batches: int = 8,
    images: int = 256,
    weight: float = 1.0,
    share: float = 0.1,
    seed: int = 0,
) -> Evidence:
    """How early the greedy selection of algorithm 2 chooses a channel, in (0, 1]; 1 is the first of its layer.

    A layer begins without inputs. Those whose weights have the largest gradient of the joint loss come back, until all
    are there: the relative error of the layer's outputs, and the cross entropy of a classifier on its rectified,
    averaged, standardized outputs (equations 2 to 5). Departures: each layer has a classifier of its own, fitted on
    the dense features; chosen channels come with the weights they have, where the paper trains those on; and several
    come at once. As in the paper, layers lose equal shares.

    Args:
        graph: The network's channels.
        loader: Iterable of (x, y), y (N,) classes.
        batches: How many of them, at most.
        images: How many of them all. A layer's inputs are held for them.
        weight: Of the cross entropy, lam in equation 5.
        share: Of the channels that come at once.
        seed: Of all generators while the loader is read.
    """
    expect_whole("images", images, 1, "Set criterion.images.")
    expect_number("weight", weight, "[0, inf)", "Set criterion.weight.")
    expect_number("share", share, "(0, 1]", "Set criterion.share.")
    with batches_of(graph, loader, batches, seed, name="dcp", target=True) as read:
        kept, left = [], images
        for batch in read:
            kept.append(batch)
            left -= batch.size
            if left <= 0:
                break
        labels = _labels([batch.target for batch in kept])
        for module, groups in readers_of(graph).items():
            layer = graph.model.get_submodule(module)
            x, dense = _inputs_and_outputs(graph, layer, kept)
            if len(x) == len(labels):
                yield groups, order(layer, x[:images], dense[:images], labels[:images], groups, weight, share)


def _labels(targets: list[Any]) -> Tensor:
    """The classes (N,) of all samples."""
    for target in targets:
        if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
            tensor = isinstance(target, Tensor)
            got = f"of shape {tuple(target.shape)}, {target.dtype}" if tensor else f"of type {type(target).__name__}"
            raise SlimError(
                f"Criterion dcp needs one class per sample. Got targets {got}. Use thinet or channel_pruning."
            )
    return torch.cat(targets)


def _inputs_and_outputs(graph: ChannelGraph, layer: nn.Module, kept: list[Any]) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = after_call(layer, lambda m, args, out: seen.append((args[0].clone(), out.clone())))
    try:
        with torch.no_grad():
            for batch in kept:
                run(graph.model, batch)
    finally:
        handle.remove()
    return torch.cat([x for x, _ in seen]), torch.cat([out for _, out in seen])


def order(
    layer: Any, x: Tensor, dense: Tensor, labels: Tensor, groups: npt.NDArray[np.int64], weight: float, share: float
) -> npt.NDArray[np.float64]:
    """The place (C_in,) of each input of a layer: 1 for those chosen first, near 0 for the last.

    Args:
        layer: A convolution or linear layer.
        x: Its inputs (N, C_in, ...).
        dense: Its outputs.
        labels: (N,) classes.
        groups: (C_in,) inputs of one group come together.
        weight: Of the cross entropy.
        share: Of the groups that come at once.
    """
    if not (dense.isfinite().all() and layer.weight.isfinite().all()):
        return np.full(len(groups), np.nan)
    unique, member = np.unique(groups, return_inverse=True)
    member = member.reshape(-1)
    precise = torch.promote_types(x.dtype, torch.float32)  # sums of squares of halves are infinite
    x, dense = x.to(precise), dense.to(precise)
    loss = _joint_loss(layer, dense, labels, weight)
    chosen, place = np.zeros(len(unique), bool), np.zeros(len(unique))
    each = max(1, round(share * len(unique)))
    while not chosen.all():
        slope = np.sqrt(np.bincount(member, _slopes(layer, x, loss, chosen[member]), minlength=len(unique)))
        if not np.isfinite(slope).all():
            return np.full(len(groups), np.nan)
        slope[chosen] = -np.inf
        for best in np.argsort(-slope, kind="stable")[: min(each, int((~chosen).sum()))]:
            place[best] = 1 - chosen.sum() / len(unique)
            chosen[best] = True
    return place[member]


def _slopes(layer: Any, x: Tensor, loss: Any, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Squared norm (C_in,) of the gradient at the weights of each input, where only some inputs are present."""
    values = {name: parameter.detach().to(x.dtype) for name, parameter in layer.named_parameters()}
    old = values["weight"]
    blocks = blocks_of(layer)
    shape = (blocks, len(old) // blocks, old.shape[1], -1)
    mask = torch.from_numpy(present).to(old).view(blocks, 1, -1, 1)
    changed = (old.reshape(shape) * mask).reshape(old.shape).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(functional_call(layer, {**values, "weight": changed}, (x,))), changed)
    slopes: npt.NDArray[np.float64] = gradient.double().reshape(shape).square().sum((1, 3)).flatten().cpu().numpy()
    return slopes


def _joint_loss(layer: Any, dense: Tensor, labels: Tensor, weight: float) -> Any:
    """Outputs to the loss: half the relative error, and ``weight`` times the cross entropy of a linear classifier."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    flat = dense.detach().movedim(axis, 1).flatten(2) if dense.dim() > 2 else dense.detach()[:, :, None]
    mean, spread = flat.mean((0, 2)), flat.transpose(0, 1).flatten(1).std(1).clamp_min(1e-6)
    energy = flat.square().sum().clamp_min(1e-12)

    def features(output: Tensor) -> Tensor:
        maps = output.movedim(axis, 1).flatten(2) if output.dim() > 2 else output[:, :, None]
        return F.relu((maps - mean[:, None]) / spread[:, None]).mean(2)

    classify = _classifier(features(dense.detach()), labels)

    def loss(output: Tensor) -> Tensor:
        error = (output - dense.detach()).square().sum() / (2 * energy)
        return error + weight * F.cross_entropy(classify(features(output)), labels)

    return loss


def _classifier(x: Tensor, labels: Tensor) -> Any:
    """A softmax regression on features (N, F), with weight decay, by L-BFGS from zero."""
    theta = x.new_zeros(int(labels.max()) + 1, x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=50, line_search_fn="strong_wolfe")

    def logits(features: Tensor) -> Tensor:
        return F.linear(features, theta[:, :-1], theta[:, -1])

    def closure() -> Any:
        optimizer.zero_grad()
        value = F.cross_entropy(logits(x), labels) + 1e-3 * theta.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    theta.requires_grad_(False)
    return logits
