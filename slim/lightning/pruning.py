"""Channel pruning of any LightningModule in the middle of its training, or at its end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from slim.channels import ChannelGraph
from slim.errors import SlimError
from slim.lightning.calibration import Batches, Calibration
from slim.lightning.checkpoint import prepare
from slim.lightning.cut import Cut, CutContext, execute
from slim.lightning.example import packed, unpacked
from slim.lightning.followers import warn_of_copies
from slim.lightning.moments import END, Moment, check_moments, fit_ends, moments
from slim.lightning.network import Network, find_network, network_key, path_of
from slim.lightning.options import BUDGETS, Recovery, check_arguments, check_criterion, check_place, networks_of
from slim.lightning.own_calls import OwnCalls, check_own_calls
from slim.lightning.preview import preview
from slim.lightning.random_state import preserved
from slim.lightning.rates import steps_of_epochs, warn_of_missed_steps
from slim.lightning.selecting import none_removed, select
from slim.lightning.sparse import sparse_of
from slim.lightning.surgery import is_compiled, refuse_masks, refuse_sharded, refuse_spawned
from slim.lightning.traced import TracedNetwork, callbacks_of, log_points, suffix_of
from slim.selection import Selection, exact_zeros, limits_due
from slim.sparsity import Stochastic


class ChannelPruning(pl.Callback):
    """Ranks all channels of a network globally and rebuilds it without the least, in place, while the Trainer runs.

    At its moment: rank, select, check that the masked and the rebuilt network compute the same, absorb, rebuild with
    every optimizer's state, averaged copies (EMA, SWA) alike, renew DDP and compiled code, recalibrate. Rank 0 decides,
    all ranks check the plan. Budget, floors and caps are those of the dense network, also in later cuts. After the last
    cut :class:`SparseTraining` of the same network is off and the remaining epochs are the fine-tune.

    A cut at the end comes after the last checkpoint: save the thin network with ``trainer.save_checkpoint``.

    Checkpoints carry the plan: ``trainer.fit(ckpt_path=...)``, ``trainer.test(ckpt_path=...)`` and
    ``load_from_checkpoint`` give the thin network. A ``ModelCheckpoint`` that monitors a metric may well prefer an
    epoch from before the cut, which is dense: keep the last one, too.

    Args:
        ratio, macs, params, memory, latency: The budget, exactly one; see :func:`slim.select`. None with ``zeros``.
        criterion: Name of a criterion, a function, or a dict of ``name`` and options; see :func:`slim.score`.
        at: When: ``"end"`` of the training, epochs done before the cut, several of them, or a dict of ``count``,
            ``growth``, ``start``, ``every``; see :func:`slim.lightning.moments.moments`.
        zeros: Instead of a budget: every ``every`` epochs but the last remove the channels whose scales are exactly
            zero. Sparse training goes on.
        every: Epochs between two such cuts.
        recover: Absorb constants before and recalibrate BatchNorm after a cut; False, or a dict of ``absorb``,
            ``least_squares`` (batches to refit on what reads removed channels, 0 by default), ``batches`` (to
            recalibrate on), ``evaluate`` (network to a figure, higher is better: keeps a step only if it helps).
        network: See :func:`find_network`.
        copies: Further networks of the module with the same architecture, which are cut by the same plan: a momentum
            encoder, a target network.
        example: Inputs of the network; by default those that the training step gives it in the first batch.
        trace: Options of :func:`slim.trace` (``residual``, ``grouped``).
        limits: Of :func:`slim.select`: ``min_channels``, ``max_layer_ratio``, ``round_to``, ``ignore``, ``overrides``;
            with a budget ``strategy``, ``granularity``, ``inexact``, too.

    Attributes:
        cuts: What has been cut in this process, in order.
        history: One entry per cut of the whole training, resumed or not: epochs, macs, params, channels.
        rehearsed: Whether ranking, selection and the module's step were tried; on the first batch where they were not.

    Raises:
        SlimError: No budget, or two; an unknown option; a value out of range, or of another type.
    """

    def __init__(
        self,
        *,
        ratio: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        memory: float | None = None,
        latency: Any = None,
        criterion: Any = "gamma",
        at: Any = END,
        zeros: bool = False,
        every: int | None = None,
        recover: bool | Mapping[str, Any] = True,
        network: Network = None,
        copies: Iterable[Network] = (),
        example: Any = None,
        trace: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        budget = dict(zip(BUDGETS, (ratio, macs, params, memory, latency), strict=True))
        self.budget = {kind: amount for kind, amount in budget.items() if amount is not None}
        check_arguments(self.budget, zeros, every, limits)
        check_criterion(criterion)
        check_place(network, trace)
        check_moments(at, self.budget)
        self.criterion, self.at, self.limits = criterion, at, limits
        self.cuts: list[Cut] = []
        self._every = every if zeros else None
        self._recovery = Recovery.of(recover)
        self._network, self._copies, self._example, self._trace = network, networks_of(copies), example, trace
        self._reset()

    def _reset(self) -> None:
        """Return to the state before the first cut."""
        self.history: list[dict[str, Any]] = []
        self.traced: TracedNetwork | None = None
        self._moments: tuple[Moment, ...] = ()
        self._done = 0
        self._swept: int | None = None
        self.rehearsed = False
        self._own_calls: OwnCalls | None = None
        self._saved_example: Any = None

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints: one per network and kind of cut."""
        return self._generate_state_key(network=network_key(self._network), zeros=self._every is not None)

    # When

    def last_epoch(self) -> int | None:
        """Epochs done at the last cut; ``None`` where that is the end of training, or where there is no last one."""
        return self._moments[-1].epochs if self._moments else None

    def _planned(self, trainer: pl.Trainer) -> tuple[Moment, ...]:
        quick = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if self._every is not None or (quick and isinstance(self.at, Mapping) and self.at.get("every") is None):
            return ()  # cuts spread over the fit that is meant, of which a quick one knows nothing
        known = trainer.max_epochs is not None and trainer.max_epochs >= 0 and not quick
        epochs = trainer.max_epochs if known else None
        ((kind, amount),) = self.budget.items()
        return moments(self.at, kind, amount, epochs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Extend the module's checkpoint hooks, and refuse strategies and schedules that cannot work.

        Another module than that of the last fit is cut anew.
        """
        prepare(pl_module)
        if stage == "fit":
            if self.traced is not None and not self.traced.belongs_to(pl_module):
                self._reset()
            for refuse in (refuse_sharded, refuse_spawned, refuse_masks):
                refuse(trainer, "ChannelPruning")
            self._moments = self._planned(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Locate the network, which is complete and on its device by now."""
        self.watch(trainer, pl_module)
        for twin in self._copies:
            path_of(pl_module, find_network(pl_module, twin))
        assert self.traced is not None
        if self.traced.example is None:
            self.traced.example = unpacked(self._saved_example)
        for callback in sparse_of(trainer, self.traced):
            if isinstance(callback.law, Stochastic) and (self._every is not None or len(self._moments) > 1):
                raise SlimError(
                    f"A law with random gates cannot follow several cuts. Got penalty={type(callback.law).__name__}. "
                    "Cut once, or use penalty='target' or 'prox'."
                )

    def watch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Locate the network; callbacks of the same network share one :class:`TracedNetwork`."""
        self.traced = TracedNetwork.of(
            module, self._network, callbacks=callbacks_of(trainer), example=self._example, trace=self._trace
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a cut that was due when the resumed run was killed; refuse one for which there are too few steps."""
        self._check_within_steps(trainer)
        for callback in sparse_of(trainer, self.traced):
            callback.on_train_start(trainer, pl_module)  # its saved state is of the network as it is before that cut
        if self._every is None:
            self._cut_what_is_due(trainer, pl_module, trainer.current_epoch)
        elif self._swept is not None and trainer.current_epoch > self._swept:
            self._sweep(trainer, pl_module, trainer.current_epoch)
        self._swept = trainer.current_epoch

    def _check_within_steps(self, trainer: pl.Trainer) -> None:
        last, begins = self.last_epoch(), trainer.global_step == 0 and trainer.lightning_module.automatic_optimization
        if not last or not begins or trainer.max_steps < 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        before = steps_of_epochs(trainer, 0, last - 1)
        if trainer.max_steps <= before < math.inf:
            raise SlimError(
                f"A cut must come within the fit. Got at={self.at!r} with max_steps={trainer.max_steps}, and {before} "
                f"steps in the {last - 1} epochs before the last. Set at lower, max_steps above, or at='end'."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """On the first batch: record the network's inputs, and try the ranking and selection of the cut."""
        assert self.traced is not None
        self.traced.learn_example(pl_module, batch)
        if not self.rehearsed:
            self.rehearsed = True
            self._rehearse(pl_module, batch)
            warn_of_copies(trainer, pl_module, self.traced, self._copies)
            if trainer.world_size == 1 and not is_compiled(pl_module):
                self._own_calls = OwnCalls(self.traced.network)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first batch: try a step that calls layers by themselves with a thin network."""
        if self._own_calls is not None:
            assert self.traced is not None
            names, self._own_calls = self._own_calls.close(), None
            check_own_calls(pl_module, self.traced, names, batch, self.limits, self._copies)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop looking at the step's calls."""
        if self._own_calls is not None:
            self._own_calls.close()
            self._own_calls = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut if a cut is due. The epoch's checkpoint is written after this."""
        done = trainer.current_epoch + 1
        if self._every is None:
            self._cut_what_is_due(trainer, pl_module, done)
        else:
            self._sweep(trainer, pl_module, done)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut at the end, on the last epoch's weights (the best epoch of sparse training is its least sparse one)."""
        if self._done == len(self._moments):
            return
        moment = self._moments[self._done]
        if moment.epochs is None:
            self._cut(trainer, pl_module, moment.amount, trainer.current_epoch)
            if trainer.checkpoint_callbacks:
                rank_zero_info(
                    "pruning: the last checkpoint is from before this cut. Save the thin network with "
                    "trainer.save_checkpoint(path)."
                )
        elif not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"The network stays as it is: training ended after {trainer.current_epoch} epochs, before the cut "
                f"after {moment.epochs}. Set at lower, or at='end'."
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a cut that is due where a checkpoint of the last epoch left nothing to train: no other hook came."""
        if trainer.ckpt_path is None or self._done == len(self._moments):
            return
        pl_module.to(trainer.strategy.root_device)  # which Lightning has taken it from
        self._cut_what_is_due(trainer, pl_module, trainer.current_epoch)
        if self._done < len(self._moments) and self._moments[self._done].epochs is None:
            self._cut(trainer, pl_module, self._moments[self._done].amount, trainer.current_epoch)
        pl_module.cpu()

    def _sweep(self, trainer: pl.Trainer, module: pl.LightningModule, done: int) -> None:
        """Remove exact zeros if it is time."""
        assert self._every is not None
        self._swept = done
        if done % self._every == 0 and not fit_ends(trainer, done):
            self._cut(trainer, module, None, done)

    def _cut_what_is_due(self, trainer: pl.Trainer, module: pl.LightningModule, done: int) -> None:
        due = [moment for moment in self._moments[self._done :] if moment.epochs is not None and moment.epochs <= done]
        if due:
            # Of several missed ones the last alone: it goes as far as all of them.
            self._done += len(due) - 1
            self._cut(trainer, module, due[-1].amount, done)

    # What

    def _rehearse(self, module: pl.LightningModule, batch: Any) -> None:
        """Rank and select on one batch before the first cut, changing nothing: better refused now than after hours."""
        assert self.traced is not None
        if self._every is not None:
            exact_zeros(self.traced.graph, **self.limits)
            return
        if self._done or "latency" in self.budget:  # which takes seconds to measure
            return
        with preserved():
            loader = Calibration(module, self.traced.network, [batch], None).batches
            select(self.traced, self.criterion, self.budget, self.limits, loader)

    def _cut(self, trainer: pl.Trainer, module: pl.LightningModule, amount: float | None, epochs: int) -> None:
        last = amount is not None and self._done + 1 == len(self._moments)
        with contextlib.ExitStack() as stack:
            for callback in sparse_of(trainer, self.traced):
                if last:
                    warn_of_missed_steps(callback.missed_steps())
                    callback.stop()
                else:
                    stack.enter_context(callback.deterministic_scales())
            cut = self.cut(module, amount=amount, trainer=trainer, epochs=epochs)
        self._done += amount is not None
        for callback in sparse_of(trainer, self.traced):
            callback.resize()
        if cut.plan.is_identity and self._every is not None:
            return
        self.history.append({"epochs": epochs, **cut.after})
        rank_zero_info(str(cut))
        log_points(trainer, {f"pruning/{key}": value for key, value in cut.after.items()}, suffix_of(trainer, self))

    def cut(
        self,
        module: pl.LightningModule,
        *,
        graph: ChannelGraph | None = None,
        batches: Batches | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        trainer: pl.Trainer | None = None,
        amount: float | None = None,
        epochs: int | None = None,
    ) -> Cut:
        """Rank, select, check, recover and rebuild the module's network now, in place.

        Args:
            module: Whose network is cut.
            graph: Of the network as it is, where it is known.
            batches: For ranking and recovery, as the module's training step takes them, or what returns them. Default:
                those of the Trainer.
            evaluate: Figure of a network, higher is better: a step of recovery that does not help is taken back.
            trainer: Whose optimizers, averaged copies and processes follow; ``None`` outside of a fit.
            amount: Budget of this cut; by default the whole.
            epochs: For the record.

        Raises:
            SlimError: The budget is out of reach, or no example of the network's inputs is known.
            RunFailed: The ranks disagree, or the rebuilt network computes something else; then nothing was cut.
        """
        callbacks = [] if trainer is None else callbacks_of(trainer)
        traced = TracedNetwork.of(
            module, self._network, callbacks=[self, *callbacks], example=self._example, trace=self._trace
        )
        self.traced = traced
        if graph is not None:
            traced.graph = graph
        context = CutContext(
            module, traced, Calibration(module, traced.network, batches, trainer), trainer, self._copies
        )
        with preserved():
            context.ensure_example()
            traced.remember_dense()
            selection = context.of_rank_zero(self._selection(context, amount))
            exact = not self.limits.get("inexact")
            done = execute(context, selection, self._recovery, evaluate=evaluate, exact=exact, epochs=epochs)
        self.cuts.append(done)
        return done

    def _selection(self, context: CutContext, amount: float | None) -> Selection:
        """What goes; without a budget the exact zeros, which every rank finds alike."""
        graph = context.traced.graph
        if self._every is not None:
            of_dense = {"max_layer_ratio", "overrides"} & set(self.limits)  # shares of the dense network's layers
            dense = context.traced.dense_graph() if of_dense else None
            return Selection(exact_zeros(graph, dense, **self.limits), {}, {})
        if not context.decides:
            return Selection(none_removed(graph), {}, {})
        ((kind, whole),) = self.budget.items()
        loader = context.calibration.batches if context.calibration else None
        now = whole if amount is None else amount
        return select(context.traced, self.criterion, {kind: now}, limits_due(self.limits, kind, now, whole), loader)

    def serves(self, trainer: pl.Trainer, traced: TracedNetwork) -> bool:
        """Whether this callback cuts the network of ``traced``."""
        mine = self.traced.network if self.traced else find_network(trainer.lightning_module, self._network)
        return mine is traced.network

    # A look ahead

    def preview(self) -> dict[str, float]:
        """What a cut would remove now; see :func:`slim.lightning.preview.preview`.

        Returns:
            Shares of the dense network: ``zero`` of its removable scales are near zero or gone, ``target`` of its
            channels would go, ``macs`` would be left; ``ready``: 1 when every scale that would go is near zero. Empty
            where there is no budget, or one that is measured.
        """
        if self._every is not None or self.traced is None or "latency" in self.budget:
            return {}
        ((kind, whole),) = self.budget.items()
        amount = self._moments[min(self._done, len(self._moments) - 1)].amount if self._moments else whole
        return preview(self.traced, self.criterion, {kind: amount}, limits_due(self.limits, kind, amount, whole))

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Number and history of the cuts done, epochs looked through for zeros, and the example inputs."""
        example = self._saved_example if self.traced is None else packed(self.traced.example)
        return {"done": self._done, "swept": self._swept, "history": [*map(dict, self.history)], "example": example}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self._done, self._saved_example = int(state_dict["done"]), state_dict["example"]
        self._swept = state_dict.get("swept")  # not in checkpoints of older versions
        self.history = [dict(entry) for entry in state_dict["history"]]
