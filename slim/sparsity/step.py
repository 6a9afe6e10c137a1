"""Run a law inside ``optimizer.step``, so that any training loop has it: Lightning's, Fabric's, one's own.

PyTorch's step hooks do it: they survive learning-rate schedulers (which replace ``optimizer.step``), wrappers, and are
not called where a gradient scaler skips a step. A training loop may run forward and backward inside the step, as a
closure; then the law follows the closure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from slim.channels.optimizer_states import nested
from slim.errors import SlimError
from slim.sparsity.penalty import Penalty, is_law


class Handle:
    """Takes a law out of its optimizer again."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """From now on the optimizer steps without the law; a second call does nothing."""
        remove, self._remove = self._remove, lambda: None
        remove()


def install(law: Penalty, optimizer: Optimizer) -> Handle:
    """Let ``law`` take part in every step of ``optimizer``.

    The order within a step is: the closure, if there is one (forward, backward, unscaling, clipping happen in it or
    before the step); ``law.before_step(lr)``; the update; ``law.after_step(lr)``. ``lr`` is that of the parameter group
    which holds the law's scales, or most of them.

    Gradients that a ``GradScaler`` leaves scaled for a fused optimizer are unscaled first. A step that it skips,
    because a gradient is infinite, is none for the law either.

    Args:
        law: Attached to its network before the first step.
        optimizer: Any optimizer of PyTorch's interface, also as Lightning or Fabric wraps it, that evaluates its
            closure once.

    Returns:
        A handle whose ``remove()`` undoes it.

    Raises:
        SlimError: In the first step, when the optimizer does not have all of the law's scales, maximizes, or evaluates
            its closure again (LBFGS).

    >>> from torch import nn
    >>> import slim
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> x, optimizer = torch.zeros(2, 3, 8, 8), torch.optim.SGD(net.parameters(), lr=0.1)

    Five lines for a loop of one's own (with Fabric: after ``fabric.setup``, ``fabric.backward(loss)``):

    >>> law = slim.sparsity.build("prox", lam=1.0)
    >>> law.attach(net, slim.trace(net, x), total_steps=2)
    >>> handle = install(law, optimizer)
    >>> for _ in range(2):
    ...     optimizer.zero_grad(); net(x).sum().backward(); _ = optimizer.step()
    >>> bool((net[1].weight < 0.9).all())
    True
    """
    if not is_law(law):
        raise SlimError(f"A law must be a penalty. Got law={str(law)[:40]!r}. Pass slim.sparsity.build('l1').")
    inner = _unwrapped(optimizer)
    installed = _Step(law, inner)
    hooks = (
        inner.register_step_pre_hook(installed.before),
        inner.register_step_post_hook(installed.after),
    )

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return Handle(remove)


class _Step:
    """The hooks of one law in one optimizer."""

    def __init__(self, law: Penalty, optimizer: Optimizer) -> None:
        self._law = law
        self._optimizer = optimizer
        self._found: tuple[int, int] | None = None
        self._skipped = False

    def before(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Act on the gradients now, or right after the closure when they are still to come."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._before_update()
            return None
        evaluated = False

        def with_law(*inner_args: Any, **inner_kwargs: Any) -> Any:
            nonlocal evaluated
            if evaluated:
                raise SlimError(
                    "A law needs an optimizer that evaluates its closure once per step. "
                    f"Got {type(optimizer).__name__}. Use SGD, AdamW or another first-order optimizer."
                )
            evaluated = True
            loss = closure(*inner_args, **inner_kwargs)
            self._before_update()
            return loss

        if len(args) > 1:
            return (args[0], with_law, *args[2:]), kwargs
        return args, {**kwargs, "closure": with_law}

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The update is done."""
        if not self._skipped:
            with torch.no_grad():
                self._law.after_step(self._lr())

    @torch.no_grad()
    def _before_update(self) -> None:
        infinite = getattr(self._optimizer, "found_inf", None)
        # A fused optimizer is told so by a tensor of the scaler and skips the update by itself.
        self._skipped = isinstance(infinite, Tensor) and bool(infinite)
        if not self._skipped:
            _unscale(self._optimizer)
            self._law.before_step(self._lr())

    def _lr(self) -> float:
        groups = self._optimizer.param_groups
        if self._found is None or self._found[0] != len(groups):
            self._found = (len(groups), group_of(self._law, self._optimizer))
        return float(groups[self._found[1]]["lr"])


def owns(optimizer: Optimizer, tensors: list[Tensor]) -> int:
    """How many of ``tensors`` the optimizer steps."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return sum(id(tensor) in known for tensor in tensors)


def group_of(law: Penalty, optimizer: Optimizer) -> int:
    """Index of the parameter group with most of the law's scales."""
    scales = law.scales()
    known = owns(optimizer, scales)
    if known < len(scales):
        raise SlimError(
            f"One optimizer must step all scales of a law. Got {known} of {len(scales)} in {type(optimizer).__name__}. "
            "Give that optimizer all of the network's parameters, or freeze the others (requires_grad=False)."
        )
    wanted = {id(scale) for scale in scales}
    counts = [sum(id(parameter) in wanted for parameter in group["params"]) for group in optimizer.param_groups]
    found = counts.index(max(counts))
    if optimizer.param_groups[found].get("maximize"):
        raise SlimError(
            f"A law adds to what an optimizer minimizes. Got {type(optimizer).__name__}(maximize=True), under which "
            "scales would grow. Minimize the negative of the objective instead."
        )
    return found


def _unscale(optimizer: Optimizer) -> None:
    """Divide the gradients by the scale that a ``GradScaler`` left to a fused optimizer, which then has none."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if grads:
        torch._foreach_mul_(grads, (1.0 / scale.double()).float().to(grads[0].device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def _unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer inside the wrappers of Lightning and Fabric, and inside of SAM and Lookahead, which has it step."""
    inner = nested(optimizer)[-1]
    if not isinstance(inner, Optimizer):
        raise SlimError(
            f"A law needs an optimizer. Got {type(optimizer).__name__}. Pass the torch.optim.Optimizer that steps it."
        )
    return inner
