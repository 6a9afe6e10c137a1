"""Plan in hand: mask (zero what goes) or rebuild (remove it). Both compute the same function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.prune import BasePruningMethod

from slim.channels.branches import Branch, is_original, replacement
from slim.channels.check import check_forward
from slim.channels.duplicate import deep_copy, duplicate
from slim.channels.ids import IntArray
from slim.channels.meta_forward import unwrap
from slim.channels.optimizer_states import forget_unsliceable, nested
from slim.channels.plan import Keep, Plan
from slim.channels.select_layer import set_select, unset_select
from slim.channels.settings import set_number
from slim.errors import SlimError, expect

PLAN = "_slim_plan"
SLAB = 2**16
"""Elements of a big parameter that are cut at a time."""


def plan_of(model: nn.Module) -> Plan | None:
    """The plan, from the dense original, that made ``model``; None for a network that was never rebuilt."""
    plan: Plan | None = getattr(unwrap(model), PLAN, None)
    return plan


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _cuts(plan: Plan) -> dict[str, list[tuple[int, Keep]]]:
    cuts: dict[str, list[tuple[int, Keep]]] = {}
    for (name, dim), keep in plan.axes.items():
        cuts.setdefault(name, []).append((dim, keep))
    return cuts


def _grouped_blocks(
    plan: Plan, name: str, cuts: list[tuple[int, Keep]], shape: torch.Size
) -> list[tuple[IntArray, IntArray]]:
    """Per group of a grouped convolution: what stays of its rows (in all of axis 0) and columns (in its own axis 1)."""
    groups = plan.grouped[name]
    rows_each, columns_each = shape[0] // groups, shape[1]
    keeps = dict(cuts)
    rows = keeps[0].kept if 0 in keeps else np.arange(shape[0])
    columns = keeps[1].kept if 1 in keeps else np.arange(groups * columns_each)
    return [
        (
            rows[(rows >= g * rows_each) & (rows < (g + 1) * rows_each)],
            columns[(columns >= g * columns_each) & (columns < (g + 1) * columns_each)] - g * columns_each,
        )
        for g in range(groups)
    ]


def _sliced(tensor: Tensor, name: str, cuts: list[tuple[int, Keep]], plan: Plan) -> Tensor:
    """What stays of a parameter, as a new tensor in the same memory format."""
    layout = torch.preserve_format
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is not None and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        layout = last

    def index(values: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(tensor.device)

    if name in plan.grouped:
        blocks = _grouped_blocks(plan, name, cuts, tensor.shape)
        parts = [tensor.index_select(0, index(r)).index_select(1, index(c)) for r, c in blocks if len(r) and len(c)]
        result = torch.cat(parts)
    else:
        result = _selected(tensor, [(dim, index(keep.kept)) for dim, keep in cuts], layout)
    return result.contiguous() if layout is torch.preserve_format else result.contiguous(memory_format=layout)


def _selected(tensor: Tensor, cuts: list[tuple[int, Tensor]], layout: torch.memory_format) -> Tensor:
    """What stays along several axes; a big tensor slab by slab, so that little exists beside it and the result."""
    if len(cuts) < 2 or tensor.numel() <= SLAB:
        for dim, kept in cuts:
            tensor = tensor.index_select(dim, kept)
        return tensor
    shape = list(tensor.shape)
    for dim, kept in cuts:
        shape[dim] = len(kept)
    result = tensor.new_empty(shape)
    if layout is not torch.preserve_format:
        result = result.to(memory_format=layout)
    (first, rows), *others = cuts
    step = max(1, SLAB * tensor.shape[first] // tensor.numel())
    for begin in range(0, len(rows), step):
        slab = rows[begin : begin + step]
        result.narrow(first, begin, len(slab)).copy_(_selected(tensor.index_select(first, slab), others, layout))
    return result


def _zeroed(tensor: Tensor, name: str, cuts: list[tuple[int, Keep]], plan: Plan) -> None:
    """Zero what goes, in place."""
    if name in plan.grouped:
        stays = torch.zeros(tensor.shape[:2], dtype=torch.bool)
        for rows, columns in _grouped_blocks(plan, name, cuts, tensor.shape):
            stays[torch.from_numpy(rows)[:, None], torch.from_numpy(columns)[None]] = True
        tensor *= stays.reshape(stays.shape + (1,) * (tensor.ndim - 2)).to(tensor)
        return
    for dim, keep in cuts:
        gone = np.setdiff1d(np.arange(keep.size), keep.kept)
        tensor.index_fill_(dim, torch.from_numpy(gone).to(tensor.device), 0)


@torch.inference_mode(False)
def mask(model: nn.Module, plan: Plan, *, in_place: bool = False) -> nn.Module:
    """A copy of ``model`` in which everything the plan removes is zero; shapes stay.

    Args:
        model: Not changed, unless ``in_place``.
        plan: Made for this network.
        in_place: Zero ``model`` itself and return it: no second network in memory.

    Raises:
        SlimError: when the plan was not made for this network.
    """
    model = unwrap(model)
    expect("plan", plan, Plan, "Use slim.select, or Plan.from_json.")
    plan.validate(model)
    masked = model if in_place else deep_copy(model)
    with torch.no_grad():
        cuts = _cuts(plan)
        for name, tensor in _named(masked):
            if name in cuts:
                if 0 in tensor.stride():  # expanded: its elements are one
                    tensor.data = tensor.contiguous()
                _zeroed(tensor, name, cuts[name], plan)
        for name in plan.replaced:
            for part, parameter in masked.get_submodule(name).named_parameters():
                # A weight divided by its own norm would become 0 / 0; it is another layer that silences the branch.
                if not is_original(f"{name}.{part}"):
                    parameter.zero_()
    return masked


@torch.inference_mode(False)  # the thin network can be trained, wherever it is made
def rebuild(
    model: nn.Module, plan: Plan, *, in_place: bool = False, optimizer: torch.optim.Optimizer | None = None
) -> nn.Module:
    """The thinner network: every parameter, buffer and attribute sliced to what the plan keeps.

    Args:
        model: The dense network (wrappers of torch.compile and DataParallel are taken off). Not changed, and only what
            stays of its weights is copied, unless ``in_place``.
        plan: Made for this network (:func:`slim.select`).
        in_place: Change ``model`` itself; parameters keep their identity, so optimizers still know them. Let go of the
            last loss first: an autograd graph that is still alive remembers the old shapes.
        optimizer: With ``in_place``: every state tensor shaped like its parameter is sliced with it. A state of other
            shapes (Adafactor's factors, the history of LBFGS) starts anew, and a warning says so.

    Raises:
        SlimError: when the plan was not made for this network, or the thin network cannot run because the model's
            forward fixes a width (the module is named; ``model`` is untouched).
    """
    if optimizer is not None and not in_place:
        raise SlimError("optimizer needs in_place=True. Got in_place=False (rebuild). Pass in_place=True with it.")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        expect("optimizer", optimizer, torch.optim.Optimizer, "Pass the optimizer that steps the model.")
    model = unwrap(model)
    expect("plan", plan, Plan, "Use slim.select, or Plan.from_json.")
    plan.validate(model)
    earlier = plan_of(model)
    if in_place:
        if not plan.is_identity:
            try:
                check_forward(_built(model, plan, _without_values), plan, model)
            except SlimError:  # unless its forward asks for numbers
                check_forward(_built(model, plan, lambda t: t), plan, model)
        optimizers = [] if optimizer is None else nested(optimizer)
        for note in (note for each in optimizers for note in forget_unsliceable(each, model, plan)):
            warnings.warn(note, stacklevel=3)
        _in_place(model, plan, optimizers)
        thin = model
    else:
        thin = _built(model, plan, lambda t: t)
        if not plan.is_identity:
            check_forward(thin, plan, model)
    setattr(thin, PLAN, earlier.then(plan) if earlier is not None else plan)
    return thin


def _without_values(tensor: Tensor) -> Tensor:
    """Its shape alone; of an index, which says what a selection layer reads, the values, too."""
    return tensor.to("meta") if tensor.is_floating_point() or tensor.is_complex() else tensor


def _built(model: nn.Module, plan: Plan, prepare: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the modules around sliced tensors."""
    cuts = _cuts(plan)
    memo: dict[int, Any] = {}
    for name, kind in plan.replaced.items():
        memo[id(model.get_submodule(name))] = replacement(kind).train(model.get_submodule(name).training)
    gone = Branch("", plan.replaced)
    with torch.no_grad():
        for name, tensor in _named(model):
            if id(tensor) in memo or gone.holds(name):
                continue
            source = prepare(tensor.detach())
            new = _sliced(source, name, cuts[name], plan) if name in cuts else source.clone()
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad)
            else:
                memo[id(tensor)] = new
    thin = duplicate(model, memo)
    _update_modules(thin, plan)
    return thin


def _replace_modules(model: nn.Module, plan: Plan, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Put what stands for them in the place of modules that are gone; their parameters leave the optimizers."""
    gone: set[int] = set()
    for name, kind in plan.replaced.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(name)
        gone |= {id(p) for p in module.parameters()}
        model.get_submodule(owner)._modules[leaf] = replacement(kind).train(module.training)
    gone -= {id(p) for p in model.parameters()}
    for optimizer in optimizers if gone else ():
        for group in optimizer.param_groups:
            for parameter in [p for p in group["params"] if id(p) in gone]:
                optimizer.state.pop(parameter, None)
            group["params"][:] = [p for p in group["params"] if id(p) not in gone]  # LBFGS has the list, too


def _in_place(model: nn.Module, plan: Plan, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    _replace_modules(model, plan, optimizers)
    cuts = _cuts(plan)
    tensors = dict(_named(model))
    with torch.no_grad():
        for name, entries in cuts.items():
            tensor = tensors[name]
            shape = tensor.shape
            for state in [optimizer.state.get(tensor, {}) for optimizer in optimizers]:
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.shape == shape:
                        state[key] = _sliced(value, name, entries, plan)
            grad = tensor.grad if isinstance(tensor, nn.Parameter) else None
            new = _sliced(tensor.detach(), name, entries, plan)
            if isinstance(tensor, nn.Parameter):
                assign(tensor, new)
                if grad is not None:
                    tensor.grad = _sliced(grad, name, entries, plan)
            else:
                tensor.set_(new)  # type: ignore[call-overload]
    _update_modules(model, plan)


def assign(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a parameter other values, of another shape perhaps; its identity stays, its gradient goes.

    A graph of an earlier forward that somebody keeps (a loss that was stored) holds the node that accumulates the
    parameter's gradient, with the old shape; PyTorch takes a new node only where the type changes, so it does for a
    moment.
    """
    parameter.grad = None
    between = torch.float32 if values.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=between, device=values.device)
    parameter.data = values


def _update_modules(model: nn.Module, plan: Plan) -> None:
    """Set the widths that modules know of themselves, and the selection layers."""
    modules = dict(model.named_modules())
    for module in holders(model, {name for name, _ in plan.axes}):
        set_attributes(module)
        _empty_caches(module)
    for name, groups in plan.regroup.items():
        grouped: Any = modules[name]
        if hasattr(grouped, "num_groups"):
            grouped.num_groups = groups
        else:
            grouped.groups = groups
            set_attributes(grouped)
    for name, values in plan.attributes.items():
        for attribute, value in values.items():
            set_number(modules[name], attribute, value)
    for name, stream in plan.selects.items():
        norm: Any = modules[name]
        own = plan.axes.get((f"{name}.weight" if name else "weight", 0))
        if hasattr(norm, "select"):
            read = norm.select.index.cpu().numpy()
            read = read[own.kept] if own is not None else read
        else:
            read = own.kept if own is not None else np.arange(stream.size)
        position = np.searchsorted(stream.kept, read)
        if not np.array_equal(position, np.arange(len(stream.kept))):
            set_select(norm, torch.from_numpy(position))
        else:  # as a plan for the dense network leaves it, from which files are loaded
            unset_select(norm)


def holders(model: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """The modules that hold the parameters and buffers of these names, whatever each calls them (tied weights)."""
    held = {id(tensor) for name, tensor in _named(model) if name in names}
    return [
        module
        for module in model.modules()
        if any(id(t) in held for t in (*module._parameters.values(), *module._buffers.values()))
    ]


def _empty_caches(module: nn.Module) -> None:
    """Forget tensors that a forward has computed from parameters of the old widths and keeps for the next one."""
    for key, value in list(vars(module).items()):
        if key.startswith("_") or type(value) is not dict or not value:
            continue
        if all(isinstance(part, Tensor) for part in value.values()):
            setattr(module, key, {})


def set_attributes(module: Any) -> None:
    """Make a module's attributes agree with the shapes of its parameters."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):  # keeps a weight of the old shape until the next forward
            kept: Any = hook
            setattr(module, kept._tensor_name, kept.apply_mask(module).detach())
    weight = getattr(module, "weight", None)
    if weight is None:
        weight = getattr(module, "running_mean", None)
    if weight is None:
        return
    if isinstance(module, _ConvNd) or type(module).__name__ == "DeformConv2d":  # torchvision is not imported here
        first, second = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        module.out_channels = weight.shape[first] * (module.groups if first else 1)
        module.in_channels = weight.shape[second] * (module.groups if second else 1)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _NormBase) or (hasattr(module, "num_features") and weight.ndim == 1):
        module.num_features = weight.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = weight.shape
