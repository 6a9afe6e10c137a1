"""Checkpoints of thin networks: each carries the plans of its networks, and every way of loading applies them first.

Lightning offers no hook of a callback before the weights are loaded, and calls none at all where only weights are
saved. The module's own ``on_save_checkpoint`` and ``on_load_checkpoint`` are always called, and at the right moment, so
they are extended on the instance. ``Mine.load_from_checkpoint`` builds the instance itself; there the checkpoint names
:func:`instantiate` as the function to do so, in the place that Lightning has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.core import saving
from torch import nn

from slim.channels import Plan
from slim.errors import SlimError
from slim.lightning.network import averaged
from slim.lightning.traced import TracedNetwork, callbacks_of

KEY = "slim"
"""Key of everything slim puts into a checkpoint; ``networks`` in it maps attribute paths to plans as JSON."""
INSTANTIATOR = "slim.lightning.instantiate"
INSTANTIATORS = {
    None: INSTANTIATOR,
    "pytorch_lightning.cli.instantiate_module": "slim.lightning.instantiate_by_cli",
}
"""Lightning's name for how a module is built from a checkpoint -> ours."""

Module = TypeVar("Module", bound=pl.LightningModule)
Hook = Callable[[dict[str, Any]], Any]

# Lightning calls only functions that it knows from checkpoints; since 2.6 it keeps a list of them.
_allowed: set[str] = getattr(saving, "_ALLOWED_INSTANTIATORS", set())
_allowed.update(INSTANTIATORS.values())


def plans_of(module: nn.Module) -> dict[str, str]:
    """The plan of every thin network in a module, as JSON by the network's path."""
    # A network may be compiled now and not when it is loaded, or the other way round.
    found = {
        ".".join(piece for piece in name.split(".") if piece != "_orig_mod"): part.__dict__.get("_slim_plan")
        for name, part in module.named_modules()
        if not hasattr(part, "_orig_mod")
    }
    return {name: plan.to_json() for name, plan in found.items() if isinstance(plan, Plan) and not plan.is_identity}


def prepare(module: pl.LightningModule) -> None:
    """Extend the module's checkpoint hooks: saving adds the plans of its networks, loading applies them."""
    for name, extended in (("on_save_checkpoint", _save), ("on_load_checkpoint", _load)):
        own: Any = vars(module).get(name)  # what somebody has set on the instance
        if getattr(own, "func", None) is extended:
            own = own.args[1]  # it is extended already
        # A partial of a function, because copies and pickles of the module then have hooks of their own.
        object.__setattr__(module, name, partial(extended, module, own))


def load(kind: type[Module], path: Any, **kwargs: Any) -> Module:
    """``kind.load_from_checkpoint(path, **kwargs)`` that gives the thin network of a pruned module's checkpoint.

    Args:
        kind: The LightningModule's class.
        path: A checkpoint of Lightning's.
        kwargs: As of ``load_from_checkpoint``: ``map_location``, ``strict``, arguments of the class.

    Raises:
        SlimError: The checkpoint's plan was made for another network.
    """

    class Thin(kind):  # type: ignore[misc, valid-type]
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            apply_plans(self, checkpoint)
            kind.on_load_checkpoint(self, checkpoint)

    module: Any = Thin.load_from_checkpoint(path, **kwargs)
    module.__class__ = kind
    loaded: Module = module
    return loaded


def instantiate(kind: type[Module], arguments: dict[str, Any]) -> Module:
    """Build a module for Lightning's ``load_from_checkpoint``; it applies the checkpoint's plans when it loads."""
    module = kind(**arguments)
    prepare(module)
    return module


def instantiate_by_cli(kind: type[Module], arguments: dict[str, Any]) -> Module:
    """The same for a module that LightningCLI built."""
    from pytorch_lightning.cli import instantiate_module

    module: Any = instantiate_module(kind, arguments)
    prepare(module)
    built: Module = module
    return built


def apply_plans(module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Give every network of ``module``, and its averaged copies, the structure that the checkpoint's weights have.

    Raises:
        SlimError: A plan was made for another network, or the network is thinner already.
    """
    saved = checkpoint.get(KEY)
    texts = saved.get("networks", {}) if isinstance(saved, Mapping) else {}
    plans: dict[str, Plan | None] = {path: Plan.from_json(text) for path, text in texts.items()}
    # A network that is thin now and was dense then becomes dense again.
    plans = {**dict.fromkeys(plans_of(module)), **plans}
    callbacks = [] if module._trainer is None else callbacks_of(module.trainer)
    for path, plan in plans.items():
        copies = list(averages(callbacks, module, path))  # found by names, of which a cut may take some away
        traced = TracedNetwork.of(module, path, callbacks=callbacks)
        traced.become(plan)
        traced.keep_dense(module)
        for average in copies:
            traced.twin(average).become(plan)


def averages(owners: Iterable[Any], module: pl.LightningModule, path: str) -> Iterator[nn.Module]:
    """The averaged copies of the network at ``path`` of ``module`` (EMA, SWA) that callbacks or modules keep.

    Of the whole module, or of a part that has the network in it.
    """
    for owner in owners:
        # Lightning's own callbacks (WeightAveraging, EMA, SWA) have it here; others hold an AveragedModel anywhere.
        for name, value in {**vars(owner), **vars(owner).get("_modules", {})}.items():
            copied = averaged(value)
            copied = value if copied is None and name == "_average_model" else copied
            if isinstance(copied, nn.Module) and (inside := _path_inside(copied, module, path)) is not None:
                yield copied.get_submodule(inside)


def _path_inside(copied: nn.Module, module: nn.Module, path: str) -> str | None:
    """Where a copy of the module, or of a part of it, has the network that is at ``path`` of the module."""
    parts = path.split(".") if path else []
    for depth in range(len(parts) + 1):
        part = module.get_submodule(".".join(parts[:depth]))
        # Shapes may differ, as when a thin checkpoint is loaded.
        if type(part) is type(copied) and (part is module or list(part.state_dict()) == list(copied.state_dict())):
            return ".".join(parts[depth:])
    return None


def _load(module: pl.LightningModule, own: Hook | None, checkpoint: dict[str, Any]) -> None:
    if module._trainer is not None:
        for callback in callbacks_of(module.trainer):
            if callable(watch := getattr(callback, "watch", None)):
                watch(module.trainer, module)  # before the plans come, while the network is dense
    apply_plans(module, checkpoint)
    (own or partial(type(module).on_load_checkpoint, module))(checkpoint)


def _save(module: pl.LightningModule, own: Hook | None, checkpoint: dict[str, Any]) -> None:
    for callback in [] if module._trainer is None else callbacks_of(module.trainer):
        if callable(save := getattr(callback, "save_deterministic_scales", None)):
            save(module, checkpoint)
    (own or partial(type(module).on_save_checkpoint, module))(checkpoint)
    plans = plans_of(module)
    if not plans:
        return
    checkpoint.setdefault(KEY, {})["networks"] = plans
    _name_instantiator(module, checkpoint)


def _name_instantiator(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Let Lightning's ``load_from_checkpoint`` call :func:`instantiate`, with the arguments it would have used."""
    key, name = module.CHECKPOINT_HYPER_PARAMS_KEY, checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_NAME)
    arguments: Any = checkpoint.get(key, {})
    if name and name != "kwargs":
        # All hyperparameters are one argument of the class: there is no place beside them but around.
        arguments = {name: arguments}
        checkpoint.pop(module.CHECKPOINT_HYPER_PARAMS_NAME)
    checkpoint.pop(module.CHECKPOINT_HYPER_PARAMS_TYPE, None)
    before = arguments.get("_instantiator")
    if before in INSTANTIATORS.values():
        return
    if before not in INSTANTIATORS:
        raise SlimError(
            f"A checkpoint names one instantiator. Got _instantiator={before!r} in the hyperparameters. "
            "Load with slim.lightning.load, and leave _instantiator out of save_hyperparameters."
        )
    checkpoint[key] = {**dict(arguments), "_instantiator": INSTANTIATORS[before]}
