"""Copies of a network's weights that a module or a callback keeps: those that follow a cut, and those that do not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from slim.errors import SlimError
from slim.lightning.checkpoint import averages
from slim.lightning.network import Network, find_network, path_of
from slim.lightning.traced import TracedNetwork, callbacks_of


def followers(
    trainer: pl.Trainer | None, module: pl.LightningModule, network: nn.Module, copies: Iterable[Network]
) -> list[nn.Module]:
    """What is cut as ``network`` is: ``copies``, or else the averages that the module keeps; those of callbacks."""
    named = [find_network(module, copy) for copy in copies]
    owners = [*([] if trainer is None else callbacks_of(trainer)), *([] if named else module.modules())]
    paths = [path_of(module, part) for part in (network, *named)]
    found = [*named, *(average for path in paths for average in averages(owners, module, path))]
    return list(dict.fromkeys(found))  # a callback may hold what the module holds


def refuse_averages(trainer: pl.Trainer, network: nn.Module, law: str) -> None:
    """Refuse averaged copies of a network whose scales a ``law`` draws anew at every step: they belong to no gates.

    Raises:
        SlimError: A callback of ``trainer``, or its module, averages it.
    """
    if followers(trainer, trainer.lightning_module, network, ()):
        raise SlimError(
            f"A law with random gates draws scales at every step, which cannot be averaged. Got penalty={law} and "
            "averaged weights (EMA, SWA). Leave one out, or use penalty='target' or 'prox'."
        )


def warn_of_copies(
    trainer: pl.Trainer, module: pl.LightningModule, traced: TracedNetwork, copies: Iterable[Network]
) -> None:
    """Say before training where an average is kept that cannot follow a cut: it would fail after it."""
    own = [each for each in callbacks_of(trainer) if not type(each).__module__.startswith("slim.")]
    found = unfollowed(traced.network, [module, *own], followers(trainer, module, traced.network, copies))
    if found:
        rank_zero_warn(
            f"A cut leaves copies of the network's weights as wide as they are. Got {', '.join(found)}. What is to "
            "follow the network (an average) must be an AveragedModel of it, or a network that copies= names."
        )


def unfollowed(network: nn.Module, owners: Sequence[Any], followed: Iterable[nn.Module]) -> list[str]:
    """Where ``owners`` keep copies of a network's weights, as ``Owner.name``: other modules, lists or dicts of tensors.

    At the beginning of a training an average has the network's values; that is how it is known.

    Args:
        network: The network.
        owners: A module and callbacks.
        followed: Networks that are cut with it.
    """
    wanted = [list(network.parameters()), list(network.state_dict().values())]
    known = {id(part) for each in (network, *followed) for part in each.modules()} | {id(owner) for owner in owners}
    found = []
    for owner in owners:
        held = {
            **{key: value for key, value in vars(owner).items() if key[0] != "_"},
            **vars(owner).get("_modules", {}),
        }
        for name, value in held.items():
            if any(_equal(tensors, each) for tensors in _tensors(value, network, known) for each in wanted):
                found.append(f"{type(owner).__name__}.{name}")
    return found


def _tensors(value: Any, network: nn.Module, known: Collection[int], *, inside: bool = True) -> Iterator[list[Any]]:
    """The tensors of a value that may be a copy of ``network``, or an object that holds one."""
    if id(value) in known:
        return
    if isinstance(value, nn.Module):
        parts = [part for part in value.modules() if type(part) is type(network) and id(part) not in known]
        yield from (list(part.parameters()) for part in parts)
    elif isinstance(value, Mapping):
        yield list(value.values())
    elif isinstance(value, list | tuple):
        yield list(value)
    elif inside and type(value).__module__.partition(".")[0] not in ("torch", "pytorch_lightning", "lightning_fabric"):
        for each in getattr(value, "__dict__", {}).values():
            yield from _tensors(each, network, known, inside=False)


def _equal(copies: list[Any], tensors: list[Tensor]) -> bool:
    return len(copies) == len(tensors) > 0 and all(
        isinstance(one, Tensor) and one is not other and one.shape == other.shape and torch.equal(one.to(other), other)
        for one, other in zip(copies, tensors, strict=True)
    )
