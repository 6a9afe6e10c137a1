"""The plan: which channels stay, per parameter axis. Plain data: JSON, hashable, independent of weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from slim.channels.branches import Branch, Pass, Zero, replacement
from slim.channels.ids import IntArray
from slim.channels.settings import numbers
from slim.errors import SlimError, expect

FORMAT = "slim-plan"
VERSION = 2  # 1 had neither attributes nor replaced modules
MAX_WIDTH = 1 << 24  # no layer is wider; a file that claims so is refused before anything is allocated


class Keep(NamedTuple):
    """The entries of an axis that stay: ``kept`` (ascending) of ``size``."""

    size: int
    kept: IntArray

    def hex(self) -> str:
        """The kept entries as a bit mask in hexadecimal."""
        mask = np.zeros(self.size, dtype=bool)
        mask[self.kept] = True
        return np.packbits(mask).tobytes().hex()

    @classmethod
    def from_hex(cls, size: int, text: str) -> Keep:
        """The inverse of :meth:`hex`."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
        if len(bits) != -(-size // 8) * 8 or bits[size:].any():
            raise ValueError("mask and size disagree")
        return cls(size, np.flatnonzero(bits[:size]).astype(np.int64))

    def then(self, later: Keep) -> Keep:
        """What stays when ``later`` is applied to what stays here."""
        return Keep(self.size, self.kept[later.kept])


Axes = Mapping[tuple[str, int], Keep]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which channels of a dense network stay.

    Attributes:
        axes: (parameter or buffer name, axis) -> what stays of it. Axes that lose nothing are absent. For a grouped
            convolution's axis that is stored per group, the entry counts the channels of all groups.
        grouped: weight name of a grouped convolution -> its groups (its axis 1 is stored per group).
        regroup: module name -> its new number of groups.
        selects: normalization module name -> what stays of the stream it reads.
        widths: module name -> (dense, kept) output channels, for every layer that makes channels.
        replaced: module name -> what stands for it in a residual branch that is gone: ``pass``, ``zero`` or ``zero+n``.
        attributes: module name -> attribute -> the number of channels or heads it holds now (``name[i]`` is an entry).
        inputs: shapes and dtypes of the example input (nested lists and dicts), for a check forward; None when unknown.
    """

    axes: Axes
    grouped: Mapping[str, int]
    regroup: Mapping[str, int]
    selects: Mapping[str, Keep]
    widths: Mapping[str, tuple[int, int]]
    inputs: Any = None
    attributes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    replaced: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is removed."""
        return not self.axes and not self.selects and not self.replaced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @cached_property
    def hash(self) -> str:
        """A SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON; equal masks are written once."""
        sets: dict[tuple[int, str], int] = {}

        def number(keep: Keep) -> int:
            return sets.setdefault((keep.size, keep.hex()), len(sets))

        axes: dict[str, list[list[int]]] = {}
        for (name, dim), keep in sorted(self.axes.items()):
            axes.setdefault(name, []).append([dim, number(keep)])
        body = {
            "format": FORMAT,
            "version": 1,
            "axes": axes,
            "grouped": dict(sorted(self.grouped.items())),
            "regroup": dict(sorted(self.regroup.items())),
            "selects": {k: number(v) for k, v in sorted(self.selects.items())},
            "widths": {k: list(v) for k, v in self.widths.items()},
            "inputs": self.inputs,
            "sets": [list(key) for key in sets],
        }
        if self.attributes:  # without it a plan is what it was in version 1
            body["version"] = VERSION
            body["attributes"] = {k: dict(sorted(v.items())) for k, v in sorted(self.attributes.items())}
        if self.replaced:
            body["version"] = VERSION
            body["replaced"] = dict(sorted(self.replaced.items()))
        return json.dumps(body, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan.

        Raises:
            SlimError: when the text is no plan, or claims impossible sizes.
        """
        try:
            body = json.loads(text)
            if body["format"] != FORMAT or body["version"] not in range(1, VERSION + 1):
                raise ValueError(f"format {body['format']!r} version {body['version']!r}")
            sets = []
            for size, mask in body["sets"]:
                if not (isinstance(size, int) and 0 < size <= MAX_WIDTH and len(mask) == 2 * -(-size // 8)):
                    raise ValueError(f"a channel set of size {str(size)[:20]}")
                keep = Keep.from_hex(size, mask)
                if not len(keep.kept):
                    raise ValueError("a layer without channels")
                sets.append(keep)

            def pick(number: Any) -> Keep:
                if not (isinstance(number, int) and 0 <= number < len(sets)):
                    raise ValueError(f"set {number!r}")
                return sets[number]

            return cls(
                axes={(str(n), int(d)): pick(s) for n, entries in body["axes"].items() for d, s in entries},
                grouped={str(k): _positive(v) for k, v in body["grouped"].items()},
                regroup={str(k): _positive(v) for k, v in body["regroup"].items()},
                selects={str(k): pick(v) for k, v in body["selects"].items()},
                widths={str(k): (int(a), int(b)) for k, (a, b) in body["widths"].items()},
                inputs=body["inputs"],
                replaced={str(k): _replacement(v) for k, v in body.get("replaced", {}).items()},
                attributes={
                    str(module): {str(k): _positive(v) for k, v in values.items()}
                    for module, values in body.get("attributes", {}).items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise SlimError(
                f"A plan must be {FORMAT} JSON of version {VERSION}. Got {type(error).__name__}: {str(error)[:120]}. "
                "Write it with plan.to_json()."
            ) from None

    def diff(self, other: Plan) -> str:
        """Layers whose widths or channels differ, one per line; empty when the plans are equal."""
        expect("other", other, Plan, "Give a plan, like that of slim.select.")
        lines = []
        for name in dict.fromkeys((*self.widths, *other.widths)):
            mine, theirs = self.widths.get(name), other.widths.get(name)
            if mine != theirs:
                lines.append(f"{name}: {_width(mine)} | {_width(theirs)}")
        named = {line.partition(":")[0] for line in lines}
        for (param, dim), keep in sorted(self.axes.items()):
            match, module = other.axes.get((param, dim)), param.rpartition(".")[0]
            if module not in named and (match is None or not np.array_equal(match.kept, keep.kept)):
                lines.append(f"{module}: other channels of {param}, axis {dim}")
                named.add(module)
        for param, dim in sorted(set(other.axes) - set(self.axes)):
            module = param.rpartition(".")[0]
            if module not in named:
                lines.append(f"{module}: other channels of {param}, axis {dim}")
                named.add(module)
        return "\n".join(lines)

    def then(self, later: Plan) -> Plan:
        """One plan for this plan followed by ``later`` (which was made for this plan's thin network)."""
        expect("later", later, Plan, "Give a plan, like that of slim.select.")
        axes = dict(self.axes)
        for key, keep in later.axes.items():
            mine = axes.get(key)
            if mine is not None and len(mine.kept) != keep.size:
                raise SlimError(
                    f"Plans compose only when the later one was made for the thin network. Got {key[0]} with "
                    f"{len(mine.kept)} channels, expected {keep.size}. Trace the rebuilt network again."
                )
            axes[key] = mine.then(keep) if mine is not None else keep
        selects: dict[str, Keep] = {}
        for name in dict.fromkeys((*self.selects, *later.selects)):
            # A plan that does not say what a norm reads of its stream lets it read all: its own channels are those.
            own = (f"{name}.weight" if name else "weight", 0)
            streams = [plan.selects.get(name) or plan.axes.get(own) for plan in (self, later)]
            told = [stream for stream in streams if stream is not None]
            selects[name] = told[0].then(told[1]) if len(told) > 1 else told[0]
        widths = {k: (v[0], later.widths.get(k, (0, v[1]))[1]) for k, v in self.widths.items()}
        gone = Branch("", later.replaced)
        axes = {key: keep for key, keep in axes.items() if not gone.holds(key[0])}
        return Plan(
            axes=axes,
            grouped={k: v for k, v in {**later.grouped, **self.grouped}.items() if not gone.holds(k)},
            regroup={k: v for k, v in {**self.regroup, **later.regroup}.items() if not gone.holds(k)},
            attributes={
                name: {**self.attributes.get(name, {}), **later.attributes.get(name, {})}
                for name in (*self.attributes, *later.attributes)
                if not gone.holds(name)
            },
            replaced={**self.replaced, **later.replaced},
            selects=selects,
            widths=widths or dict(later.widths),
            inputs=self.inputs if self.inputs is not None else later.inputs,
        )

    def validate(self, model: nn.Module) -> None:
        """Check that this plan was made for a network of these shapes.

        Raises:
            SlimError: naming the layer, the expected and the found width.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for (name, dim), keep in self.axes.items():
            layer = name.rpartition(".")[0]
            tensor = tensors.get(name)
            if tensor is None or not 0 <= dim < tensor.ndim:
                raise SlimError(
                    f"A plan must match its network. Got a plan for {name} (layer {layer}), which the model lacks. "
                    "Build the network the plan was made for."
                )
            found = tensor.shape[dim] * (self.grouped.get(name, 1) if dim == 1 else 1)
            if found != keep.size:
                again = "It seems to be applied already. " if found == len(keep.kept) else ""
                raise SlimError(
                    f"A plan must match its network. Got layer {layer}: expected width {keep.size}, found {found} "
                    f"({name}, axis {dim}). {again}Apply it once, to the dense network it was made for."
                )
        modules = dict(model.named_modules())
        for name in (*self.regroup, *self.selects, *self.attributes, *self.replaced):
            if name not in modules:
                raise SlimError(
                    f"A plan must match its network. Got a plan for layer {name}, which the model lacks. "
                    "Build the network the plan was made for."
                )
        for name, values in self.attributes.items():
            # Set where nobody reads it, the forward would go on with the dense network's number.
            if lacking := values.keys() - dict(numbers(modules[name])).keys():
                raise SlimError(
                    f"A plan must match its network. Got {name or 'the model'} without a whole number "
                    f"{min(lacking)}, which the plan sets. Build the network the plan was made for."
                )
        for name in self.replaced:
            if isinstance(modules[name], (Pass, Zero)):
                raise SlimError(
                    f"A plan must match its network. Got layer {name}: its branch is gone already. "
                    "Apply it once, to the dense network it was made for."
                )


def _replacement(value: Any) -> str:
    replacement(str(value))
    return str(value)


def _positive(value: Any) -> int:
    if not (isinstance(value, int) and 0 < value <= MAX_WIDTH):
        raise ValueError(f"a group count of {str(value)[:20]}")
    return value


def _width(pair: tuple[int, int] | None) -> str:
    return f"{pair[0]} -> {pair[1]}" if pair else "absent"
