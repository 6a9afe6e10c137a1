"""The Lightning module of every training phase: a classifier whose scales feel a penalty once per optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slim.channels import ChannelGraph
from slim.errors import RunFailed
from slim.recovery import Distillation
from slim.sparsity import Penalty, Stochastic

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class Classifier(pl.LightningModule):
    """Trains ``network`` on batches ``(x: float (N, C, H, W), y: int64 (N,))`` with cross-entropy.

    The penalty never meets autograd, the gradient scaler, accumulation or clipping: it is added to gamma's gradient
    right before the optimizer's update (after unscaling and clipping), and proximal laws act right after it.

    Args:
        network: Anything that maps ``x`` to logits ``(N, classes)``. Trained in place.
        optimizer: Builds the optimizer from the network's parameters.
        rate: Factor on the base learning rate as a function of the optimizer step (0-based).
        total_steps: Optimizer steps of the whole phase.
        penalty: Sparsity law, or ``None``. Needs ``graph``.
        graph: Channel graph of ``network``.
        outlook: From the graph to what a cut now would be, for laws that do not know their target; see `prospects`.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
        distillation: A teacher to learn from, besides the labels. It stays as it is, out of checkpoints and optimizer.
        channels_last: Keep images and weights in channels-last memory.
        compile: Run the network through ``torch.compile``.
        log_every: Optimizer steps between two points of ``train/loss_step``; each waits for the device.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        rate: Callable[[int], float],
        total_steps: int,
        penalty: Penalty | None = None,
        graph: ChannelGraph | None = None,
        outlook: Callable[[ChannelGraph], dict[str, float]] | None = None,
        label_smoothing: float = 0.0,
        distillation: Distillation | None = None,
        channels_last: bool = False,
        compile: bool = False,
        log_every: int = 10,
    ) -> None:
        super().__init__()
        self.network = network
        self.penalty = penalty
        self.graph = graph
        self.total_steps = total_steps
        self.history: dict[str, list[float]] = {}
        self.log_every = log_every
        self._make_optimizer = optimizer
        self._rate = rate
        self._outlook = outlook
        self._prospects: tuple[int, dict[str, float]] = (-1, {})
        self._label_smoothing = label_smoothing
        self._distillation = distillation
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = compile
        self._penalty_state: dict[str, Any] | None = None
        self._sums: dict[str, Tensor] = {}
        self.renew()

    def renew(self) -> None:
        """Forget everything derived from the network's structure; call it after surgery."""
        # Through __dict__: a compiled module registered as a child would put every weight into the checkpoint twice.
        self.__dict__["_run"] = self._ready(self.network)

    def _ready(self, network: nn.Module) -> nn.Module:
        for parameter in network.parameters():
            if parameter.dim() == 4:
                # Canonical strides, however the weight came to be (built, cut, loaded): where channels are few several
                # strides describe one layout, kernels differ between them, and a resumed run would, too.
                parameter.data = torch.empty_like(parameter.data, memory_format=self._format).copy_(parameter.data)
        ready: nn.Module = torch.compile(network) if self._compile else network  # type: ignore[assignment]
        return ready

    def forward(self, x: Tensor) -> Tensor:
        """``x (N, C, H, W)`` to logits ``(N, classes)``."""
        logits: Tensor = self.__dict__["_run"](self._laid_out(x))
        return logits

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self._format) if x.dim() == 4 and self._format is torch.channels_last else x

    def scales(self) -> dict[str, Tensor]:
        """Gamma of every normalization layer of the traced network, by module name."""
        parameters = dict(self.network.named_parameters())
        found = [] if self.graph is None else self.graph.scales
        return {scale.module: parameters[scale.weight] for scale in found if scale.weight in parameters}

    # Steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss ``()`` of one batch; keeps the epoch's sums on the device."""
        x, y = batch
        logits = self(x).float()
        if self._distillation is None:
            loss = F.cross_entropy(logits, y, label_smoothing=self._label_smoothing)
            self._add("train", logits, y, loss)
            return loss
        with torch.no_grad():
            taught = self.__dict__["_teacher"](self._laid_out(x)).float()
        loss, soft = self._distillation.losses(logits, taught, y, self._label_smoothing)
        self._add("train", logits, y, loss, soft)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds one batch to the validation sums."""
        x, y = batch
        logits = self(x).float()
        self._add("val", logits, y, F.cross_entropy(logits, y))

    def _add(self, split: str, logits: Tensor, y: Tensor, *losses: Tensor) -> None:
        # In double: the sums of a long epoch must not depend on its length.
        sums = [loss.detach().double() * len(y) for loss in losses]
        count = torch.full_like(sums[0], len(y))
        update = torch.stack([count, (logits.detach().argmax(1) == y).sum().double(), *sums])
        self._sums[split] = self._sums[split] + update if split in self._sums else update

    def means(self, split: str, sums: Tensor | None = None) -> dict[str, float]:
        """Figures of the running epoch (waits for the device): accuracy, loss, and loss_teacher, the teacher's part.

        Args:
            split: ``train`` or ``val``; without a batch yet there are no figures.
            sums: Those of all processes together. Default: this one's.
        """
        if split not in self._sums:
            return {}
        count, *totals = (self._sums[split] if sums is None else sums).tolist()
        return dict(zip(("accuracy", "loss", "loss_teacher"), (total / count for total in totals), strict=False))

    def prospects(self) -> dict[str, float]:
        """How far the network is on its way to the cut (waits for the device; once per step, however often asked).

        Returns:
            What the penalty's ``summary`` says: ``zero``, a share of scales; and where the penalty or ``outlook`` knows
            it ``target``, the share that the cut takes, ``macs``, the share it leaves, ``ready``: 1 when it may come.
        """
        if self.penalty is not None and self._prospects[0] != self.global_step:
            told = self.penalty.summary()
            if "target" not in told and self._outlook is not None and self.graph is not None:
                with self.settled():
                    told |= self._outlook(self.graph)
            self._prospects = (self.global_step, told)
        return self._prospects[1]

    # The settled network: what is validated, ranked and kept

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, the scales are those that a cut would find; training does not notice."""
        self.on_validation_start()
        try:
            yield
        finally:
            self.on_validation_end()

    def on_validation_start(self) -> None:
        """A law that draws its scales shows the settled ones."""
        if isinstance(self.penalty, Stochastic):
            self.penalty.use_deterministic_scales()

    def on_validation_end(self) -> None:
        """And draws on."""
        if isinstance(self.penalty, Stochastic):
            self.penalty.use_sampled_scales()

    # The penalty, once per optimizer step

    def on_fit_start(self) -> None:
        """The parameters are on their device now: the penalty looks for its gammas there, the teacher follows."""
        if self._distillation is not None:
            self.__dict__["_teacher"] = self._ready(self._distillation.teacher.to(self.device).eval())
        if self.penalty is None or self.graph is None:
            return
        self.penalty.attach(self.network, self.graph, self.total_steps)
        if self._penalty_state is not None:
            self.penalty.load_state_dict(self._penalty_state)
            self._penalty_state = None

    def configure_optimizers(self) -> Any:
        """One optimizer over all parameters, its rate set every step."""
        optimizer = self._make_optimizer(self.network.parameters())
        # Lightning runs forward and backward inside optimizer.step: a *pre* hook would come before the gradients.
        optimizer.register_step_post_hook(self._after_step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._rate), "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, then add the subgradient. Lightning calls this once per optimizer step, after unscaling."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.penalty is not None:
            self.penalty.before_step(optimizer.param_groups[0]["lr"])

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.penalty is not None:
            self.penalty.after_step(optimizer.param_groups[0]["lr"])

    # Figures of an epoch

    def on_train_epoch_end(self) -> None:
        """Write the epoch's losses and accuracies to the logger and to ``history``."""
        figures: dict[str, float] = {}
        for split, sums in self._sums.items():
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
            means = self.means(split, sums)
            if not means["loss"] < float("inf"):
                raise RunFailed(f"The {split} loss must be finite. Got {means['loss']} (epoch {self.current_epoch}).")
            figures |= {f"{split}/{name}": value for name, value in means.items()}
        self._sums = {}
        for key, value in figures.items():
            self.history.setdefault(key.replace("/", "_"), []).append(value)
        if self.logger is not None:
            # Straight to the logger, not through self.log: Lightning writes those after the checkpoint is saved, and
            # a run killed in between would lose the point.
            self.logger.log_metrics({**figures, "epoch": self.current_epoch}, step=self.global_step)
        self.log_dict(figures, logger=False, sync_dist=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Penalty, history and the running sums of the epoch travel along; the weights are the settled ones."""
        if isinstance(self.penalty, Stochastic):
            with self.settled():
                checkpoint["state_dict"] = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        checkpoint["classifier"] = {
            "penalty": None if self.penalty is None else self.penalty.state_dict(),
            "history": {key: list(values) for key, values in self.history.items()},
            "sums": {split: sums.cpu() for split, sums in self._sums.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counterpart of :meth:`on_save_checkpoint`; the penalty takes its state up once it is attached."""
        state = checkpoint["classifier"]
        self._penalty_state = state["penalty"]
        self.history = {key: list(values) for key, values in state["history"].items()}
        self._sums = {split: sums.to(self.device) for split, sums in state["sums"].items()}
