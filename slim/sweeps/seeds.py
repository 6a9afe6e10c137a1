"""Samplers and pruners from the configuration; a sampler draws anew for every trial, from its seed and the trial."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from slim.runs.construct import construct, target
from slim.sweeps.storage import optuna

IN_ORDER = ("QMCSampler", "GridSampler", "BruteForceSampler")
"""Samplers whose seed chooses an order for the whole study, and whose state lives in the storage."""


def sampler(spec: Mapping[str, Any], ordinal: Callable[[Any, Any], int], space: Mapping[str, Any]) -> Any:
    """The sampler of a study.

    A generator that begins again with every process would give a resumed sweep, or a second machine, the values that
    the first one had. So the draws of a trial depend on nothing but the seed, what the study knows, and which trial it
    is: a sweep that was killed goes on with the values that it would have had.

    Args:
        spec: ``_target_`` and options.
        ordinal: Of a trial of a study: how many count before it.
        space: Name -> distribution.
    """
    found = optuna()
    kind = target(spec.get("_target_"), "hydra.sweeper.sampler")
    options = dict(spec)
    if kind is found.samplers.GridSampler and "search_space" not in options:
        options["search_space"] = {name: _grid(distribution) for name, distribution in space.items()}
    seed = options.get("seed")
    if seed is None or "seed" not in inspect.signature(kind).parameters or kind.__name__ in IN_ORDER:
        return _made(options)
    _made(options)  # what is wrong with it is told now, not by the first trial
    return _seeded(lambda number: _made({**options, "seed": (int(seed) + 1_000_003 * number) % 2**32}), ordinal)


def pruner(spec: Mapping[str, Any] | None) -> Any:
    """The pruner of a study; one that prunes nothing for ``None``."""
    if not spec or not spec.get("_target_"):
        return optuna().pruners.NopPruner()
    return _made(spec, "hydra.sweeper.pruner")


def _made(spec: Mapping[str, Any], key: str = "hydra.sweeper.sampler") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
        return construct(spec, key)


def without_error(value: float, step: float) -> float:
    """A value that was reached by steps, without the error with which floats add up.

    >>> without_error(-0.3 + 3 * 0.1, 0.1)
    0.0
    """
    return round(value, 12 - math.floor(math.log10(step))) + 0.0


def _grid(distribution: Any) -> list[Any]:
    from slim.errors import SlimError

    found = optuna().distributions
    if isinstance(distribution, found.CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, found.IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, found.FloatDistribution) and distribution.step:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        low, step = distribution.low, distribution.step
        return [without_error(low + index * step, step) for index in range(count)]
    raise SlimError(
        f"A grid needs values to count. Got {distribution}. Give choice(...) or range(...), or another sampler."
    )


def _seeded(make: Callable[[int], Any], ordinal: Callable[[Any, Any], int]) -> Any:
    class SeededByTrial(optuna().samplers.BaseSampler):  # type: ignore[misc]
        """Asks a sampler that was made for the trial."""

        def __init__(self) -> None:
            self.made: dict[int, Any] = {}

        def of(self, study: Any, trial: Any) -> Any:
            if trial.number not in self.made:
                self.made = {trial.number: make(ordinal(study, trial))}
            return self.made[trial.number]

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.of(study, trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.of(study, trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.of(study, trial).sample_independent(study, trial, param_name, param_distribution)

        def before_trial(self, study: Any, trial: Any) -> None:
            self.of(study, trial).before_trial(study, trial)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            self.of(study, trial).after_trial(study, trial, state, values)

        def reseed_rng(self) -> None:
            pass

    return SeededByTrial()
