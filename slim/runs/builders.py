"""From the configuration to objects: the LightningModule, its network, optimizer and learning-rate scheduler."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.optim import Optimizer

from slim import models
from slim.errors import SlimError
from slim.runs.construct import construct, target
from slim.runs.loaders import seed_all
from slim.runs.schema import Config

SchedulerFactory = Callable[[Optimizer, int], Any]


def data_module(config: Config) -> pl.LightningDataModule:
    """The data of the configuration, not yet set up."""
    data = construct(config.data, "data")
    if not isinstance(data, pl.LightningDataModule):
        raise SlimError(
            f"data._target_ must give a LightningDataModule. Got {type(data).__name__}. Set data or data._target_."
        )
    return data


def lightning_module(config: Config, data: Any, kind: str | None = None, draw: int = 0, **options: Any) -> Any:
    """The untrained LightningModule; the same weights every time, others for every ``draw``.

    Its own options come from ``config.module``. What its constructor also takes by these names it is given: ``network``
    (built from ``config.model``), ``optimizer`` and ``scheduler`` (factories), ``lr``, ``label_smoothing``,
    ``channels_last``, ``compile``, and of the data ``num_classes``, ``in_channels``, ``image_size``.

    Args:
        config: The configuration.
        data: The data module, for the number of classes and the like.
        kind: The training phase it is for; ``None``: it is not trained.
        draw: Of the weights. They come from generators of their own: it may be built between two steps.
        options: Win over all others.

    Raises:
        SlimError: A target or an option that does not exist.
    """
    path = config.module.get("_target_")
    names = _parameters(target(path, "module"))
    with isolate_rng():
        seed_all(config.seed, draw)
        offers: dict[str, Any] = {"num_classes": None, "in_channels": None, "image_size": None}
        offers = {name: getattr(data, name, None) for name in offers}
        offers = {name: value for name, value in offers.items() if value is not None}
        if "network" in names:
            offers["network"] = network(config, data)
        offers |= _training_options(config, kind, names) if kind is not None else _idle_options(names)
        offers |= options
        taken = {name: value for name, value in offers.items() if name in names and name not in config.module}
        module = construct(config.module, "module", **taken)
        if not isinstance(module, pl.LightningModule):
            raise SlimError(f"module._target_ must give a LightningModule. Got {type(module).__name__} ({path}).")
        if is_overridden("configure_model", module):
            _configure(module)
    return module


def _configure(module: pl.LightningModule) -> None:
    """Let the module make the parts that it leaves to ``configure_model``, among them maybe its network.

    Every Trainer of a run would call that once more, which not every module can bear.
    """
    try:
        module.configure_model()
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SlimError(
            f"A module of a run must be made without a Trainer. Got {type(error).__name__} in "
            f"{type(module).__name__}.configure_model: {error} Give it what it needs as module.*."
        ) from error
    module.configure_model = _configured  # type: ignore[method-assign]


def _configured() -> None:
    """Replaces the ``configure_model`` of a module for which it was called."""


def network(config: Config, data: Any) -> nn.Module:
    """The untrained network of ``config.model``; it draws from the global generators."""
    path, options = _network_options(config, data)
    return models.build(path, _said(data, "num_classes"), _said(data, "in_channels"), **options)


def recipe(config: Config, data: Any) -> dict[str, Any]:
    """How :func:`network` is built again without the configuration: for the artifact."""
    path, options = _network_options(config, data)
    return models.recipe(path, _said(data, "num_classes"), _said(data, "in_channels"), **options)


def _said(data: Any, name: str) -> int:
    """A number of the data by which the model is built."""
    value: int | None = getattr(data, name, None)
    if value is None:
        raise SlimError(
            f"Data must say their {name}, by which the model is built. Got none ({type(data).__name__}). Give the data "
            "module that attribute, or build the network in your own module and set model=none."
        )
    return value


def _network_options(config: Config, data: Any) -> tuple[str, dict[str, Any]]:
    options = dict(config.model)
    path = options.pop("_target_", None)
    if not isinstance(path, str):
        raise SlimError(f"model._target_ must be a dotted path. Got {path!r}. Set model=<family> or model._target_.")
    for name in ("num_classes", "in_channels"):
        if name in options:
            raise SlimError(f"A model has the {name} of its data. Got model.{name}={options[name]}. Leave it out.")
    size = getattr(data, "image_size", None)
    return path, ({} if size is None else {"image_size": size}) | options


def optimizer(config: Config, parameters: Iterable[Any], lr: float) -> Optimizer:
    """The optimizer of the configuration at learning rate ``lr``."""
    made: Optimizer = construct(config.optimizer, "optimizer", parameters, lr=lr)
    return made


def scheduler(config: Config, made: Optimizer, total_steps: int) -> dict[str, Any]:
    """The learning-rate scheduler of the configuration, as Lightning takes it.

    Any scheduler class of torch, by ``_target_``. Numbers of steps may be given as shares of the phase, such as
    ``milestones: [50%, 75%]`` or ``total_steps: 100%``; ``lr`` is the phase's learning rate; ``warmup`` multiplies a
    linear rise over that share of the phase. ``interval`` (step or epoch) and ``monitor`` are Lightning's; a share
    counts steps, so it needs ``interval: step``.
    """
    options = dict(config.scheduler)
    warmup, interval = options.pop("warmup", 0.0), options.pop("interval", "step")
    monitor = options.pop("monitor", None)
    if not isinstance(warmup, int | float) or not 0 <= warmup < 1:
        raise SlimError(f"warmup must be in [0, 1), a share of the phase. Got warmup={warmup}. Set scheduler.warmup=0.")
    if interval not in ("step", "epoch"):
        raise SlimError(f"interval must be step or epoch. Got interval={interval}. Set scheduler.interval=step.")
    steps = {name: _steps(value, total_steps, name) for name, value in options.items()}
    shares = [name for name in steps if steps[name] != options[name]] + (["warmup"] if warmup else [])
    if interval == "epoch" and shares:
        raise SlimError(
            f"Shares of a phase count steps. Got scheduler.interval=epoch with shares in {', '.join(shares)}. "
            "Give epochs and scheduler.warmup=0, or scheduler.interval=step."
        )
    # A schedule that sets rates itself takes that of the phase.
    steps = {name: float(made.param_groups[0]["lr"]) if value == "lr" else value for name, value in steps.items()}
    if not isinstance(steps.get("milestones", []), list):
        raise SlimError(f"milestones must be a list. Got milestones={steps['milestones']}. Set [50%,75%].")
    found = construct(steps, "scheduler", made)
    each_step = interval == "step" and str(monitor).startswith("val")  # which no validation follows
    if isinstance(found, torch.optim.lr_scheduler.ReduceLROnPlateau) and (monitor is None or each_step):
        raise SlimError(
            f"A scheduler that follows a metric needs its name, and epochs. Got scheduler.monitor={monitor}, "
            f"scheduler.interval={interval}. Set +scheduler.monitor=val/loss +scheduler.interval=epoch."
        )
    rise = round(warmup * total_steps)
    if rise:
        linear = torch.optim.lr_scheduler.LinearLR(made, 1 / (rise + 1), 1.0, rise)
        found = torch.optim.lr_scheduler.ChainedScheduler([found, linear])
    return {"scheduler": found, "interval": interval, **({"monitor": monitor} if monitor else {})}


def check_optimization(made: Optimizer, found: Any, steps: int) -> None:
    """Check what torch takes without a word, by running the scheduler ``found`` of the optimizer ``made``.

    Raises:
        SlimError: The momentum is out of range, or a learning rate is below zero or no number.
    """
    momentum = made.param_groups[0].get("momentum", 0.0)
    if not 0 <= momentum < 1:
        raise SlimError(f"momentum must be in [0, 1). Got momentum={momentum}. Set optimizer.momentum=0.9.")
    least = -1e-9 * max(float(group["lr"]) for group in made.param_groups)  # a cosine ends near zero
    follows = isinstance(found, torch.optim.lr_scheduler.ReduceLROnPlateau)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps of the optimizer, which there are none
        for step in range(1, 1 if follows else steps):
            try:
                found.step()
            except (TypeError, ArithmeticError) as error:
                raise SlimError(
                    f"scheduler must run. Got {type(found).__name__}: {error}. Change scheduler.*."
                ) from error
            except ValueError:
                return  # it was told a number of steps of its own
            rate = float(made.param_groups[0]["lr"])
            if not least <= rate < math.inf:
                raise SlimError(
                    f"A learning rate must stay finite, at 0 or above. Got lr={rate:g} after {step / steps:.0%} of a "
                    f"phase, by {type(found).__name__}. Change scheduler.*."
                )


def check_warmup(config: Config, lr: float) -> None:
    """Refuse a warm-up that does not multiply the rates of the scheduler: some set each rate anew, whatever it was.

    Raises:
        SlimError: It is such a scheduler.
    """
    warmup = config.scheduler.get("warmup", 0.0)
    rise = round(warmup * 100)
    if not rise:
        return
    plain = config.model_copy(update={"scheduler": {**config.scheduler, "warmup": 0.0}})
    with contextlib.suppress(ValueError), warnings.catch_warnings():  # it was told a number of steps of its own
        warnings.simplefilter("ignore")
        rates, alone = (_rates(each, lr, 100, 1) for each in (config, plain))
        wanted = [rate * min(1.0, (step + 1) / (rise + 1)) for step, rate in enumerate(alone)]
        if max(abs(rate - want) for rate, want in zip(rates, wanted, strict=True)) > 0.02 * max(alone):
            raise SlimError(
                f"A warm-up multiplies rates, and {config.scheduler['_target_']} sets each anew. "
                f"Got scheduler.warmup={warmup}. Set scheduler.warmup=0."
            )


def check_length(config: Config, kind: str, steps: int) -> None:
    """Refuse a scheduler that ends before the phase ``kind`` of so many optimizer steps.

    Raises:
        SlimError: It would end the run in the middle of the phase.
    """
    if getattr(config.training(kind), "lr_rewind", None) is not None:
        return  # it has the rates of another phase
    made = optimizer(config, [nn.Parameter(torch.zeros(1))], base_rate(config, kind))
    found = scheduler(config, made, steps)
    needed = steps if found["interval"] == "step" else config.training(kind).epochs
    if (ends := getattr(found["scheduler"], "total_steps", needed)) < needed:
        raise SlimError(
            f"A scheduler must last as long as its phase. Got scheduler.total_steps={ends} for {needed} steps of "
            f"{kind}. Set scheduler.total_steps=100%."
        )


def learning_rates(config: Config, kind: str, steps_per_epoch: int) -> list[float]:
    """The learning rate of every optimizer step of a phase, by running its scheduler on an optimizer of one number.

    A scheduler that follows a metric is taken at its first rate.
    """
    total = steps_per_epoch * config.training(kind).epochs
    return _rates(config, base_rate(config, kind), total, steps_per_epoch)


def _rates(config: Config, lr: float, total: int, steps_per_epoch: int) -> list[float]:
    made = optimizer(config, [nn.Parameter(torch.zeros(1))], lr)
    made_scheduler = scheduler(config, made, total)
    every = 1 if made_scheduler["interval"] == "step" else steps_per_epoch
    rates = []
    follows = isinstance(made_scheduler["scheduler"], torch.optim.lr_scheduler.ReduceLROnPlateau)
    for step in range(total):
        rates.append(float(made.param_groups[0]["lr"]))
        made.step()
        if not follows and (step + 1) % every == 0 and step + 1 < total:
            made_scheduler["scheduler"].step()
    return rates


def base_rate(config: Config, kind: str) -> float:
    """The learning rate that a phase's optimizer is built with."""
    return float(config.training(kind).lr or config.optimizer.get("lr", 0.1))


def _training_options(config: Config, kind: str, names: Mapping[str, Any]) -> dict[str, Any]:
    training = config.training(kind)
    lr, make = base_rate(config, kind), lambda made, total: scheduler(config, made, total)
    if kind == "finetune" and config.finetune.lr_rewind is not None and config.first is not None:
        first = config.first
        lr, make = base_rate(config, first), _replay(config, first)
    found: dict[str, Any] = {
        "optimizer": lambda parameters: optimizer(config, parameters, lr),
        "scheduler": make,
        "label_smoothing": training.label_smoothing,
    }
    if training.lr is not None:
        found["lr"] = training.lr
    return found


def check_training(config: Config, kind: str) -> None:
    """Refuse options of the training phase ``kind`` that have no effect, since the module does not take them.

    Raises:
        SlimError: It names the option.
    """
    names, training = _parameters(target(config.module.get("_target_"), "module")), config.training(kind)
    # Who is given an optimizer, or a scheduler, has the learning rates of the phase.
    options: list[tuple[str, Any, str, tuple[str, ...]]] = [
        (f"{kind}.label_smoothing", training.label_smoothing, "0", ("label_smoothing",)),
        (f"{kind}.lr", training.lr, "null", ("lr", "optimizer")),
        (f"{kind}.lr_rewind", getattr(training, "lr_rewind", None), "null", ("scheduler",)),
        ("trainer.compile", config.trainer.compile, "false", ("compile",)),
    ]
    for key, given, none, takers in options:
        if given and not any(name in names for name in takers):
            raise SlimError(
                f"{key} must be an option of the module. Got {key}={given}, which {config.module['_target_']} does not "
                f"take. Set {key}={none}, and do it in the module."
            )


def _replay(config: Config, first: str) -> SchedulerFactory:
    """The last learning rates of the phase ``first``, as many as the fine-tune has steps.

    Learning-rate rewinding: Renda, Frankle & Carbin 2020, arXiv:2003.02389.
    """

    def make(made: Optimizer, total_steps: int) -> dict[str, Any]:
        per_epoch = total_steps // config.finetune.epochs
        rates = learning_rates(config, first, per_epoch)[-total_steps:]
        base = base_rate(config, first)
        factor = [rate / base for rate in rates]
        replayed = torch.optim.lr_scheduler.LambdaLR(made, lambda step: factor[min(step, len(factor) - 1)])
        return {"scheduler": replayed, "interval": "step"}

    return make


def _idle_options(names: Mapping[str, Any]) -> dict[str, Any]:
    """A module that is not trained still needs an optimizer where its constructor asks for one."""
    return {"optimizer": lambda parameters: torch.optim.SGD(parameters, 0.1)} if "optimizer" in names else {}


def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _steps(value: Any, total: int, name: str) -> Any:
    """``"50%"`` as a number of steps, also inside lists; the step at which that share is done.

    >>> _steps(["50%", "75%"], 10, "milestones"), _steps(3, 10, "step_size")
    ([5, 8], 3)
    """
    if isinstance(value, list):
        found = [_steps(item, total, name) for item in value]
        if name == "milestones" and not all(isinstance(item, int) for item in found):
            raise SlimError(f"milestones must be steps or shares. Got milestones={value}. Set [50%,75%].")
        if name == "milestones" and found != sorted(found):
            raise SlimError(
                f"milestones must be ascending. Got milestones={value}. Set scheduler.milestones=[50%,75%]."
            )
        return found
    if not isinstance(value, str) or not value.endswith("%"):
        return value
    try:
        share = float(value[:-1]) / 100
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise SlimError(f"A share of the phase must be in [0%, 100%]. Got {name}={value}. Set scheduler.{name}=50%.")
    return math.ceil(share * total - 1e-9)
