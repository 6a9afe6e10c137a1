"""Soft pruning: what a cut would take is silenced while the network trains, and may grow back.

SFP, He et al. 2018, arXiv:1808.06866.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from slim.errors import SlimError, expect_number, expect_whole
from slim.lightning.calibration import Calibration
from slim.lightning.example import packed, unpacked
from slim.lightning.moments import fit_ends
from slim.lightning.network import Network, network_key
from slim.lightning.options import check_place
from slim.lightning.pruning import ChannelPruning
from slim.lightning.random_state import preserved
from slim.lightning.selecting import none_removed, select
from slim.lightning.sparse import sparse_of
from slim.lightning.surgery import broadcast_removed, refuse_sharded
from slim.lightning.traced import TracedNetwork, callbacks_of
from slim.selection import soften
from slim.sparsity import Stochastic


class SoftPruning(pl.Callback):
    """Silences what a cut would take after every ``every`` epochs before it; see :func:`slim.selection.soften`.

    Without a budget it follows the :class:`ChannelPruning` of the same network: its budget, criterion and limits, until
    its last cut. Rank 0 decides, all ranks check.

    Args:
        every: Epochs between two soft cuts; the last epoch has none.
        leak: What a silenced channel's scale and shift are multiplied by.
        network: See :func:`find_network`.
        example: Inputs of the network; by default those that the training step gives it in the first batch.
        trace: Options of :func:`slim.trace`.
        options: As of :class:`ChannelPruning`: the budget, ``criterion`` and limits.

    Raises:
        SlimError: A value out of range; in a fit: no budget, or a law with random gates.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        leak: float = 1e-3,
        network: Network = None,
        example: Any = None,
        trace: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        expect_whole("every", every, 1, "Set it to 1.")
        expect_number("leak", leak, "[0, 1)", "Set it to 0.001.")
        check_place(network, trace)
        self.traced: TracedNetwork | None = None
        self._own = ChannelPruning(**options) if _ask_for_something(options) else None
        self._every, self._leak = every, leak
        self._network, self._example, self._trace = network, example, trace
        self._softened: int | None = None
        self._saved_example: Any = None

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints: one per network."""
        return self._generate_state_key(network=network_key(self._network))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Locate the network, which is complete and on its device by now."""
        refuse_sharded(trainer, "SoftPruning")
        self.watch(trainer, pl_module)
        assert self.traced is not None
        if self.traced.example is None:
            self.traced.example = unpacked(self._saved_example)
        self._pruning(trainer)
        for callback in sparse_of(trainer, self.traced):
            if isinstance(callback.law, Stochastic):
                raise SlimError(
                    f"Soft cuts and random gates exclude each other. Got penalty={type(callback.law).__name__}. "
                    "Use another penalty, or leave SoftPruning out."
                )

    def watch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Locate the network; callbacks of the same network share one :class:`TracedNetwork`."""
        self.traced = TracedNetwork.of(
            module, self._network, callbacks=callbacks_of(trainer), example=self._example, trace=self._trace
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a soft cut that was due when the resumed run was killed."""
        if self._softened is not None and trainer.current_epoch > self._softened:
            self._soften(trainer, pl_module, trainer.current_epoch)
        self._softened = trainer.current_epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the network's inputs from the first batch."""
        assert self.traced is not None
        self.traced.learn_example(pl_module, batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a soft cut if one is due. The epoch's checkpoint, written after this, has the silenced weights."""
        self._soften(trainer, pl_module, trainer.current_epoch + 1)

    def _soften(self, trainer: pl.Trainer, pl_module: pl.LightningModule, done: int) -> None:
        assert self.traced is not None
        self._softened = done
        pruning = self._pruning(trainer)
        last = pruning.last_epoch() if pruning is not self._own else None
        if done % self._every or fit_ends(trainer, done) or (last is not None and done >= last):
            return
        traced = self.traced
        removed = none_removed(traced.graph)
        if trainer.is_global_zero:
            calibration = Calibration(pl_module, traced.network, None, trainer)
            with preserved():
                removed = select(traced, pruning.criterion, pruning.budget, pruning.limits, calibration.batches).removed
        soften(traced.graph, broadcast_removed(trainer, traced.graph, removed), self._leak)

    def _pruning(self, trainer: pl.Trainer) -> ChannelPruning:
        """The callback whose budget, criterion and limits count: its own, or the ``ChannelPruning`` of the network."""
        assert self.traced is not None
        if self._own is not None:
            return self._own
        for callback in callbacks_of(trainer):
            if isinstance(callback, ChannelPruning) and callback.budget and callback.serves(trainer, self.traced):
                return callback
        raise SlimError(
            "SoftPruning needs a budget. Got none, and no ChannelPruning of the same network. Set macs=0.5 or another."
        )

    def state_dict(self) -> dict[str, Any]:
        """Epochs after which a soft cut was due or made, and the example inputs."""
        example = self._saved_example if self.traced is None else packed(self.traced.example)
        return {"softened": self._softened, "example": example}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self._softened, self._saved_example = state_dict["softened"], state_dict["example"]


def _ask_for_something(options: Mapping[str, Any]) -> bool:
    """Whether any option of :class:`ChannelPruning` differs from its default; LightningCLI gives them all."""
    known = inspect.signature(ChannelPruning).parameters
    defaults = {name: parameter.default for name, parameter in known.items()} | {"copies": []}
    return any(name not in defaults or value not in (defaults[name], ()) for name, value in options.items())
