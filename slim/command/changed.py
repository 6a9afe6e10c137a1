"""Which of a run's overrides say something else than its experiment says by itself."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from slim.command.compose import composed, key_of, places
from slim.errors import SlimError


def changed(
    overrides: Sequence[str],
    config: Mapping[str, Any],
    choices: Mapping[str, Any],
    args: Any,
    keep: Collection[str] = (),
) -> list[str]:
    """The overrides whose value is not the experiment's default, and the experiment.

    Another ``data`` or ``model`` brings defaults of its own, with which the other values are compared.

    Args:
        overrides: Of the run.
        config: As they compose it, plain.
        choices: Group -> its choice in that configuration.
        args: Where Hydra looks for configuration.
        keep: Keys that stay whatever their value, such as those that a sweep varies.

    Returns:
        Some of ``overrides``; all of them where the experiment does not stand by itself.
    """
    named = [item for item in overrides if key_of(item) == "experiment"]
    where = tuple(places(args))
    try:
        alone, usual = _defaults(tuple(named), where)
        groups = {key for key in {*choices, *usual} if not key.startswith("hydra")} - {"experiment"}
        chosen = [item for item in overrides if key_of(item) in groups]
        given = _defaults((*named, *chosen), where)[0] if chosen else alone
    except SlimError:
        return list(overrides)

    def differs(key: str) -> bool:
        if key in groups:
            return bool(choices.get(key) != usual.get(key))
        return bool(_entry(config, key) != _value(given, key))

    return [item for item in overrides if (key := key_of(item)) in ("experiment", *keep) or differs(key)]


@functools.lru_cache(maxsize=32)
def _defaults(overrides: tuple[str, ...], where: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """A configuration and its choices."""
    from hydra._internal.utils import get_args_parser

    cfg = composed(list(overrides), get_args_parser().parse_args(list(where)))
    return cfg, dict(cfg.hydra.runtime.choices)


def _entry(config: Any, key: str) -> Any:
    """Of a dotted key in plain data; None where there is none."""
    for part in key.split("."):
        if isinstance(config, list) and part.isdecimal():
            config = config[int(part)]
        else:
            config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _value(config: Any, key: str) -> Any:
    """Of a dotted key, as plain data; a text of its own where it hangs on one that is not set."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.select(config, key)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except OmegaConfBaseException:
        return "???"
