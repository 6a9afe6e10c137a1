"""Knowledge distillation in any LightningModule: the network learns from a teacher, besides its own loss.

Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from slim.errors import SlimError, expect_number
from slim.lightning.example import in_precision_of
from slim.lightning.network import Network, check_network, find_network
from slim.lightning.traced import log_points, suffix_of

Loss = Callable[[Any, Any], Tensor]
OWN_STEP = "_slim_own_step"
"""Attribute of a step with a teacher: the ``training_step`` that was set on the instance before any teacher came."""


class Distillation(pl.Callback):
    """Adds what a teacher says of the same inputs to the loss that ``training_step`` returns.

    Each call of the network in a training step is repeated with the teacher, without gradients; the loss becomes
    ``(1 - weight) * loss + weight * loss(student_out, teacher_out)``, the mean over the calls. The teacher is in
    evaluation mode, on the module's device, and in no checkpoint, optimizer or DDP wrapper. It goes on through cuts of
    the network.

    Args:
        teacher: A network with the inputs and outputs of the student, usually a trained dense one. Not changed.
        network: The student; see :func:`find_network`.
        loss: From the outputs of student and teacher to a loss ``()``. Default: :func:`soft_targets`.
        temperature: Of the default loss, > 0.
        weight: In [0, 1].

    Attributes:
        value: The teacher's part of the last batch's loss, detached; logged as ``distillation/loss`` per epoch.

    Raises:
        SlimError: A value out of range; in a fit: manual optimization, a teacher that is part of the module, a training
            step that does not call the network.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        network: Network = None,
        loss: Loss | None = None,
        temperature: float = 4.0,
        weight: float = 0.5,
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise SlimError(f"teacher must be a torch.nn.Module. Got {type(teacher).__name__}. Pass a trained network.")
        expect_number("temperature", temperature, "(0, inf)", "Set it to 4.")
        expect_number("weight", weight, "[0, 1]", "Set the teacher's share of the loss.")
        if loss is not None and not callable(loss):
            raise SlimError(
                f"loss must be a function of both outputs. Got loss={loss!r}. Leave it out for the default."
            )
        check_network(network)
        self.teacher, self.weight, self.value = teacher, weight, torch.zeros(())
        self._loss = loss or functools.partial(soft_targets, temperature=temperature)
        self._network = network
        self._calls: list[tuple[Any, Any, Any]] = []
        self._handle: Any = None
        self._own_step: Any = None
        self._sum: Tensor | None = None
        self._count = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Register a hook on the network, and wrap ``training_step`` to add the teacher's loss."""
        network = find_network(pl_module, self._network)
        inside = {id(part) for part in pl_module.modules()}
        if any(id(part) in inside for part in self.teacher.modules()):
            raise SlimError("A teacher stands beside the module. Got a part of it. Pass copy.deepcopy of the network.")
        if not pl_module.automatic_optimization:
            raise SlimError(
                "Distillation changes the loss that training_step returns. Got automatic_optimization=False. "
                "Call slim.lightning.distillation.soft_targets in the training step instead."
            )
        self.teacher.to(pl_module.device).eval().requires_grad_(False)
        self._handle = _outermost(pl_module, network).register_forward_hook(self._listener(), with_kwargs=True)
        step, own = pl_module.training_step, vars(pl_module).get("training_step")
        # A second teacher's step is around the first one's, and callbacks are torn down in the order they were set up.
        self._own_step = getattr(own, OWN_STEP, own)

        @functools.wraps(step)
        def with_teacher(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return step(*args, **kwargs)  # a validation step that asks the training step for its loss
            self._calls.clear()
            return self._mixed(step(*args, **kwargs))

        setattr(with_teacher, OWN_STEP, self._own_step)
        pl_module.training_step = with_teacher  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the hook, and unwrap ``training_step``."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            pl_module.__dict__.pop("training_step", None)
            if self._own_step is not None:  # one that was set on the instance
                pl_module.training_step = self._own_step  # type: ignore[method-assign]
                self._own_step = None
        self._calls.clear()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Clean up after a fit that failed, as :meth:`teardown` does."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the mean of the teacher's loss."""
        self._sum, self._count = None, 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's mean to the loggers at once, before the checkpoint of this epoch is written."""
        if self._sum is None:
            return
        mean: Any = trainer.strategy.reduce(self._sum / self._count, reduce_op="mean")
        log_points(trainer, {"distillation/loss": mean}, suffix_of(trainer, self))

    def _listener(self) -> Callable[..., None]:
        calls = self._calls

        # A plain function: copies of the module share it, and do not copy the teacher.
        def listen(network: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if torch.is_grad_enabled() and any(leaf.requires_grad and not leaf.is_meta for leaf in tensors):
                calls.append((args, kwargs, output))

        quiet: Callable[..., None] = torch.compiler.disable(listen)  # type: ignore[no-untyped-call]
        return quiet

    def _mixed(self, result: Any) -> Any:
        """The result of the training step, its loss mixed with the teacher's."""
        if result is None:
            return None
        if not self._calls:
            raise SlimError(
                "Distillation needs the network's output. Got a training_step that does not call it. "
                "Set network to the part that the step calls."
            )
        losses = []
        for args, kwargs, output in self._calls:
            # The student may train in another precision (64-true, bf16-true).
            args, kwargs = in_precision_of(self.teacher, (args, kwargs))
            with torch.no_grad():
                answer = self.teacher(*args, **kwargs)
            losses.append(_scalar(self._loss(output, answer)))
        self._calls.clear()
        soft = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        self.value = soft.detach()
        self._sum = self.value.double() if self._sum is None else self._sum + self.value.double()
        self._count += 1
        task = result["loss"] if isinstance(result, dict) else result
        mixed = torch.lerp(task, soft.to(task.dtype), self.weight) if self.weight else task
        return {**result, "loss": mixed} if isinstance(result, dict) else mixed


def soft_targets(student: Any, teacher: Any, *, temperature: float = 4.0) -> Tensor:
    """T^2 * KL(teacher || student), both softened by T: the mean over samples and positions.

    Args:
        student: Logits ``(N, C, ...)``, or a structure whose first float tensor with an axis of classes they are.
        teacher: The same; no gradient flows into it.
        temperature: T > 0; T^2 keeps the soft gradients on the scale of the hard ones (section 2 of the paper).

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(soft_targets(logits, logits)), round(float(soft_targets(logits, -logits, temperature=1.0)), 4)
    (0.0, 1.5232)
    """
    mine, theirs = next(_logits(student), None), next(_logits(teacher), None)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        shapes = [None if logits is None else tuple(logits.shape) for logits in (mine, theirs)]
        raise SlimError(
            f"Student and teacher must give logits of one shape. Got {shapes[0]} and {shapes[1]}. "
            "Give loss=, a function of both outputs."
        )
    if mine.shape[1] < 2:
        raise SlimError(
            f"Student and teacher must give logits of two classes or more. Got {tuple(mine.shape)}, whose softmax is 1 "
            "whatever they say. Give loss=, a function of both outputs."
        )
    mine, theirs = (each.float().movedim(1, -1).flatten(0, -2) for each in (mine, theirs.detach()))
    return temperature**2 * F.kl_div(
        F.log_softmax(mine / temperature, dim=1),
        F.log_softmax(theirs / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def _scalar(loss: Any) -> Tensor:
    """A loss of one number, ()."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise SlimError(f"loss must return a tensor of one number. Got {got}. Return its mean.")
    return loss.reshape(())


def _logits(output: Any) -> Iterator[Tensor]:
    return (
        leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1
    )


def _outermost(module: nn.Module, network: nn.Module) -> nn.Module:
    """The network as the module calls it: compiled, where it is."""
    held = [*module.modules(), *(value for value in vars(module).values() if isinstance(value, nn.Module))]
    return next((part for part in held if getattr(part, "_orig_mod", None) is network), network)
