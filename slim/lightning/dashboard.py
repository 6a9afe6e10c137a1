"""Curves and histograms of the normalization scales in TensorBoard while a network trains.

Values on the device are read every ``every_n_steps`` steps, all in one transfer, so that logging does not slow training
down. Everything goes straight to the loggers, before the checkpoint of the same step is written: a fit that is killed
and resumed has every point once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.errors import SlimError, expect_number, expect_whole
from slim.lightning.network import Network, check_network
from slim.lightning.sparse import sparse_of
from slim.lightning.traced import TracedNetwork, callbacks_of, log_points, suffix_of
from slim.sparsity.step import owns

TAGS = {"zero": "zero", "target": "target", "macs": "macs_after_cut", "ready": "ready"}


class GammaDashboard(pl.Callback):
    """Learning rate, loss per step, penalty, shares of small scales, predicted MACs, histograms of the scales.

    Tags: ``lr`` of the network's optimizer, ``train/loss_step``, ``sparsity/penalty``, ``sparsity/lam`` of a law that
    has one and ``sparsity/gammas_below_<threshold>`` every ``every_n_steps``; every epoch ``sparsity/zero``,
    ``sparsity/target``, ``sparsity/macs_after_cut`` and ``sparsity/ready`` (what :meth:`SparseTraining.summary` has),
    ``lr`` and lam of its last step, ``macs`` of the network that trained in it (it may shrink meanwhile) and
    ``time/images_per_second`` of training alone, over all processes, where a batch can be counted; histograms
    ``gamma/all`` and ``gamma_by_layer/<module>`` for TensorBoard. Tags below ``time/`` belong to the machine and differ
    from run to run.
    Where a Trainer has dashboards of several networks, every tag ends with ``/<network>``.

    Args:
        network: See :func:`find_network`.
        threshold: A scale counts as small when it is below this.
        every_n_steps: Optimizer steps between two looks at the device.
        histogram_every_n_epochs: Epochs between two histograms; the start and the last epoch always have theirs.
        example: Inputs of the network; by default those that the training step gives it in the first batch.

    Raises:
        SlimError: A value out of range, or of another type.
    """

    def __init__(
        self,
        *,
        network: Network = None,
        threshold: float = 1e-2,
        every_n_steps: int = 50,
        histogram_every_n_epochs: int = 1,
        example: Any = None,
    ) -> None:
        check_network(network)
        expect_number("threshold", threshold, "[0, inf)", "Set it to 0.01.")
        expect_whole("every_n_steps", every_n_steps, 0, "Set it to 50.")
        expect_whole("histogram_every_n_epochs", histogram_every_n_epochs, 0, "Set it to 1.")
        self.traced: TracedNetwork | None = None
        self._network, self._example = network, example
        self._threshold = threshold
        self._every = max(every_n_steps, 1)
        self._histogram_every = max(histogram_every_n_epochs, 1)
        self._last_step, self._suffix, self._optimizer = 0, "", 0
        self._at_start: dict[str, float] = {"lr": 0.0}
        self._macs: tuple[Any, int] = (None, 0)
        self._traceable, self._graph_due = False, True
        self._began, self._ended, self._images = 0.0, 0.0, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Locate the network, which is complete and on its device by now."""
        self.watch(trainer, pl_module)

    def watch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Locate the network; callbacks of the same network share one :class:`TracedNetwork`."""
        self.traced = TracedNetwork.of(module, self._network, callbacks=callbacks_of(trainer), example=self._example)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log histograms of the untrained network, unless the fit is resumed and has them."""
        # With accumulated gradients several batches share a step: the one at which a fit resumes has its point.
        self._last_step, self._suffix = trainer.global_step, suffix_of(trainer, self)
        assert self.traced is not None
        counts = [owns(optimizer, list(self.traced.network.parameters())) for optimizer in trainer.optimizers]
        self._optimizer = counts.index(max(counts)) if counts else 0
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out where it resumes within an epoch
        if trainer.global_step == 0:
            self._histograms(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and trace the network again with the next batch: it may have been cut."""
        self._graph_due = True
        self._began, self._ended, self._images = time.monotonic(), 0.0, 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the learning rate and lam of this step: when the batch ends, their schedules have moved on."""
        assert self.traced is not None
        if trainer.optimizers:
            self._at_start = {"lr": float(trainer.optimizers[self._optimizer].param_groups[0]["lr"])}
        for callback in sparse_of(trainer, self.traced):
            if callback.attached and not callback.stopped and hasattr(callback.law, "lam"):
                self._at_start["sparsity/lam"] = float(callback.law.lam)
        if not self._graph_due:
            return
        self._graph_due = False
        try:
            self.traced.learn_example(pl_module, batch)
            graph, self._traceable = self.traced.graph, True
        except SlimError:
            return  # there are curves without it
        # Surgery comes at the end of an epoch, so these are the MACs of all its steps.
        if self._macs[0] is not graph:
            self._macs = (graph, graph.macs())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every ``every_n_steps`` steps: read values from the device in one transfer, and log them."""
        self._ended = time.monotonic()
        self._images += batch_size(batch)
        step = trainer.global_step
        if not trainer.loggers or step % self._every or step <= self._last_step:
            return
        self._last_step = step
        with torch.no_grad():
            values = self._on_device(trainer, pl_module, outputs)
        points = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}
        log_points(trainer, {**self._at_start, **points}, self._suffix)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's progress towards the cut, the network's MACs, the throughput, and histograms."""
        points: dict[str, float] = {}
        if trainer.loggers and trainer.is_global_zero:
            for callback in sparse_of(trainer, self.traced):
                points |= {
                    f"sparsity/{TAGS[key]}": value for key, value in callback.summary(trainer).items() if key in TAGS
                }
        if self._last_step != trainer.global_step:  # an epoch may be shorter than the steps between two looks
            points |= self._at_start
        if self._macs[0] is not None:
            points["macs"] = float(self._macs[1])
        if self._images and self._ended > self._began:
            points["time/images_per_second"] = self._images * trainer.world_size / (self._ended - self._began)
        if points:
            log_points(trainer, points, self._suffix)
        epoch = trainer.current_epoch + 1
        if epoch % self._histogram_every == 0 or epoch == trainer.max_epochs:
            self._histograms(trainer)

    def _on_device(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> dict[str, Tensor]:
        """Values to log, as 0-dim float64 tensors on the device; nothing here waits for it."""
        values: dict[str, Tensor] = {}
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            # Lightning divides the loss of a batch by the number of batches that make a step.
            scale = trainer.accumulate_grad_batches if module.automatic_optimization else 1
            values["train/loss_step"] = outputs["loss"].detach().mean() * scale
        for callback in sparse_of(trainer, self.traced):
            if callback.attached and not callback.stopped:
                values["sparsity/penalty"] = callback.law.value().detach()
        gammas = [gamma.detach().flatten() for gamma in self._scales().values()]
        if gammas:
            small = torch.cat(gammas).abs() < self._threshold
            values[f"sparsity/gammas_below_{self._threshold:g}"] = small.double().mean()
        return {name: value.double().to(module.device) for name, value in values.items()}

    def _scales(self) -> dict[str, Tensor]:
        """Scale ``(C,)`` of every normalization layer, by module; found anew each time, for a cut changes them."""
        assert self.traced is not None
        network = self.traced.network
        if self._traceable:
            parameters = dict(network.named_parameters())
            scales = self.traced.graph.scales
            return {scale.module: parameters[scale.weight] for scale in scales if scale.weight in parameters}
        norms = (
            (name, part) for name, part in network.named_modules() if isinstance(part, nn.modules.batchnorm._NormBase)
        )
        return {name: norm.weight for name, norm in norms if norm.weight is not None}

    def _histograms(self, trainer: pl.Trainer) -> None:
        adders = [add for logger in trainer.loggers if (add := _histogram_of(logger)) is not None]
        scales = self._scales()
        if not adders or not scales or not trainer.is_global_zero:
            return
        sizes = [gamma.numel() for gamma in scales.values()]
        everything = torch.cat([gamma.detach().flatten().float() for gamma in scales.values()]).cpu()
        if not everything.isfinite().all():
            return  # no histogram has a place for them; the loss tells the user
        for add in adders:
            add(f"gamma/all{self._suffix}", everything, trainer.global_step)
            for name, gamma in zip(scales, torch.split(everything, sizes), strict=True):
                if gamma.numel():
                    add(f"gamma_by_layer/{name}{self._suffix}", gamma, trainer.global_step)


def batch_size(batch: Any) -> int:
    """Samples in a batch, where they can be counted: what all its tensors have in common, or the length of a list.

    >>> batch_size((torch.zeros(4, 3, 8, 8), torch.zeros(4))), batch_size(([torch.zeros(3, 8, 8)] * 2, [{}, {}]))
    (4, 2)
    >>> batch_size("no images")
    0
    """
    first = batch[0] if isinstance(batch, list | tuple) and batch else None
    if isinstance(first, list | tuple) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(first)):
        return len(first)
    sizes = {leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    return sizes.pop() if len(sizes) == 1 else 0


def _histogram_of(logger: Any) -> Any:
    own = getattr(logger, "add_histogram", None)
    return own or getattr(getattr(logger, "experiment", None), "add_histogram", None)
