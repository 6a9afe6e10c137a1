"""Numbers that modules keep of their own widths (heads, splits, inner widths), found by trying, not by name.

A forward that says ``x.view(B, N, self.num_heads, self.head_dim)`` takes a width from an attribute. When the widened
network of the probe stumbles there, every whole number that a running module holds, and that equals a size the forward
used, is tried: with it set to the new width, does the forward get further?
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from slim.channels.ids import IntArray, compress, varying
from slim.channels.trace_record import SizeUse, TraceRecord

Settings = dict[tuple[str, str], IntArray]
"""(module, attribute) -> the ids whose number it is; ``attribute[2]`` is an entry of a list."""

MOST_TOGETHER = 2  # attributes that are tried at once; entries of one list may be more
MOST_CANDIDATES = 8


class Outcome(NamedTuple):
    """How far a forward of the widened network came: operations, and where and with which ids it went wrong.

    ``by_width``: the ids are those of layers as wide as a number that it used. ``counted``: it came to its end, and
    computed with another number where the widths are others.
    """

    passed: bool
    steps: int
    modules: tuple[str, ...]
    ids: list[IntArray]
    by_width: bool = False
    counted: bool = False


class Candidate(NamedTuple):
    """An attribute of a class of modules, and the size that it seems to be: the ``use``-th that such a module gives."""

    kind: type
    attribute: str
    use: int


def settings_that_help(
    model: nn.Module,
    record: TraceRecord,
    outcome: Outcome,
    outcome_of: Callable[[Settings], Outcome],
    hopeless: set[tuple[Candidate, ...]],
) -> Settings | None:
    """The settings so far and the fewest others with which the forward gets further than ``outcome``; None without.

    ``hopeless`` gathers what did not help, so that it is not tried in the next module of the same class.
    """
    modules = dict(model.named_modules())
    uses = _uses(record)
    found = list(dict.fromkeys(_candidates(outcome, modules, uses, record)))[:MOST_CANDIDATES]
    done: set[frozenset[tuple[tuple[str, str], bytes]]] = set()
    for chosen in _combinations(found):
        if chosen in hopeless:
            continue
        added = _of_all(chosen, modules, uses, record)
        key = frozenset((name, widths.tobytes()) for name, widths in added.items())
        if not added or key in done:
            continue
        done.add(key)
        tried = outcome_of({**record.settings, **added})
        if tried.passed or tried.steps > outcome.steps:
            return {**record.settings, **added}
        hopeless.add(chosen)
    return None


def _combinations(found: list[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """What is tried, the fewest first: one or two attributes, then more entries of one list (sizes of a split)."""
    for count in range(1, len(found) + 1):
        for chosen in itertools.combinations(found, count):
            names = {(c.kind, c.attribute) for c in chosen}
            lists = {(c.kind, c.attribute.partition("[")[0]) for c in chosen if c.attribute.endswith("]")}
            one_list = len(lists) == 1 and all(c.attribute.endswith("]") for c in chosen)
            if len(names) == count and (count <= MOST_TOGETHER or one_list):
                yield chosen


def _uses(record: TraceRecord) -> dict[str, list[SizeUse]]:
    """The sizes that every module's forward used, its children's included, in order."""
    uses: dict[str, list[SizeUse]] = {}
    for use in record.sizes:
        for name in use.modules[:3]:
            uses.setdefault(name, []).append(use)
    return uses


def widths_of(use: SizeUse, record: TraceRecord) -> IntArray | None:
    """The ids that the size counts, (n,); None where they do not vary along its axis alone."""
    tight = compress(record.ids.find(use.layer))
    return tight.ravel() if varying(tight) == (use.axis,) else None


def _candidates(
    outcome: Outcome, modules: dict[str, nn.Module], uses: dict[str, list[SizeUse]], record: TraceRecord
) -> Iterator[Candidate]:
    """Attributes that hold a size of ids that met the failure: another stream may have the same number of channels."""
    met = np.unique(np.concatenate([record.ids.find(ids) for ids in outcome.ids])) if outcome.ids else None
    seen: set[tuple[type, str, bytes]] = set()
    for name in [name for name in outcome.modules if not is_of_torch(modules.get(name))][:3]:
        module = modules.get(name)
        for attribute, value in numbers(module):
            if (name, attribute) in record.settings:
                continue
            for i, use in enumerate(uses.get(name, [])):
                if value != use.layer.shape[use.axis] or value < 2:
                    continue
                widths = widths_of(use, record)
                if widths is None or not (met is None or np.isin(widths, met).any()):
                    continue
                if (type(module), attribute, widths.tobytes()) not in seen:
                    seen.add((type(module), attribute, widths.tobytes()))
                    yield Candidate(type(module), attribute, i)


def _of_all(
    chosen: tuple[Candidate, ...],
    modules: dict[str, nn.Module],
    uses: dict[str, list[SizeUse]],
    record: TraceRecord,
) -> dict[tuple[str, str], IntArray]:
    """The candidates' attributes in every module of their classes in which they hold the size they should."""
    settings = {}
    for name, module in modules.items():
        for candidate in chosen:
            mine = uses.get(name, [])
            if type(module) is not candidate.kind or candidate.use >= len(mine):
                continue
            use = mine[candidate.use]
            widths = widths_of(use, record)
            if widths is not None and dict(numbers(module)).get(candidate.attribute) == len(widths):
                settings[name, candidate.attribute] = widths
    return settings


def is_of_torch(module: Any) -> bool:
    """Whether the module's class is PyTorch's: the widths of such a module are those of its parameters."""
    return type(module).__module__.startswith("torch.nn.")


def numbers(module: Any) -> Iterator[tuple[str, int]]:
    """The whole numbers that a module holds as attributes, or in attributes that are lists or tuples."""
    for name, value in vars(module).items() if module is not None else ():
        if type(value) is int and not name.startswith("_"):
            yield name, value
        elif isinstance(value, (list, tuple)) and 0 < len(value) < 64:
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(value) if type(part) is int)


def set_number(module: Any, attribute: str, value: int) -> None:
    """Set an attribute, or with ``name[i]`` an entry of it."""
    name, _, index = attribute.rstrip("]").partition("[")
    if not index:
        setattr(module, name, value)
        return
    parts = list(getattr(module, name))
    parts[int(index)] = value
    kind = type(getattr(module, name))
    setattr(module, name, parts if kind is list else kind(*parts) if hasattr(kind, "_fields") else kind(parts))
