"""Sparse training of any LightningModule: a law pushes the normalization scales once per optimizer step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from slim import sparsity
from slim.errors import SlimError, expect_number, expect_whole
from slim.lightning.checkpoint import prepare
from slim.lightning.example import packed, unpacked
from slim.lightning.followers import refuse_averages
from slim.lightning.network import Network, find_network, network_key, same_module
from slim.lightning.options import check_law, check_place, check_shrinks_by_lam
from slim.lightning.rates import owner_of, replay_learning_rates, steps_of
from slim.lightning.selecting import options_on_thin
from slim.lightning.surgery import refuse_sharded
from slim.lightning.traced import TracedNetwork, callbacks_of
from slim.sparsity import Forecast, Penalty, Stochastic
from slim.sparsity.step import group_of


class SparseTraining(pl.Callback):
    """Trains the network under a sparsity law, whatever the module's training step, optimizers and precision are.

    The law acts inside the step of the optimizer that has the normalization scales: after backward, unscaling and
    clipping, and right after the update; see :func:`slim.sparsity.install`. Frozen scales are left alone. Where the
    Trainer has a :class:`ChannelPruning` of the same network, the law ends with its last cut.

    Args:
        penalty: Name of a law (``l1``, ``prox``, ``target``, ``polarization``, ``group``, ``l0``), the import path of a
            class of laws, or a law itself.
        network: See :func:`find_network`.
        example: Inputs of the network; by default those that the training step gives it in the first batch.
        shrink: Instead of ``lam``: the most that a scale can lose in the phase, under the learning rates of the
            module's own schedulers and SGD; 1 takes a scale of 1 to zero. ``lam`` then only gives the default law.
        epochs: How long the law acts; by default until the last cut, or to the end.
        steps: Optimizer steps in that time, which the law plans with. By default as the Trainer counts them: one per
            batch or per so many accumulated. Under manual optimization only the training step knows.
        trace: Options of :func:`slim.trace` (``residual``, ``grouped``).
        options: Of the law, as of :func:`slim.sparsity.build`.

    Attributes:
        law: The law.
        graph: Channel graph of the network as it is now (needs an example).
        forecast: What the law can do in this fit, known from the first step on.
        attached: Whether it acts on the network already.
        stopped: Whether the law's time is over.
        next_cut: The :class:`ChannelPruning` that will cut after this fit, where it is none of this Trainer's; previews
            are its.

    Raises:
        SlimError: A value out of range, or of another type; in a fit: scales that none or several optimizers step.
    """

    def __init__(
        self,
        penalty: str | Penalty = "l1",
        *,
        network: Network = None,
        example: Any = None,
        shrink: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        trace: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_law(penalty)
        check_place(network, trace)
        if epochs is not None:
            expect_whole("epochs", epochs, 1, "Set the epochs that the law acts, or leave it out.")
        if steps is not None:
            expect_whole("steps", steps, 1, "Set the optimizer steps of that time, or leave it out.")
        if not isinstance(penalty, str) and options:
            raise SlimError(f"Options belong to a law given by name. Got {', '.join(options)}. Set them on the law.")
        self._penalty, self._options = penalty, options
        self.law: Penalty = sparsity.build(penalty, **options) if isinstance(penalty, str) else penalty
        if shrink is not None:
            expect_number("shrink", shrink, "(0, inf)", "Set it to 1, or leave it out.")
            check_shrinks_by_lam(shrink, penalty, self.law, options)
        self.next_cut: Any = None
        self._network, self._example, self._trace = network, example, trace
        self._shrink, self._epochs, self._law_steps, self._told = shrink, epochs, steps, 0
        self._handles: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        """Return to the state before the first fit; the law starts anew when it is attached."""
        self.forecast: Forecast | None = None
        self.stopped = self.attached = False
        self.traced: TracedNetwork | None = None
        self._lam: float | None = None
        self._since = (0, 0)
        self._saved: dict[str, Any] | None = None
        self._summary: tuple[int, dict[str, float]] = (-1, {})

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints: one per network."""
        return self._generate_state_key(network=network_key(self._network))

    @property
    def graph(self) -> Any:
        """Channel graph of the network as it is now; ``None`` before the fit."""
        return None if self.traced is None else self.traced.graph

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Extend the module's checkpoint hooks; start anew where the module is another than in the last fit."""
        prepare(pl_module)
        if stage == "fit" and self.traced is not None and not self.traced.belongs_to(pl_module):
            self._renew_law()
            self._reset()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Locate the network, which is complete and on its device by now."""
        refuse_sharded(trainer, "SparseTraining")
        self.watch(trainer, pl_module)

    def watch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Locate the network; callbacks of the same network share one :class:`TracedNetwork`."""
        self.traced = TracedNetwork.of(
            module, self._network, callbacks=callbacks_of(trainer), example=self._example, trace=self._trace
        )

    def network_of(self, module: pl.LightningModule) -> Any:
        """The network that it trains."""
        return find_network(module, self._network) if self.traced is None else self.traced.network

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach the law now if the network's inputs are known already."""
        assert self.traced is not None
        if self._handles:
            return  # a cut that was due asked for it already
        if self.attached and self._saved is None and trainer.global_step:
            self._saved = self.state_dict()  # a second fit that goes on with the first
        if self._saved is not None and self.traced.example is None:
            self.traced.example = unpacked(self._saved.get("example"))
        self._stop_when_due(trainer.current_epoch)  # a checkpoint of an epoch's last step is from before its end
        if self.traced.ready and not self.stopped:
            self._attach(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Otherwise record the inputs from the first batch, and attach the law before its forward."""
        assert self.traced is not None
        if not self.attached and not self.stopped:
            self.traced.learn_example(pl_module, batch)
            self._attach(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn the law off after ``epochs`` epochs; after its first one say where the steps were not as planned."""
        if self.attached and not self.stopped and trainer.current_epoch == self._since[0]:
            self._check_steps(trainer)
        self._stop_when_due(trainer.current_epoch + 1)

    def _check_steps(self, trainer: pl.Trainer) -> None:
        manual = not trainer.lightning_module.automatic_optimization
        if not manual or self._law_steps is not None or math.isinf(trainer.num_training_batches):
            return
        planned = steps_of(trainer, self._since[0] + 1, self._since)
        made = self.law.state_dict().get("step", planned)  # a law of one's own may not count
        if made != planned:
            advised = f"Set steps={round(self._told * made / planned)} (SparseTraining, sparse.steps)"
            rank_zero_warn(
                f"The law planned with {planned} optimizer steps in its first epoch, {self._told} in all. Got {made} "
                f"under manual optimization. {advised if made else 'Call the step() of its optimizer'}."
            )

    def _stop_when_due(self, done: int) -> None:
        if self._epochs is not None and done >= self._epochs:
            self.stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the law's hooks from the optimizer; random gates stay at their deterministic values."""
        if stage == "fit":
            self._rest()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Clean up after a fit that failed, as :meth:`teardown` does."""
        self._rest()

    def stop(self) -> None:
        """Turn the law off for good; random gates stay at their deterministic values."""
        self._rest()
        self.stopped = True

    def _rest(self) -> None:
        if gates := self._gates:
            gates.use_deterministic_scales()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def resize(self) -> None:
        """Adapt the law's state to a network that was rebuilt in place."""
        assert self.traced is not None
        self._summary = (-1, {})
        # A law that is off still says how far it came; one with random gates has none of the old shapes to go on with.
        if self.attached and not (self.stopped and isinstance(self.law, Stochastic)):
            self.law.resize(self.traced.network, self.traced.graph)

    # The network without random gates: what is validated, ranked and kept

    @property
    def _gates(self) -> Stochastic | None:
        """The law, while it samples gates: a fit that has ended left their deterministic values."""
        return self.law if isinstance(self.law, Stochastic) and self._handles else None

    @contextmanager
    def deterministic_scales(self) -> Iterator[None]:
        """Inside, random gates have their deterministic values, which a cut sees; afterwards they are sampled again."""
        if gates := self._gates:
            gates.use_deterministic_scales()
        try:
            yield
        finally:
            if gates and gates is self._gates:
                gates.use_sampled_scales()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate with the deterministic scales of a law with random gates."""
        if gates := self._gates:
            gates.use_deterministic_scales()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Return to the sampled scales."""
        if gates := self._gates:
            gates.use_sampled_scales()

    # Figures

    def summary(self, trainer: pl.Trainer | None = None) -> dict[str, float]:
        """How far the network is on its way to the cut (waits for the device; once per step, however often asked).

        Returns:
            ``zero``, the share of scales at zero; where the law or a :class:`ChannelPruning` of ``trainer`` knows it
            ``target``, the share that the cut takes, ``macs``, the share it leaves, ``ready``: 1 when it may come.
        """
        if not self.attached:
            return {}
        step = -1 if trainer is None else trainer.global_step
        if self._summary[0] != step or step < 0:
            found = dict(self.law.summary())
            if "target" not in found and trainer is not None:
                with self.deterministic_scales():
                    for callback in [self.next_cut] if self.next_cut else self._of_network(trainer, "preview"):
                        callback.traced = self.traced
                        found |= callback.preview()
            self._summary = (step, found)
        return self._summary[1]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """State and lam of the law, when it began, whether it is off, and the example inputs."""
        state: dict[str, Any] = {"stopped": self.stopped, "lam": self._lam, "since": self._since}
        if self.traced is not None:
            state["example"] = packed(self.traced.example)
        if self.attached and not self.stopped:
            state["law"] = self.law.state_dict()
        elif self._saved is not None and "law" in self._saved and not self.stopped:
            state["law"] = self._saved["law"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`; the law takes its state up when it is attached."""
        self._saved, self.stopped = state_dict, bool(state_dict["stopped"])
        # The network may be of another width now: test(ckpt_path="best") gives the dense one back.
        self._renew_law()
        self.attached = False

    def save_deterministic_scales(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give ``checkpoint`` the weights with the deterministic scales of a law with random gates.

        Called by the module's hook: Lightning calls those of callbacks only where more than weights is saved.
        """
        if self._gates:
            # Averaging callbacks may have put the average in the first place.
            key = "current_model_state" if "current_model_state" in checkpoint else "state_dict"
            with self.deterministic_scales():
                now = pl_module.state_dict()
                checkpoint[key] = {name: now.get(name, value).clone() for name, value in checkpoint[key].items()}

    # Setting the law to work

    def _attach(self, trainer: pl.Trainer) -> None:
        assert self.traced is not None
        network, graph = self.traced.network, self.traced.graph
        gammas = [gamma for gamma in sparsity.gamma_parameters(graph, network) if gamma.requires_grad]
        if not gammas:
            raise SlimError(
                "Sparse training needs scales that train. Got none: every normalization layer of the network is frozen "
                "(requires_grad=False) or has no scale. Unfreeze them, or leave SparseTraining out."
            )
        optimizer = owner_of(trainer, gammas)
        if isinstance(self.law, Stochastic):
            refuse_averages(trainer, network, type(self.law).__name__)
        # A checkpoint may be from before the law began: that of a learning rate finder is.
        begun = self._saved if self._saved is not None and "law" in self._saved else None
        # Checkpoints of older versions hold no beginning.
        self._since = (trainer.current_epoch, trainer.global_step) if begun is None else begun.get("since", (0, 0))
        steps = self._told = self._steps(trainer)
        if begun is not None:
            self._use_lam(begun["lam"])
            self.law.load_state_dict(begun["law"])
        elif self._penalty == "target" and (dense := self.traced.dense_of_thin()) is not None:
            self.law = sparsity.build("target", **options_on_thin(self._options, dense, graph))
        self.law.attach(network, graph, steps)
        if begun is None:
            self._look_ahead(trainer, optimizer, steps)
        self.attached, self._saved = True, None
        self._handles.append(sparsity.install(self.law, optimizer))

    def missed_steps(self) -> tuple[int, int] | None:
        """Steps that the law planned with and those it made, where they were too few to finish; else ``None``."""
        if not self.attached or self.law.summary().get("ready", 1.0):
            return None
        made = self.law.state_dict().get("step", self._told)
        return (self._told, made) if made < self._told else None

    def _steps(self, trainer: pl.Trainer) -> int:
        if self._law_steps is not None:
            return self._law_steps
        epochs = self._epochs
        if epochs is None:
            ends = [callback.last_epoch() for callback in self._of_network(trainer, "last_epoch")]
            epochs = max((end for end in ends if end is not None), default=None)
        return steps_of(trainer, epochs, self._since)

    def _look_ahead(self, trainer: pl.Trainer, optimizer: Optimizer, steps: int) -> None:
        """Forecast what the law can do; with ``shrink``, first scale its lam to the learning rates."""
        assert self.traced is not None
        group = group_of(self.law, optimizer)
        rates = self._rates(trainer, optimizer, steps, group)
        momentum = float(optimizer.param_groups[group].get("momentum", 0.0))
        self.forecast = self.law.forecast(rates, momentum)
        if self._shrink is not None:
            assert isinstance(self._penalty, str)
            lam = self._options.get("lam", inspect.signature(sparsity.find(self._penalty)).parameters["lam"].default)
            if not self.forecast.shrink_budget > 0:
                raise SlimError(
                    f"shrink needs learning rates with which the law acts. Got shrink={self._shrink} and a law that "
                    "takes nothing off a scale in this fit. Raise the learning rate, or leave shrink out."
                )
            # What a law can take off a gamma is proportional to its lam.
            self._use_lam(lam * self._shrink / self.forecast.shrink_budget)
            self.law.attach(self.traced.network, self.traced.graph, steps)
            self.forecast = self.law.forecast(rates, momentum)
        if not getattr(self.law, "exact_zeros", True) and {"betas", "eps"} & set(optimizer.param_groups[group]):
            self.forecast = sparsity.under_adaptive(self.forecast, rates, type(optimizer).__name__)
        rank_zero_info(self.forecast.line)

    def _rates(self, trainer: pl.Trainer, optimizer: Optimizer, steps: int, group: int) -> list[float]:
        try:
            return replay_learning_rates(trainer, optimizer, steps, group=group)
        except SlimError as error:
            if self._shrink is not None:
                raise
            rank_zero_warn(f"{error} The forecast of the law assumes the learning rate of now.")
            return [float(optimizer.param_groups[group]["lr"])] * steps

    def _renew_law(self) -> None:
        if isinstance(self._penalty, str):
            self.law = sparsity.build(self._penalty, **self._options)

    def _use_lam(self, lam: float | None) -> None:
        self._lam = lam
        if lam is not None:
            assert isinstance(self._penalty, str)
            self.law = sparsity.build(self._penalty, **{**self._options, "lam": lam})

    def _of_network(self, trainer: pl.Trainer, method: str) -> list[Any]:
        """Other callbacks of the same network that have ``method``."""
        mine = self.traced.network if self.traced is not None else None
        return [
            callback
            for callback in callbacks_of(trainer)
            if callback is not self
            and hasattr(callback, method)
            and isinstance(traced := getattr(callback, "traced", None), TracedNetwork)
            and mine is not None
            and same_module(traced.network, mine)
        ]


def sparse_of(trainer: pl.Trainer, traced: TracedNetwork | None) -> list[SparseTraining]:
    """The sparse training of a network in a Trainer."""
    if traced is None:
        return []
    module = trainer.lightning_module
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, SparseTraining)]
    return [callback for callback in found if callback.network_of(module) is traced.network]
