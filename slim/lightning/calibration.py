"""Batches for ranking and recovery: a Trainer's or given ones, as the network of a module takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from slim.lightning.example import in_precision_of, inputs_of, named_inputs

Batches = Iterable[Any] | Callable[[], Iterable[Any]]


class Calibration:
    """Batches for ranking and recovery, and how a network runs on them.

    Args:
        module: Whose step says what the network takes.
        network: The network.
        batches: As the module's training step takes them, or what returns them; default: those of the Trainer.
        trainer: In a fit: its loader, its device, its precision.
    """

    def __init__(
        self, module: pl.LightningModule, network: nn.Module, batches: Batches | None, trainer: pl.Trainer | None
    ) -> None:
        self._module, self._network, self._batches, self._trainer = module, network, batches, trainer

    def __bool__(self) -> bool:
        return self._batches is not None or (self._trainer is not None and self._trainer.train_dataloader is not None)

    def __call__(self) -> Iterator[Any]:
        """The batches, on the network's device; a fresh iteration each time."""
        device = next((p.device for p in self._network.parameters()), torch.device("cpu"))
        if self._batches is not None:
            for batch in self._batches() if callable(self._batches) else self._batches:
                yield move_data_to_device(batch, device)
            return
        assert self._trainer is not None
        loaders = self._trainer.train_dataloader
        states = [(loader, loader.state_dict()) for loader in tree_leaves(loaders) if _resumable(loader)]
        # One whose workers persist has a single iterator, of which the epoch that is to begin would miss what is read.
        lasting = [each for each in tree_leaves(loaders) if isinstance(each, DataLoader) and each.persistent_workers]
        iterators = [(loader, loader._iterator) for loader in lasting]
        for loader in lasting:
            loader._iterator = None
        try:
            for batch, *_ in iter(CombinedLoader(loaders, "max_size_cycle")):
                converted = self._trainer.precision_plugin.convert_input(batch)
                converted = self._module._on_before_batch_transfer(converted, dataloader_idx=0)
                yield self._trainer.strategy.batch_to_device(converted, dataloader_idx=0)
        finally:
            for loader, iterator in iterators:
                loader._iterator = iterator
            for loader, state in states:
                loader.load_state_dict(state)

    def forward(self, network: nn.Module, batch: Any) -> Any:
        """Run the network on what the module's step would give it."""
        args, kwargs = self._inputs(batch, network)
        with torch.no_grad():
            return network(*args, **kwargs)

    def batches(self, count: int) -> list[Any]:
        """``count`` batches as criteria take them: the network's input, and the target where a batch has one.

        Of a network that is called with more than one argument, or by keywords, a dict of its arguments by name.
        """
        return list(self._pairs(count))

    def _pairs(self, count: int) -> Iterator[Any]:
        for batch in islice(self(), count):
            args, kwargs = self._inputs(batch, self._network)
            target = target_in(batch, (args, kwargs))
            if kwargs or len(args) != 1 or isinstance(args[0], list | tuple):  # which would read as input and target
                named = named_inputs(self._network, args, kwargs)
                yield {**named, **({} if target is None else {"target": target})}
            else:
                yield (args[0], target) if target is not None else args[0]

    def _inputs(self, batch: Any, receiver: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the step gives the network, in the precision of ``receiver``: an averaged copy may have another one."""
        inputs = inputs_of(self._module, self._network, batch)
        found: tuple[tuple[Any, ...], dict[str, Any]] = in_precision_of(receiver, inputs)
        return found


def target_in(batch: Any, inputs: Any) -> Any:
    """The target in a batch: its second part that is no input of the network, or the one tensor that is none.

    >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> all(target_in(batch, ((x,), {})) is y for batch in ((x, y), {"image": x, "label": y}))
    True
    >>> target_in({"image": x}, ((x,), {})) is None, target_in((x, x + 1, y), ((x, x + 1), {})) is y
    (True, True)
    """
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if isinstance(batch, list | tuple):
        others = [part for part in batch[1:] if not any(_equal(part, leaf) for leaf in leaves)]
        return next(iter([*others, *batch[1:]]), None)  # what an autoencoder is to give back is its input
    given = [leaf.shape for leaf in leaves]
    fields = vars(batch) if is_dataclass(batch) else batch
    others = [leaf for leaf in tree_leaves(fields) if isinstance(leaf, Tensor) and leaf.shape not in given]
    return others[0] if len(others) == 1 else None


def _equal(part: Any, leaf: Tensor) -> bool:
    return isinstance(part, Tensor) and part.shape == leaf.shape and torch.equal(part.to(leaf), leaf)


def _resumable(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))
