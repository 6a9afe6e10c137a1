"""Batches for criteria that use activations or gradients; the model and the random generators are left unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.criteria.isolated import isolated
from slim.criteria.progress import progress
from slim.errors import SlimError, expect

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Loss = Callable[[Any, Tensor], Tensor]


class Batch(NamedTuple):
    """One batch on the model's device: arguments of the forward, and the target when the loader has one."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any

    @property
    def size(self) -> int:
        """Samples in the batch; a list of tensors has one each."""
        return next(len(x) for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor | list))


@contextmanager
def batches_of(
    graph: ChannelGraph, loader: Iterable[Any] | None, batches: int, seed: int, *, name: str, target: bool = False
) -> Iterator[Iterator[Batch]]:
    """The first ``batches`` of ``loader`` (iterable of ``x``, ``(x, y)`` or ``{name: tensor}``), with a progress bar.

    Inside, the model is in eval mode, and the generators of Python, NumPy and torch are seeded, so that a loader that
    shuffles and augments gives the same batches for the same ``seed``; modes and generators are restored at the end.

    Raises:
        SlimError: No loader, an empty one, one of other things than tensors, or (``target``) one without targets.
    """
    if loader is None:
        raise SlimError(
            f"Criterion {name} needs data. Got loader=None. Pass loader=..., an iterable of (x, y) batches"
            " (to slim.prune: criterion_options={'loader': ...})."
        )
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise SlimError(
            f"batches must be a whole number of at least 1. Got batches={batches!r}. Set criterion.batches."
        )
    expect("loader", loader, Iterable, "Pass an iterable of (x, y) batches.")
    expect("seed", seed, int, "Set criterion.seed.")
    device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
    with eval_mode(graph.model, seed):
        yield _read(loader, batches, device, name, target)


def _read(loader: Iterable[Any], batches: int, device: torch.device, name: str, target: bool) -> Iterator[Batch]:
    seen = 0
    for raw in progress(islice(iter(loader), batches), batches, f"scoring: {name}"):
        batch = _to_batch(raw, device, name)
        if target and batch.target is None:
            raise SlimError(
                f"Criterion {name} needs targets. Got batches of inputs alone. Pass a loader of (x, y) pairs."
            )
        seen += 1
        yield batch
    if not seen:
        raise SlimError(f"Criterion {name} needs at least one batch. Got an empty loader. Pass a loader with data.")


@contextmanager
def eval_mode(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, eval mode and seeded generators; afterwards modes and generators are restored."""
    with isolated(model, seed):
        model.eval()
        yield


def run(network: nn.Module, batch: Batch, parameters: dict[str, Tensor] | None = None) -> Any:
    """``network`` called with a batch; ``parameters`` stand in for its own.

    Raises:
        SlimError: It does not take such a batch; shapes and the first line of its complaint are in the message.
    """
    try:
        if parameters is None:
            return network(*batch.args, **batch.kwargs)
        return functional_call(network, parameters, batch.args, batch.kwargs)
    except (SlimError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a forward may raise anything
        given = (*batch.args, *batch.kwargs.values())
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in given if isinstance(t, Tensor))
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise SlimError(
            f"The forward must run on the loader's batches. Got {reason} (inputs {shapes}). "
            "Give the criterion a loader= of what the network takes."
        ) from error


def loss_of(output: Any, batch: Batch, loss: Loss | None) -> Tensor:
    """Mean loss of a batch: ``loss(output, target)``, by default cross entropy of the (first) logits."""
    if loss is not None:
        return loss(output, batch.target)
    while not isinstance(output, Tensor):
        parts = list(output.values()) if isinstance(output, Mapping) else list(output)
        output = parts[0]
    try:
        return F.cross_entropy(output, batch.target)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        shapes = [
            tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (output, batch.target)
        ]
        raise SlimError(
            f"The default loss is cross entropy of logits and labels. Got output {shapes[0]} and target {shapes[1]} "
            f"({str(error).splitlines()[0][:120]}). Give the criterion loss=, a function of output and target."
        ) from error


def _to_batch(raw: Any, device: torch.device, name: str) -> Batch:
    def move(value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)

    given = (
        list(raw.values()) if isinstance(raw, Mapping) else list(raw[:1]) if isinstance(raw, (list, tuple)) else [raw]
    )
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(given)):
        kind = type(given[0] if given else raw).__name__
        raise SlimError(
            f"Criterion {name} needs batches of tensors. Got an input of type {kind}. "
            "Pass loader=..., an iterable of x, (x, y) or {name: tensor}."
        )
    if isinstance(raw, Mapping):
        inputs = {k: move(v) for k, v in raw.items()}
        target = inputs.pop("target", inputs.pop("labels", None))
        return Batch((), inputs, target)
    if isinstance(raw, (list, tuple)):
        x, *rest = raw
        return Batch((move(x),), {}, move(rest[0]) if rest else None)
    return Batch((move(raw),), {}, None)
