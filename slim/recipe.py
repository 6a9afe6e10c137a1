"""How a dense network is built: the path of a builder and plain arguments, kept in an artifact beside the weights.

A file that names a callable decides what its reader runs. So a recipe is plain data, and by default only builders of
this package and timm are called, with arguments that make them read no other file and no address.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from slim.errors import SlimError
from slim.importing import callable_at

TARGET = "_target_"
BUILDERS = (
    *("vgg", "resnet", "preresnet", "densenet", "mlp"),
    *("torchvision_model", "timm_model", "transformers_model", "detection_model", "segmentation_model"),
)
TRUSTED = (*(f"slim.models.{name}" for name in BUILDERS), "timm.create_model")
"""Builders that a file may name."""

# Arguments by which a builder would read something else than this file.
_READS = re.compile(r"pretrain|checkpoint|weight|cache|path|file|url|dir|hub|trust|remote|token|revision|overlay")
_HARMLESS = ("init_weights", "drop_path", "drop_path_rate", "drop_path_prob")
"""Arguments that are named alike: how weights begin, and the probability that a branch is left out."""
_PLAIN = re.compile(r"[\w.+\-]*")


def describe(builder: Mapping[str, Any], where: str = "builder") -> dict[str, Any]:
    """``builder`` as it is stored.

    Args:
        builder: ``{"_target_": "package.function", **arguments}``; arguments are numbers, texts, lists and mappings.
        where: For the message.

    Raises:
        SlimError: No dotted path, or arguments that JSON does not hold.

    >>> describe({"_target_": "slim.models.vgg", "widths": (8, "M", 16), "num_classes": 10})
    {'_target_': 'slim.models.vgg', 'widths': [8, 'M', 16], 'num_classes': 10}
    """
    target = builder.get(TARGET) if isinstance(builder, Mapping) else None
    if not isinstance(target, str) or "." not in target or not all(map(str.isidentifier, target.split("."))):
        raise SlimError(
            f"A builder must be named by its dotted path. Got {TARGET}={target!r} ({where}). "
            f'Give {{"{TARGET}": "package.function", ...}}.'
        )
    try:
        stored: dict[str, Any] = json.loads(json.dumps(dict(builder), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SlimError(
            f"A builder takes plain data. Got {error} ({target}, {where}). Give numbers, texts and lists."
        ) from None
    return stored


def build(builder: Mapping[str, Any], *, trust: bool = False, where: str = "builder") -> nn.Module:
    """The dense network of a recipe.

    Args:
        builder: As :func:`describe` gives it.
        trust: Also call what is not in :data:`TRUSTED`, with any arguments. It is code that the file chooses.
        where: For the message.

    Raises:
        SlimError: A builder that is not trusted or cannot be imported, or whose arguments do not fit.

    >>> type(build({"_target_": "slim.models.vgg", "num_classes": 10, "depth": 11})).__name__
    'VGG'
    >>> build({"_target_": "os.system", "command": "ls"})
    Traceback (most recent call last):
    slim.errors.SlimError: A file may name only builders that are known to be harmless. Got os.system (builder). ...
    """
    stored = describe(builder, where)
    if not trust:
        check(stored, where)
    target = str(stored.pop(TARGET))
    made = _call(callable_at(target, f"The builder in {where}"), stored, target, where)
    if not isinstance(made, nn.Module):
        raise SlimError(
            f"A builder must give a torch.nn.Module. Got {type(made).__name__} ({target}, {where}). Name another."
        )
    return made


def check(builder: Mapping[str, Any], where: str = "builder") -> None:
    """Refuse what is not known to be harmless.

    Raises:
        SlimError: The builder is not in :data:`TRUSTED`, or an argument could make it read something else.
    """
    options = describe(builder, where)
    target = str(options.pop(TARGET))
    if target not in TRUSTED:
        raise SlimError(
            f"A file may name only builders that are known to be harmless. Got {target} ({where}). "
            "If you trust the file, load it with trust=True (--trust), or give the dense network yourself."
        )
    for key, value in _flat(options):
        reads = _READS.search(key) is not None and value not in (None, False) and key not in _HARMLESS
        if reads or (isinstance(value, str) and not _PLAIN.fullmatch(value)):
            raise SlimError(
                f"A file may give its builder only plain arguments. Got {key}={value!r} ({target}, {where}). "
                "If you trust the file, load it with trust=True (--trust), or give the dense network yourself."
            )


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Every single value, under the innermost key that holds it; keys of nested mappings count as values, too."""
    if isinstance(value, Mapping):
        return [pair for name, item in value.items() for pair in ((key, name), *_flat(item, name))]
    if isinstance(value, list):
        return [pair for item in value for pair in _flat(item, key)]
    return [(key, value)]


def _call(builder: Any, options: Mapping[str, Any], target: str, where: str) -> Any:
    """Build, without moving the caller's random generators."""
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            return builder(**options)
    except SlimError:
        raise
    except Exception as error:
        raise SlimError(
            f"A builder must build with its arguments. Got {type(error).__name__}: {error} ({target}, {where}). "
            "Change them."
        ) from error
