"""Trace by running: one forward under a dispatch mode, on meta tensors, with channel ids riding along.

The weights are neither copied nor computed with: every parameter is replaced by a meta tensor for the length of the
forward, and put back. Only when an operation has no meta kernel, or the forward asks for values, real tensors are used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slim.channels.ids import Ids, IntArray, Shadow, alive, axis_layer, varying
from slim.channels.rules import combine, find_rule
from slim.errors import SlimError


class Axis(NamedTuple):
    """One axis of one parameter or buffer."""

    param: str
    dim: int


class Term(NamedTuple):
    """A factor of a layer's cost that follows the plan: (kept of ``ids``) / ``per``."""

    ids: IntArray
    per: int = 1


@dataclasses.dataclass
class Work:
    """Multiply-accumulates of one contraction: ``factor`` times the kept width of every term."""

    module: str
    kind: str
    weight: str | None
    factor: int
    terms: list[Term]
    ends: list[tuple[int, Term | None]]  # (elements per channel, channels) of its input and its output


@dataclasses.dataclass
class NormRead:
    """A normalization layer met in the forward."""

    kind: str
    module: str
    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    own: IntArray
    read: IntArray | None  # ids of the stream it reads; None where it reads fixed data
    split: bool = False  # whether its own channels may be fewer than the stream's


@dataclasses.dataclass
class Facts:
    """Everything one trace learned, in ids. :mod:`slim.channels.graph` turns it into groups."""

    ids: Ids
    axes: dict[Axis, IntArray] = dataclasses.field(default_factory=dict)
    grouped: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # weight -> groups; its axis 1 is stored per group
    regroup: dict[str, Axis] = dataclasses.field(default_factory=dict)  # module -> axis its group count equals
    work: list[Work] = dataclasses.field(default_factory=list)
    norms: list[NormRead] = dataclasses.field(default_factory=list)
    balance: list[tuple[str, IntArray]] = dataclasses.field(default_factory=list)
    inexact: list[tuple[IntArray, str]] = dataclasses.field(default_factory=list)
    assumptions: list[tuple[str, IntArray]] = dataclasses.field(default_factory=list)
    selects: list[tuple[str, IntArray, IntArray]] = dataclasses.field(default_factory=list)
    streams: dict[str, IntArray] = dataclasses.field(default_factory=dict)
    producers: list[tuple[str, IntArray]] = dataclasses.field(default_factory=list)
    raw_reads: list[IntArray] = dataclasses.field(default_factory=list)
    outputs: list[IntArray] = dataclasses.field(default_factory=list)
    scalars: list[tuple[float, Shadow]] = dataclasses.field(default_factory=list)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    real: bool = False


_STILL_THE_PRODUCT = {"view", "_unsafe_view", "reshape", "transpose", "permute", "expand", "clone", "add"}


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward and collects :class:`Facts`. ``known`` gives ids to parameters beforehand (the widening probe)."""

    def __init__(self, model: nn.Module, *, residual: str, grouped: str, facts: Facts, known: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.facts, self.ids, self.known = facts, facts.ids, known
        self.model, self.residual, self.grouped = model, residual, grouped
        self.names = {id(m): n for n, m in model.named_modules()}
        self.modules = dict(model.named_modules())
        self.stack: list[nn.Module] = []
        self.failed = ""
        self.meta = True
        self.scalars: list[tuple[float, Shadow]] = []
        self.conflicts: list[IntArray] = []
        self._where = ""
        self._normed: set[str] = set()
        self._split: dict[str, NormRead] = {}

    # --- the dispatch mode ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.meta:
            run_args, run_kwargs = self._on_meta(args, kwargs)
        else:
            run_args, run_kwargs = args, kwargs
        self._where = func.overloadpacket.__name__
        out = func(*run_args, **run_kwargs)
        if self.meta and run_args is not args and isinstance(out, torch.Tensor) and out is not args[0]:
            for before, after in zip(args, run_args, strict=False):
                if out is after:  # an in-place operation on a tensor that was moved to meta for it
                    out = before
        if not self._touched(args, kwargs):
            return out
        self._note_scalars(func, args)
        apply = find_rule(func)
        if apply is None:
            self.unknown(func, args, kwargs)
        else:
            apply(self, func, args, kwargs, out)
        contracted = getattr(args[0], "_slim_contracted", None) if args else None
        if contracted is not None and isinstance(out, torch.Tensor) and self._where in _STILL_THE_PRODUCT:
            out._slim_contracted = contracted  # type: ignore[attr-defined]
        return out

    def _note_scalars(self, func: Any, args: Any) -> None:
        """A number that looks computed from a width (1/C, sqrt(C)) would change with it: the probe has to tell."""
        values = [float(a) for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        if not values or torch.Tag.pointwise not in func.tags or not isinstance(args[0], torch.Tensor):
            return
        layers = self.get(args[0])
        contracted = getattr(args[0], "_slim_contracted", None)
        if contracted is not None:  # q k^T scaled by a function of the width it was summed over
            layers = (*layers, contracted)
        self.scalars += [(value, layers) for value in values]
        for layer in layers:
            for n in (layer.shape[d] for d in varying(layer)):
                if any(math.isclose(abs(v), w, rel_tol=1e-9) for v in values for w in (n, 1 / n, n**0.5, n**-0.5)):
                    self.facts.assumptions.append((self.here(), layer.ravel()))

    def _on_meta(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Real tensors (index buffers, constants made in the forward) meet meta ones: move them for this call."""
        found = [False, False]

        def look(t: torch.Tensor) -> torch.Tensor:
            found[t.is_meta] = True
            return t

        for a in (*args, *kwargs.values()):
            if isinstance(a, torch.Tensor):
                look(a)
            elif isinstance(a, (list, tuple)):
                for t in a:
                    if isinstance(t, torch.Tensor):
                        look(t)
        if not all(found):
            return args, kwargs

        def move(t: torch.Tensor) -> torch.Tensor:
            return t if t.is_meta else t.to("meta")

        moved: tuple[Any, Any] = tree_map_only(torch.Tensor, move, (args, kwargs))
        return moved

    def _touched(self, args: Any, kwargs: Any) -> bool:
        for a in (*args, *kwargs.values()):
            if isinstance(a, torch.Tensor):
                if hasattr(a, "_slim_ids") or hasattr(a, "_slim_param"):
                    return True
            elif isinstance(a, (list, tuple)) and any(
                isinstance(t, torch.Tensor) and (hasattr(t, "_slim_ids") or hasattr(t, "_slim_param")) for t in a
            ):
                return True
        return False

    # --- shadows -------------------------------------------------------------------------------------------------

    def get(self, tensor: torch.Tensor) -> Shadow:
        """The shadow of a tensor; a parameter gets one layer per axis when somebody first looks."""
        shadow: Shadow | None = getattr(tensor, "_slim_ids", None)
        if shadow is not None:
            return shadow
        if not hasattr(tensor, "_slim_param"):
            return ()
        layers = []
        for d, n in enumerate(tensor.shape):
            if n > 1:
                ids = self.axis_ids(tensor, d)
                if ids is not None and len(ids) == n:
                    layers.append(axis_layer(ids, d, tensor.ndim))
        tensor._slim_ids = tuple(layers)  # type: ignore[attr-defined]
        return tuple(layers)

    def set(self, tensor: torch.Tensor, shadow: Shadow) -> None:
        """Attach a shadow to a result."""
        tensor._slim_ids = shadow  # type: ignore[attr-defined]

    def axis_ids(self, tensor: torch.Tensor, dim: int) -> IntArray | None:
        """The ids (n,) along one axis, or None where they vary along nothing or along more."""
        name: str | None = getattr(tensor, "_slim_param", None)
        if name is None:
            found = None
            for layer in self.get(tensor):
                if varying(layer) == (dim,):
                    found = layer.ravel()
                elif layer.shape[dim] > 1:
                    self.pin(layer, "its weight is computed over several axes")
            return found
        if tensor.shape[dim] <= 1:
            return None
        return self._param_axis(name, dim, tensor.shape[dim])

    def _param_axis(self, name: str, dim: int, size: int) -> IntArray:
        axis = Axis(name, dim)
        ids = self.facts.axes.get(axis)
        if ids is None:
            ids = self.facts.axes[axis] = self.ids.fresh(size)
        return ids

    # --- verbs of the rules --------------------------------------------------------------------------------------

    def here(self) -> str:
        """Where in the model we are, for reasons."""
        name = self.names.get(id(self.stack[-1]), type(self.stack[-1]).__name__) if self.stack else ""
        return name or "forward"

    def join(self, left: IntArray, right: IntArray) -> None:
        """These ids stay or go together."""
        if self.known:
            left, right = np.broadcast_arrays(left, right)
            differ = self.ids.find(left.ravel()) != self.ids.find(right.ravel())
            if differ.any():
                self.conflicts += [left.ravel()[differ], right.ravel()[differ]]
            return
        self.ids.join(left, right, f"meets fixed data in {self._where} ({self.here()})")

    def pin(self, ids: IntArray, reason: str) -> None:
        """These ids cannot go."""
        if self.known:
            self.conflicts.append(ids.ravel())
            return
        self.ids.pin(ids, f"{reason} ({self.here()})")

    def fix(self, ids: IntArray) -> None:
        """These are positions (kernel taps, vocabulary rows), not channels."""
        if not self.known:
            self.ids.pin(ids, "")

    def inexact(self, ids: IntArray, reason: str) -> None:
        """Removable, but the rest will not compute the same."""
        self.facts.inexact.append((np.unique(ids), f"{reason} ({self.here()})"))

    def balance(self, blocks: IntArray, what: str) -> None:
        """Every row of ``blocks`` (blocks, n) must lose equally many."""
        if not self.known:
            self.facts.balance.append((f"{what} in {self.here()}", blocks))

    def assume(self, layer: IntArray, dim: int, stops: Sequence[int], what: str) -> None:
        """The axis is cut at ``stops``, which are shares of its width: every equal block keeps its share."""
        if self.known or not stops:
            return
        unit = math.gcd(layer.shape[dim], *[int(s) for s in stops])
        if unit == 1 and varying(layer) == (dim,):
            return self.pin(layer, f"{what} takes single channels by their position")
        blocks = np.moveaxis(layer, dim, 0).reshape(layer.shape[dim] // unit, -1)
        self.facts.balance.append((f"{what} in {self.here()}", blocks))
        self.facts.assumptions.append((self.here(), blocks.ravel()))

    def assume_columns(self, table: IntArray, what: str) -> None:
        """An axis is seen as (outer, inner): only whole columns of ``table`` can go, if ``inner`` follows the width."""
        if self.known:
            return
        self.join(table, table[:1])
        self.facts.assumptions.append((self.here(), table.ravel()))

    def assume_position(self, layer: IntArray, dim: int, what: str) -> None:
        """One position is taken along an axis that is part of a wider split."""
        if varying(layer) == (dim,):
            self.pin(layer, f"{what} takes channels by their position")
        elif not self.known:
            self.facts.assumptions.append((self.here(), layer.ravel()))

    def suppose(self, ids: IntArray) -> None:
        """These ids pass if the forward follows its widths; the probe will tell."""
        if not self.known:
            self.facts.assumptions.append((self.here(), ids.ravel()))

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a parameter or a buffer itself."""
        return hasattr(tensor, "_slim_param")

    def unknown(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operation we have no rule for: it pins what it touches, and is named."""
        op = func.overloadpacket.__name__
        self.facts.unknown.setdefault(op, self.here())
        tensors: list[torch.Tensor] = []
        tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
        for t in tensors:
            for layer in self.get(t):
                self.pin(layer, f"no rule for {op}")

    # --- normalization and selection -----------------------------------------------------------------------------

    def in_select_layer(self) -> bool:
        """Whether the innermost module is our own selection layer."""
        return bool(self.stack) and getattr(self.stack[-1], "is_channel_select", False)

    def selected(self, stream: IntArray, index: IntArray) -> IntArray:
        """The channels behind a selection layer: their own where streams are read selectively, else the stream's."""
        name, read = self.names[id(self.stack[-1])], stream[index]
        if self.known:
            return next(own for where, _, own in self.facts.selects if where == name)
        own = self.ids.fresh(len(read)) if self.residual == "select" else read
        self.facts.streams.setdefault(name, stream)  # in the stream's own order, for a new index
        self.facts.selects.append((name, read, own))
        return own

    def _name(self, tensor: Any) -> str | None:
        return getattr(tensor, "_slim_param", None) if isinstance(tensor, torch.Tensor) else None

    def norm(self, tensors: Sequence[Any], read: IntArray | None) -> IntArray | None:
        """Note a batch normalization; returns the ids of what it emits."""
        weight, bias, mean, var = (self._name(t) for t in tensors)
        module = self.here()
        if self.known:
            if read is not None and self.residual == "select":
                own = self.facts.axes.get(Axis(weight or mean or "", 0))
                return own if own is not None else read
            return read
        behind = self.stack and any(getattr(m, "is_channel_select", False) for m in self.stack[-1].children())
        earlier = self._split.get(weight or "")
        if earlier is not None and read is not None:
            if earlier.read is not None and not np.array_equal(earlier.read, read):
                # Read from two places: one selection cannot serve both, so it goes with what it reads.
                self.join(earlier.own, earlier.read)
                self.join(earlier.own, read)
                earlier.split = False
            return earlier.own
        if read is not None and self.residual == "select" and weight and weight not in self._normed and not behind:
            # Its own channels, until the graph shows that nobody else reads this stream.
            own = self._param_axis(weight, 0, len(read))
            note = NormRead("batch", module, weight, bias, mean, var, own, read, split=True)
            self._split[weight] = note
            self.facts.norms.append(note)
            return own
        own = read
        if own is None:
            first = next((t for t in tensors if self._name(t)), None)
            own = self.axis_ids(first, 0) if first is not None else None
            if own is not None:
                self.pin(own, "normalizes data that is not the network's own channels")
        if weight and weight in self._normed:
            return own
        self._normed.add(weight or "")
        if own is not None:
            self.facts.norms.append(NormRead("batch", module, weight, bias, mean, var, own, read))
        return own

    def other_norm(self, kind: str, weight: Any) -> None:
        """Note a layer or group normalization with a scale."""
        name = self._name(weight)
        if name and not self.known and weight.ndim == 1 and weight.numel() > 1:
            if name in self._normed:
                return
            self._normed.add(name)
            own = self._param_axis(name, 0, weight.numel())
            bias = name[: -len("weight")] + "bias"
            self.facts.norms.append(NormRead(kind, self.here(), name, bias, None, None, own, None))

    def per_channel_groups(self, weight: Any) -> None:
        """A group norm with one channel per group: its group count follows its width."""
        name = self._name(weight)
        if name and self.stack and hasattr(self.stack[-1], "num_groups"):
            self.facts.regroup[self.here()] = Axis(name, 0)
        elif weight is not None:
            self.pin(self._param_axis(name, 0, weight.numel()) if name else np.empty(0, np.int64), "fixed group count")

    # --- contractions --------------------------------------------------------------------------------------------

    def _link(self, incoming: IntArray | None, weight: IntArray | None, what: str) -> None:
        if incoming is not None and weight is not None:
            self.join(incoming, weight)
        elif incoming is not None:
            self.pin(incoming, f"{what} with a weight that is not the network's own")
        elif weight is not None:
            self.pin(weight, "reads data that is not the network's own channels")

    def convolve(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        incoming: IntArray | None,
        cin: int,
        cout: int,
        groups: int,
        in_axis: int,
        out_axis: int,
        factor: int,
        elements: tuple[int, int],
    ) -> IntArray | None:
        """Couple a convolution's channels. Returns the ids of its output, or None.

        ``factor`` is what multiplies (kept out) x (kept in / groups): batch x positions x kernel taps.
        """
        name = self._name(weight)
        if incoming is not None:
            self.facts.raw_reads.append(incoming)
        if not name:
            for layer in self.get(weight):
                if len(varying(layer)) > 1 or varying(layer)[0] > 1:
                    self.pin(layer, "its weight is computed over several axes")
        if groups == 1:
            own_in, own_out = self.axis_ids(weight, in_axis), self.axis_ids(weight, out_axis)
            self._link(incoming, own_in, "convolution")
        elif not name:
            own_in = own_out = None
            for ids in (incoming, self.axis_ids(weight, 0), self.axis_ids(weight, 1)):
                if ids is not None:
                    self.pin(ids, "a grouped convolution with a computed weight")
        else:
            own_in, own_out = self._grouped(name, weight, incoming, cin, cout, groups, in_axis, out_axis)
        if bias is not None and (bias_ids := self.axis_ids(bias, 0)) is not None:
            if own_out is not None:
                self.join(bias_ids, own_out)
            else:
                self.fix(bias_ids)
        came = incoming
        if self.here() in self.facts.regroup and groups > 1:
            own_in, incoming = None, None  # the group count follows the width, channels per group stay
        read = incoming if incoming is not None else own_in
        terms = [Term(ids, per) for ids, per in ((own_out, 1), (read, groups)) if ids is not None]
        constant = factor * (1 if own_out is not None else cout) * (1 if read is not None else cin // groups)
        ends: list[tuple[int, Term | None]] = [
            (elements[0] // cin, Term(came)) if came is not None else (elements[0], None),
            (elements[1] // cout, Term(own_out)) if own_out is not None else (elements[1], None),
        ]
        if not self.known:
            self.facts.work.append(Work(self.here(), "conv", name, constant, terms, ends))
            if own_out is not None and not (groups == cin and groups > 1):
                self.facts.producers.append((self.here(), own_out))
        return own_out

    def _grouped(
        self,
        name: str,
        weight: torch.Tensor,
        incoming: IntArray | None,
        cin: int,
        cout: int,
        groups: int,
        in_axis: int,
        out_axis: int,
    ) -> tuple[IntArray | None, IntArray | None]:
        """Depthwise: channels pass one by one. Grouped: each block loses equally many, or goes whole."""
        transposed = in_axis == 0
        split_axis = out_axis if transposed else in_axis  # the axis that the weight stores per group only
        full_axis = in_axis if transposed else out_axis
        own_full = self._param_axis(name, full_axis, weight.shape[full_axis])
        owner = self.modules.get(name.rpartition(".")[0])
        regroup = owner is not None and hasattr(owner, "groups")
        if groups == cin and (cout == cin or not transposed) and not (cin == cout == 1):
            if incoming is None:
                self.pin(own_full, "reads data that is not the network's own channels")
            else:
                self.join(own_full.reshape(cin, -1), incoming[:, None])
                if not regroup:
                    self.pin(own_full, "a depthwise convolution whose group count is not a module's")
            if owner is not None and regroup:
                self.facts.regroup[name.rpartition(".")[0]] = Axis(name, full_axis)
                if cout != cin:
                    self.facts.grouped[name] = groups
                    self._param_axis_full(name, split_axis, incoming, own_full.reshape(cin, -1)[:, 0])
            return own_full if transposed else (incoming if incoming is not None else None), own_full
        size = cout if transposed else cin
        axis = Axis(name, split_axis)
        own_split = self.facts.axes.get(axis)
        if own_split is None:
            own_split = self.facts.axes[axis] = self.ids.fresh(size)
        own_in, own_out = (own_full, own_split) if transposed else (own_split, own_full)
        self.facts.grouped[name] = groups
        self._link(incoming, own_in, "convolution")
        if self.known:
            return own_in, own_out
        blocks_in, blocks_out = own_in.reshape(groups, -1), own_out.reshape(groups, -1)
        if self.grouped == "whole":
            self.join(blocks_in, blocks_in[:, :1])
            self.join(blocks_out, blocks_in[:, :1])
            if regroup:
                self.facts.regroup[name.rpartition(".")[0]] = Axis(name, -1)
            else:
                self.pin(own_out, "a grouped convolution whose group count is not a module's")
        else:
            for ids, blocks, word in ((own_in, blocks_in, "reads"), (own_out, blocks_out, "has")):
                if blocks.shape[1] == 1:
                    self.pin(ids, f"a grouped convolution {word} one channel per group")
                else:
                    self.facts.balance.append((f"groups of {self.here()}", blocks))
        return own_in, own_out

    def _param_axis_full(self, name: str, dim: int, incoming: IntArray | None, ids: IntArray) -> None:
        self.facts.axes.setdefault(Axis(name, dim), incoming if incoming is not None else ids)

    def multiply(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, transposed: bool = False) -> Shadow:
        """Couple ``a @ b`` (``a @ b.T`` when ``transposed``). Returns the product's shadow."""
        rank = out.ndim
        ka, kb = a.ndim - 1, (b.ndim - 1 if transposed else b.ndim - 2)
        nb = b.ndim - 2 if transposed else b.ndim - 1
        read: IntArray | None = None
        columns: IntArray | None = None
        passing: list[IntArray] = []
        for layer in self.get(a):
            if varying(layer) == (ka,):
                read = layer.ravel()
            elif layer.shape[ka] > 1:
                self.pin(layer, "attention heads are kept whole")
            elif rank == 3 and a.ndim == 3 and b.ndim == 3 and varying(layer) == (0,):
                self.pin(layer, "a product over channels as if they were samples")
            else:
                passing.append(layer)
        if read is not None:
            out._slim_contracted = read  # type: ignore[attr-defined]
        width: Term | None = None
        for layer in self.get(b):
            where = varying(layer)
            if where == (kb,):
                columns = layer.ravel()
            elif layer.shape[kb] > 1:
                self.pin(layer, "attention heads are kept whole")
            elif nb in where:
                moved = np.moveaxis(layer, (kb, nb), (layer.ndim - 2, layer.ndim - 1))
                passing.append(moved.reshape((1,) * (rank - moved.ndim) + moved.shape))
                width = Term(layer.ravel(), layer.size // layer.shape[nb])
            else:
                self.pin(layer, "a product over channels as if they were samples")
        if a.shape[ka] > 1:
            self._link(read, columns, "a product")
        if read is not None:
            self.facts.raw_reads.append(read)
        m, k, n = out.numel() // out.shape[-1], a.shape[ka], out.shape[-1]
        rows: list[Term] = []
        for d in range(rank - 1):
            mine = [layer for layer in passing if layer.shape[d] > 1]
            if len(mine) == 1 and varying(mine[0]) == (d,):
                rows.append(Term(mine[0].ravel()))
                m //= mine[0].size
        terms = [t for t in (width, Term(read) if read is not None else None) if t is not None] + rows
        constant = m * (1 if read is not None else k) * (1 if width is not None else n)
        ends: list[tuple[int, Term | None]] = [
            (a.numel() // k, Term(read)) if read is not None else (a.numel(), None),
            (out.numel() // n, width) if width is not None else (out.numel(), None),
        ]
        owner = self.stack[-1] if self.stack else None
        is_layer = owner is not None and isinstance(getattr(owner, "weight", None), torch.Tensor)
        weight = f"{self.here()}.weight" if is_layer else None
        if not self.known:
            self.facts.work.append(Work(self.here(), "linear" if is_layer else "matmul", weight, constant, terms, ends))
            if width is not None and width.per == 1:
                self.facts.producers.append((self.here(), width.ids))
        if rank > 2 and len(passing) > 1:  # both operands may carry ids along the axes of samples
            combine(self, [((layer,), layer.shape) for layer in passing], (*out.shape[:-2], 1, 1))
        return alive(passing)


# --- running a forward without touching the model ------------------------------------------------------------------


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            inner: Any = model._orig_mod
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of arguments or a dict of keyword arguments, as (args, kwargs)."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


def meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor of the same shape, strides and dtype."""
    if tensor.is_meta:
        return tensor.detach()
    try:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    except RuntimeError:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


@contextmanager
def borrowed(model: nn.Module, *, meta: bool, training: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Lend the model stand-ins for its tensors and a mode, and give everything back.

    Parameters and float buffers become meta tensors (or detached views with ``meta=False``). Integer buffers keep their
    values in a copy: they are indices, and a forward may count in them.
    """
    stand_in: dict[int, torch.Tensor] = {}
    saved: list[tuple[dict[str, Any], str, Any]] = []
    states: list[tuple[nn.Module, dict[str, Any]]] = []
    named: dict[str, torch.Tensor] = {}

    def lend(name: str, store: dict[str, Any], key: str, buffer: bool) -> None:
        tensor = store[key]
        if tensor is None:
            return
        if id(tensor) not in stand_in:
            if buffer and not (tensor.is_floating_point() or tensor.is_complex()):
                other = tensor.detach() if tensor.is_meta else tensor.detach().clone()
            elif meta:
                other = meta_like(tensor)
            else:
                other = tensor.detach().clone() if buffer else tensor.detach()
            if other.is_floating_point():
                other._slim_param = name
            stand_in[id(tensor)] = other
            named[name] = other
        saved.append((store, key, tensor))
        store[key] = stand_in[id(tensor)]

    try:
        for prefix, module in model.named_modules():
            dot = prefix + "." if prefix else ""
            for key in list(module._parameters):
                lend(dot + key, module._parameters, key, buffer=False)
            for key in list(module._buffers):
                lend(dot + key, module._buffers, key, buffer=True)
            # Plain attributes too: a forward may keep something for the next one (anchors, masks).
            states.append((module, dict(module.__dict__)))
            module.training = training
        yield named
    finally:
        for store, key, tensor in reversed(saved):
            store[key] = tensor
        for module, state in states:
            module.__dict__.clear()
            module.__dict__.update(state)


@contextmanager
def module_stack(stack: list[nn.Module], failed: list[nn.Module]) -> Iterator[None]:
    """Keep ``stack`` the modules whose forward is running; on an exception note the innermost one in ``failed``."""

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        # A forward that raised and was caught by its caller leaves its modules behind: drop down to this one.
        while stack and stack.pop() is not module:
            pass

    before = nn_module.register_module_forward_pre_hook(enter)
    after = nn_module.register_module_forward_hook(leave)
    try:
        yield
    except Exception:
        failed += stack[-1:]
        raise
    finally:
        before.remove()
        after.remove()
        stack.clear()


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, dicts, dataclasses and plain objects."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, Mapping):
            parts: Any = value.values()
        elif isinstance(value, (list, tuple, set)):
            parts = value
        elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
            parts = vars(value).values()
        else:
            parts = ()
        for part in parts:
            yield from tensors_in(part, seen)


def run(tracer: Tracer, example_inputs: Any, *, meta: bool, training: bool = False) -> None:
    """One forward of ``tracer.model`` under the tracer.

    Raises:
        Exception: whatever the forward raised; ``tracer.failed`` then names the module.
    """
    tracer.meta = meta
    failed: list[nn.Module] = []

    def stand_in(t: torch.Tensor) -> torch.Tensor:
        other = meta_like(t) if meta else t.detach().clone()
        if training and other.ndim and other.shape[0] == 1:
            other = torch.cat([other, other])  # batch statistics need more than one sample
        return other

    args, kwargs = call_arguments(example_inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[], enabled=not meta):
        args, kwargs = tree_map_only(torch.Tensor, stand_in, (args, kwargs))
        with borrowed(tracer.model, meta=meta, training=training) as named:
            try:
                with module_stack(tracer.stack, failed), tracer:
                    out = tracer.model(*args, **kwargs)
            except Exception:
                tracer.failed = tracer.names.get(id(failed[-1]), "") if failed else ""
                raise
            for tensor in tensors_in(out):
                for layer in tracer.get(tensor):
                    tracer.facts.outputs.append(layer.ravel())
                    if not tracer.known:
                        tracer.ids.pin(layer, "is the model's output")
            del named


def collect(model: nn.Module, example_inputs: Any, *, residual: str, grouped: str) -> Facts:
    """Trace a network: an eval forward, and a train forward for what only training reaches (auxiliary heads)."""
    facts = Facts(Ids())
    tracer = Tracer(model, residual=residual, grouped=grouped, facts=facts)
    real_inputs = all(not t.is_meta for t in tensors_in(call_arguments(example_inputs)))
    real_model = all(not p.is_meta for p in model.parameters())
    try:
        run(tracer, example_inputs, meta=True)
    except Exception as error:
        op, where = tracer._where, tracer.failed or "forward"
        if not (real_inputs and real_model):
            raise SlimError(
                f"The forward must run on example_inputs; on meta tensors it failed. "
                f"Got {type(error).__name__}: {error} (op {op}, module {where}). "
                "Pass real example_inputs if it needs values; check their shape and dtype."
            ) from error
        facts = Facts(Ids(), real=True)
        tracer = Tracer(model, residual=residual, grouped=grouped, facts=facts)
        try:
            run(tracer, example_inputs, meta=False)
        except Exception as second:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in tensors_in(call_arguments(example_inputs))]
            raise SlimError(
                f"The forward must run on example_inputs. Got {type(second).__name__}: {second} (op {tracer._where}, "
                f"module {tracer.failed or 'forward'}, inputs {', '.join(shapes)}). Check their shape and dtype."
            ) from second
    facts.scalars = tracer.scalars
    reached = {axis.param for axis in facts.axes}
    if any(name not in reached and p.numel() > 1 for name, p in model.named_parameters()):
        again = Tracer(model, residual=residual, grouped=grouped, facts=facts)
        again._normed, again._split = tracer._normed, tracer._split
        work, selects = len(facts.work), len(facts.selects)
        with suppress(Exception):  # what only an unreachable forward uses stays unreached; the report says so
            run(again, example_inputs, meta=not facts.real, training=True)
        del facts.work[work:], facts.selects[selects:]  # counted once, as an eval forward
    return facts


__all__ = ["Axis", "Facts", "NormRead", "Term", "Tracer", "Work", "call_arguments", "collect", "combine", "unwrap"]
