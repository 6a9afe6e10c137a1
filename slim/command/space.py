"""Hydra's syntax for sweeps as Optuna's distributions: choice, range, interval, with tag(log, ...) and int(...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slim.errors import SlimError
from slim.sweeps.seeds import without_error
from slim.sweeps.storage import optuna


def parse(arguments: Sequence[str], loader: Any = None) -> tuple[dict[str, Any], list[str]]:
    """Sort overrides into what is searched and what is fixed; of two with the same key the last counts.

    ===============================  =================================================
    ``model=vgg,resnet``             one of the values, which have no order
    ``lr=choice(0.1,0.01)``          the same
    ``seed=range(0,5)``              whole numbers 0 to 4, as in a basic sweep
    ``ratio=range(0.3,0.75,0.1)``    0.3 to 0.7 in steps of 0.1
    ``lam=interval(0,1)``            any number between
    ``n=int(interval(1,9))``         whole numbers 1 to 9
    ``lr=tag(log,interval(1e-4,1))`` any number between, evenly in its logarithm
    ===============================  =================================================

    ``shuffle`` and ``sort`` say in which order a basic sweep goes; here they change nothing.

    Returns:
        Key -> distribution, and the other overrides.

    Raises:
        SlimError: A sweep that is no set of values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    space: dict[str, Any] = {}
    fixed: dict[str, str] = {}
    for item in OverridesParser.create(config_loader=loader).parse_overrides(list(arguments)):
        key = item.get_key_element()
        space.pop(key, None), fixed.pop(key, None)
        if item.is_sweep_override():
            space[key] = _distribution(item)
        else:
            fixed[key] = str(item.input_line) if item.is_delete() else f"{key}={item.get_value_element_as_str()}"
    return space, list(fixed.values())


def line(key: str, value: Any) -> str:
    """A value as an override.

    >>> line("prune.ratio", 0.1 + 0.2), line("trainer.compile", True), line("finetune.lr", None)
    ('prune.ratio=0.3', 'trainer.compile=true', 'finetune.lr=null')
    """
    if value is None or isinstance(value, bool):
        return f"{key}={'null' if value is None else str(value).lower()}"
    if isinstance(value, float):
        short = _rounded(value)
        return f"{key}={short if math.isclose(short, value, rel_tol=1e-14) else value!r}"
    return f"{key}={value}"


def probes(space: dict[str, Any]) -> list[list[str]]:
    """A few points in which every choice and every end of a range occurs: what can be checked before any job begins."""
    ends = {key: _ends(distribution) for key, distribution in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    points = [first] + [{**first, key: value} for key, values in ends.items() for value in values[1:]]
    return [[line(key, value) for key, value in point.items()] for point in points]


def _ends(distribution: Any) -> list[Any]:
    choices = getattr(distribution, "choices", None)
    return list(choices) if choices is not None else list(dict.fromkeys((distribution.low, distribution.high)))


def _distribution(item: Any) -> Any:
    from hydra.core.override_parser.types import Transformer

    value, found = item.value(), optuna().distributions
    if item.is_choice_sweep():
        value.shuffle = False  # Optuna compares the order of choices
        typed = item.sweep_iterator(transformer=Transformer.identity)
        # Numbers stay numbers; the rest stays as it can be written again.
        plain = [
            choice if isinstance(choice, int | float) else text
            for choice, text in zip(typed, item.sweep_string_iterator(), strict=True)
        ]
        if not plain:
            raise SlimError(f"A choice is of something. Got {item.input_line}, which no name fits. Check the pattern.")
        return found.CategoricalDistribution(list(dict.fromkeys(plain)))
    log = "log" in value.tags
    values = sorted(value.range() if item.is_range_sweep() else (value.start, value.end))
    if log and values and values[0] <= 0:
        raise SlimError(f"A logarithm is of numbers above 0. Got {item.input_line}. Raise the lower end.")
    if item.is_range_sweep():
        return _range(values, abs(value.step), log, item)
    low, high = values
    if isinstance(low, int) and isinstance(high, int):
        return found.IntDistribution(low, high, log=log)
    return found.FloatDistribution(float(low), float(high), log=log)


def _range(values: list[Any], step: Any, log: bool, item: Any) -> Any:
    found = optuna().distributions
    if not values or (log and (step != 1 or isinstance(values[0], float))):
        raise SlimError(
            f"A range holds values; only one of whole numbers in steps of 1 can be logarithmic. Got {item.input_line}. "
            "Write tag(log,interval(low,high))."
        )
    if all(isinstance(value, int) for value in values):
        return found.IntDistribution(values[0], values[-1], step=step, log=log)
    # Optuna would leave out the last value where its error is below it.
    low, high = (without_error(value, step) for value in (values[0], values[-1]))
    return found.FloatDistribution(low, high, step=float(step))


def _rounded(value: float) -> float:
    """Without the error with which steps of floats add up, which nobody has written."""
    return float(f"{value:.12g}")
