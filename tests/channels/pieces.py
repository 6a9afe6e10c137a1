"""What random networks are made of: modules on ``(N, C, H, W)`` written the ways that models write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    # From here on f(0) != 0: a removed channel is a constant, not nothing.
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardsigmoid": nn.Hardsigmoid,
}


class Branches(nn.Module):
    """Runs one input ``(N, C, H, W)`` through several paths and combines their outputs: ``add``, ``mul`` or ``cat``."""

    def __init__(self, paths: Sequence[nn.Module], combine: str) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        outs = [path(x) for path in self.paths]
        if self.combine == "cat":
            return torch.cat(outs, 1)
        total = outs[0]
        for out in outs[1:]:
            total = total + out if self.combine == "add" else total * out
        return total


class Split(nn.Module):
    """Splits the channels in pieces, runs each through its own path, concatenates in another order."""

    def __init__(self, widths: Sequence[int], paths: Sequence[nn.Module], chunk: bool) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.widths, self.chunk = list(widths), chunk

    def forward(self, x: Tensor) -> Tensor:
        # A chunk says how many, a split says how wide: the thin network must get both right.
        parts = x.chunk(len(self.widths), 1) if self.chunk else x.split(self.widths, 1)
        return torch.cat([path(part) for path, part in zip(self.paths, parts, strict=True)][::-1], 1)


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle, written as models write it: view, transpose, view."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Squeeze(nn.Module):
    """Squeeze-excite: a gate per channel from the channels' means."""

    def __init__(self, channels: int, hidden: int, gate: str) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.gate = ACTIVATIONS[gate]()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class ChannelsLast(nn.Module):
    """Runs a module on ``(N, H, W, C)``, as ConvNeXt does with its LayerNorm and its linear layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Twice(nn.Module):
    """One module, called twice: its outputs are its own inputs' channels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(x)))


class Scaled(nn.Module):
    """Raw parameters used in forward: a scale and a shift per channel, no layer around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Pad(nn.Module):
    """Zero channels after the real ones, as the parameter-free ResNet shortcut has them."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input; ``torch.nn``'s own or written out with one qkv layer."""

    def __init__(self, channels: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.heads, self.written_out = heads, written_out
        if written_out:
            self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        else:
            self.inner = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.written_out:
            n, length, _ = tokens.shape
            q, k, v = self.qkv(tokens).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
            mixed = self.proj(mixed)
        else:
            mixed = self.inner(tokens, tokens, tokens)[0]
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Heads(nn.Module):
    """Attention whose heads may go: q, k and v in one layer, widths from ``form``; its head's width is five."""

    def __init__(self, channels: int, heads: int, form: str) -> None:
        super().__init__()
        self.num_heads, self.form, self.inner = heads, form, 5 * heads
        self.qkv, self.proj = nn.Linear(channels, 15 * heads), nn.Linear(5 * heads, channels)
        self.fixed = (heads,)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        n, length, _ = tokens.shape
        heads = -1 if self.form == "fused" else self.fixed[0] if self.form == "literal" else self.num_heads
        q, k, v = self.qkv(tokens).view(n, length, 3, heads, 5).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) * 5**-0.5).softmax(-1) @ v
        size = {"attribute": self.inner, "width": 5 * self.num_heads}.get(self.form, -1)
        mixed = self.proj(mixed.transpose(1, 2).reshape(n, length, size))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class GroupedQueries(nn.Module):
    """Attention in which several heads of queries share one of keys and values; its head's width is three."""

    def __init__(self, channels: int, key_heads: int, each: int, form: str) -> None:
        super().__init__()
        self.key_heads, self.each, self.form = key_heads, each, form
        self.q, self.k, self.v = (nn.Linear(channels, 3 * key_heads * n) for n in (each, 1, 1))
        self.proj = nn.Linear(3 * key_heads * each, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        n, length, _ = tokens.shape
        keys = self.key_heads if self.form == "attribute" else -1
        q = self.q(tokens).view(n, length, -1, 3).transpose(1, 2)
        k, v = (layer(tokens).view(n, length, keys, 3).transpose(1, 2) for layer in (self.k, self.v))
        if self.form == "repeat":
            k, v = (t.repeat_interleave(self.each, 1) for t in (k, v))
        if self.form in ("expand", "attribute"):  # as transformers' repeat_kv
            k, v = (t[:, :, None].expand(-1, -1, self.each, -1, -1).flatten(1, 2) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.form == "kernel")
        return x + self.proj(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class Einsum(nn.Module):
    """A convolution of size 1 as models write it who do not like layers: a raw weight and an einsum."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, channels) / channels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,oc->nohw", x, self.weight)


class Tied(nn.Module):
    """Two convolutions that share one weight tensor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class Gated(nn.Module):
    """MambaOut's gate: one layer makes gate, rest and part; the split takes its sizes from an attribute."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        part = max(1, hidden // 3)
        self.sizes = (hidden, hidden - part, part)
        self.up, self.down = nn.Conv2d(channels, 2 * hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.part = nn.Conv2d(part, part, 3, padding=1, groups=part)

    def forward(self, x: Tensor) -> Tensor:
        gate, rest, part = torch.split(self.up(x), self.sizes, 1)
        return x + self.down(F.gelu(gate) * torch.cat((rest, self.part(part)), 1))


class Viewed(nn.Module):
    """A view whose width is an attribute."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width, self.conv, self.back = width, nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.conv(x).reshape(x.shape[0], self.width, -1).mean(-1)
        return x * self.back(mean[:, :, None, None]).sigmoid()


class Standardized(nn.Conv2d):
    """Weight standardization in the forward; ``same`` pads as TensorFlow does."""

    same = False

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
        ).reshape_as(self.weight)
        if self.same:
            x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Same(Standardized):
    same = True


def computed(kind: str, channels: int, width: int) -> nn.Module:
    """A convolution whose weight is computed in the forward."""
    if kind == "standardized":
        return Standardized(channels, width, 3, padding=1)
    conv = nn.Conv2d(channels, width, 3, padding=1)
    return (parametrizations.weight_norm if kind == "weight_norm" else parametrizations.spectral_norm)(conv)


# Functions of (N, C, H, W) that keep height and width, each with the channels it returns.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[int], int]]] = {
    "glu": (lambda x: F.glu(x, 1), lambda c: c // 2),
    "gate": (lambda x: torch.mul(*(part.sigmoid() for part in x.chunk(2, 1))), lambda c: c // 2),
    "half": (lambda x: x[:, : (x.shape[1] + 1) // 2], lambda c: (c + 1) // 2),
    "even": (lambda x: x[:, ::2], lambda c: (c + 1) // 2),
    "roll": (lambda x: x.roll(1, 1), lambda c: c),
    "flip": (lambda x: x.flip(1), lambda c: c),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), lambda c: 2 * c),
    "interleave": (lambda x: x.repeat_interleave(2, 1), lambda c: 2 * c),
    "stack": (lambda x: torch.stack([x, -x], 2).flatten(1, 2), lambda c: 2 * c),
    "softmax": (lambda x: x.softmax(1), lambda c: c),
    "spatial softmax": (lambda x: x.flatten(2).softmax(-1).view(x.shape), lambda c: c),
    "normalize": (lambda x: F.normalize(x, dim=1), lambda c: c),
    "mean gate": (lambda x: x * x.mean(1, keepdim=True), lambda c: c),
    "sum gate": (lambda x: x * x.sum(1, keepdim=True).tanh(), lambda c: c),
    "share": (lambda x: x / (1 + x.abs().sum(1, keepdim=True)), lambda c: c),
    "relu sum": (lambda x: F.relu(x) + F.relu(x).square().sum(1, keepdim=True).sigmoid(), lambda c: c),
    "late sum": (lambda x: x * x.sigmoid().sum(1, keepdim=True), lambda c: c),
    "counted sum": (lambda x: x * (x.sum(1, keepdim=True).tanh() / x.shape[1]), lambda c: c),
    "tensor of width": (
        lambda x: x * (x.sum(1, keepdim=True) / torch.sqrt(torch.tensor(x.shape[1], device=x.device))).tanh(),
        lambda c: c,
    ),
    "length": (lambda x: x * (1 + x.norm(dim=1, keepdim=True)).rsqrt(), lambda c: c),
    "max gate": (lambda x: x - x.amax((2, 3), keepdim=True), lambda c: c),
    "threshold": (lambda x: torch.where(x > 0, x, 0.1 * x - 0.2), lambda c: c),
    "clamp": (lambda x: x.clamp(0.1, 1.0), lambda c: c),
}


class Function(nn.Module):
    """One of ``FUNCTIONS`` as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.name][0](x)
