"""Bytes of a network in several forms, each a real file's: dense, CSR, zipped, and the form a method is made for."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from safetensors.torch import save
from torch import Tensor, nn

from experiments.sparsity.methods import layers

Form = Callable[[Tensor], dict[str, Tensor]]


def bytes_of(model: nn.Module) -> dict[str, int]:
    """``dense``: safetensors of the state, fp32. ``csr``: weights as compressed rows. ``zipped``: dense, deflated."""
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    dense = save(state)
    return {
        "dense": len(dense),
        "csr": len(save(with_weights(model, compressed_rows))),
        "zipped": len(zlib.compress(dense, 9)),
    }


def with_weights(model: nn.Module, form: Form) -> dict[str, Tensor]:
    """The state with every weight but the first layer's replaced by what ``form`` makes of it."""
    names = {id(m): name for name, m in model.named_modules()}
    state = dict(model.state_dict())
    for layer in layers(model):
        name = f"{names[id(layer)]}.weight"
        weight = state.pop(name)
        state |= {f"{name}.{part}": value for part, value in form(weight).items()}
    return {k: v.contiguous() for k, v in state.items()}


def compressed_rows(weight: Tensor) -> dict[str, Tensor]:
    """CSR of the ``(out, in * kh * kw)`` matrix: int32 row starts and columns, fp32 values."""
    flat = weight.flatten(1)
    rows, columns = flat.nonzero(as_tuple=True)
    starts = torch.zeros(len(flat) + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(rows, minlength=len(flat)).cumsum(0)
    return {"starts": starts, "columns": columns.int(), "values": flat[rows, columns]}


def two_four_form(weight: Tensor) -> dict[str, Tensor]:
    """Of each four neighbours along the input channels two fp32 values, and two bits for the place of each."""
    four = weight.movedim(1, -1).reshape(-1, 4)
    places = (four != 0).float().topk(2, dim=1).indices.sort(dim=1).values
    return {"values": four.gather(1, places).flatten(), "places": packed(places.flatten())}


def ternary_form(weight: Tensor) -> dict[str, Tensor]:
    """Two bits for each weight, one fp32 for the layer."""
    return {"codes": packed((weight.sign() + 1).long().flatten()), "scale": weight.abs().max().reshape(1)}


def packed(codes: Tensor) -> Tensor:
    """Whole numbers 0 to 3, ``(n,)``, as ``(ceil(n / 4),)`` bytes, the first in the lowest bits."""
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4)
    return (padded << torch.tensor([0, 2, 4, 6])).sum(1).to(torch.uint8)


def unpacked(data: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers that `packed` put in."""
    return ((data.long()[:, None] >> torch.tensor([0, 2, 4, 6])) & 3).flatten()[:count]


def own(model: nn.Module, form: Form) -> int:
    """Bytes of a safetensors file in the form of a method."""
    return len(save(with_weights(model, form)))
