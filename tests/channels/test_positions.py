"""Operations over positions: channels pass, one by one, and the thin network computes what the masked one does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import ps_roi_pool, roi_align, roi_pool

import slim
from tests.channels.laws import check_all


class Between(nn.Module):
    """``operation`` between two convolutions; it gets the activation and the input."""

    def __init__(self, operation: Callable[[Between, Tensor, Tensor], Tensor], **convolution: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, **convolution)  # type: ignore[arg-type]
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        self.register_buffer("kernel", torch.randn(1, 1, 3, 3))
        self.register_buffer("map", torch.randn(1, 1, 6, 6))
        self.operation, self.half, self.single = operation, 4, nn.GroupNorm(8, 8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.operation(self, self.norm(self.first(x)).relu(), x))
        return result


def _put(y: Tensor, place: object, value: Tensor | float) -> Tensor:
    y = y.clone()
    y[place] = value  # type: ignore[index]
    return y


def _tokens(y: Tensor, x: Tensor, width: int | None = None) -> Tensor:
    tokens, kept = y.flatten(2).transpose(1, 2), x.flatten(2).mean(1).topk(9, 1).indices
    picked = tokens.gather(1, kept[..., None].expand(-1, -1, width or tokens.shape[2]))
    return picked.transpose(1, 2).unflatten(2, (3, 3))


def _unpooled(y: Tensor) -> Tensor:
    values, places = F.max_pool2d(y, 2, return_indices=True)
    return F.max_unpool2d(values, places, 2)


@torch.library.custom_op("slim_tests::roll", mutates_args=())
def _rolled(y: Tensor, count: int, axis: int) -> Tensor:
    """Not PyTorch's: it rolls the channels, whatever the axis."""
    return y.roll(count, 1)


_rolled.register_fake(lambda y, count, axis: torch.empty_like(y))
_rolled.register_autograd(lambda context, slope: (slope.roll(-1, 1), None, None))
REGIONS = torch.tensor([[0, 0.0, 0, 4, 4], [2, 1, 1, 5, 5], [2, 0, 2, 3, 5]], dtype=torch.float64)


def _tables(net: nn.Module, places: Tensor) -> Tensor:
    """What stands at places per channel (N, C), looked up in three other ways."""
    rows, first = net.map[0, 0], places[0] % 6
    table = F.embedding(places, net.map.reshape(36, 1))[..., None] + rows[places % 6, places // 6][..., None, None]
    return table + rows[0].index_select(0, first)[:, None, None]


ROWS = torch.tensor([0, 2, 3])
PASSES: dict[str, Callable[[Between, Tensor, Tensor], Tensor]] = {
    "circular padding": lambda net, y, x: F.pad(y, (1, 0, 2, 3), mode="circular"),
    "spectrum": lambda net, y, x: torch.fft.rfft2(y).abs(),
    "spectrum and back": lambda net, y, x: torch.fft.irfft2(torch.fft.rfft2(y) * 2),
    "real part": lambda net, y, x: torch.fft.fft(y, dim=3).real + torch.view_as_complex(torch.stack([y, y], 4)).abs(),
    "triangle": lambda net, y, x: y.tril() + y.triu(1),
    "rotation": lambda net, y, x: y.rot90(1, (2, 3)),
    "windows": lambda net, y, x: y.unfold(2, 3, 2).unfold(3, 2, 2).mean((4, 5)),
    "unfold and fold": lambda net, y, x: F.fold(F.unfold(y, 3, padding=1), (6, 6), 3, padding=1),
    "unpooling": lambda net, y, x: _unpooled(y),
    "quantile": lambda net, y, x: y - y.quantile(0.5, 3, keepdim=True),
    "tokens that are kept": lambda net, y, x: _tokens(y, x),
    "rows added": lambda net, y, x: torch.zeros_like(y).index_add(2, ROWS, y[:, :, :3]),
    "rows overwritten": lambda net, y, x: y.index_copy(2, ROWS, y[:, :, :3] * 2),
    "a row set": lambda net, y, x: _put(y, (slice(None), slice(None), 0), 0.0),
    "rows set": lambda net, y, x: _put(y, (slice(None), slice(None), ROWS), 0.5),
    "what is small set": lambda net, y, x: _put(y, y < 0.2, 0.5),
    "a map written": lambda net, y, x: _put(y, (slice(None), slice(None), 0), net.map[:, :, 0]),
    "an expanded map": lambda net, y, x: y * net.map.expand_as(y),
    "an expanded map of the input": lambda net, y, x: y * x[:, :1].sigmoid().expand(-1, y.shape[1], -1, -1),
    "blur, repeated": lambda net, y, x: F.conv2d(y, net.kernel.repeat(y.shape[1], 1, 1, 1), groups=y.shape[1]),
    "blur, expanded": lambda net, y, x: F.conv2d(y, net.kernel.expand(y.shape[1], 1, 3, 3), groups=y.shape[1]),
    "half of them, of the width": lambda net, y, x: torch.cat([(z := y[:, : y.shape[1] // 2]), y[:, z.shape[1] :]], 1),
    "half of them, by an attribute": lambda net, y, x: torch.cat([y[:, : net.half] * 2, y[:, net.half :]], 1),
    "normalized one by one": lambda net, y, x: F.group_norm(y, y.shape[1]),
    "normalized one by one by a module": lambda net, y, x: net.single(y),
    "the largest of each row put": lambda net, y, x: torch.zeros_like(y).scatter(3, *y.max(3, keepdim=True)[::-1]),
    "added at places": lambda net, y, x: torch.zeros_like(y).scatter_add_(2, y.argsort(2), y * 2),
    "rows filled": lambda net, y, x: y.index_fill(-1, ROWS, 0.5),
    "rows replaced": lambda net, y, x: y.slice_scatter(y[:, :, :2] * 2, 2, 2, 4).select_scatter(y[..., 1], -1, 0),
    "diagonals": lambda net, y, x: y.diagonal(1, -1, 2)[..., None],
    "looked up": lambda net, y, x: torch.bucketize(y, net.map[0, 0, 0].sort().values).to(y.dtype),
    "the largest so far": lambda net, y, x: y.cummax(3).values - y.cummin(2).values,
    "logarithms of sigmoids": lambda net, y, x: F.logsigmoid(y),
    "whole parts": lambda net, y, x: (
        torch.rsub(y.detach() // 0.5, torch.complex(y, y * 2).abs()) + torch.fft.ifft(y).imag
    ),
    "a table looked up": lambda net, y, x: (
        net.map.flatten()[(p := y.flatten(2).argmax(2)), None, None] + _tables(net, p)
    ),
    "regions": lambda net, y, x: roi_align(y, REGIONS, 2) + roi_pool(y, REGIONS, 2),
    "filled in place": lambda net, y, x: y.clone().masked_fill_(y < 0.2, 0.5),
    "activations in place": lambda net, y, x: F.mish(F.threshold(y - 0.3, -0.1, 0.1, True), True).abs_(),
    "squeezed in place": lambda net, y, x: y.mean((2, 3), keepdim=True).squeeze_(3).squeeze_(2)[:, :, None, None],
}
STAYS: dict[str, Callable[[Between, Tensor, Tensor], Tensor]] = {
    "spectrum over channels": lambda net, y, x: torch.fft.fft(y, dim=1).abs(),
    "rotation over channels": lambda net, y, x: y.rot90(2, (1, 2)),
    "windows of channels": lambda net, y, x: y.unfold(1, 1, 1).sum(4),
    "some of the channels put": lambda net, y, x: y.scatter(3, y.argmax(3, keepdim=True)[:, :4], 2.0),
    "some of the channels replaced": lambda net, y, x: y.slice_scatter(y[:, :2] * 2, 1, 2, 4).select_scatter(
        y[:, 1], 1, 0
    ),
    "diagonals of channels": lambda net, y, x: y * y.diagonal(0, 1, 2)[:, None],
    "looked up among themselves": lambda net, y, x: torch.bucketize(y, y.mean((0, 2, 3)).sort().values).to(y.dtype),
    "put at places of theirs": lambda net, y, x: y * net.map.flatten().index_fill(0, y.argmax(3)[0, :, 0], 0.0)[:6],
    "as an array": lambda net, y, x: torch.from_numpy(np.sort(y.detach().numpy(), 1)),
    "as another array": lambda net, y, x: torch.from_numpy(np.asarray(y.detach())) + 1,
    "as a list": lambda net, y, x: torch.tensor(y.tolist(), dtype=y.dtype),
    "an expanded map of a fixed width": lambda net, y, x: y * net.map.expand(1, 8, 6, 6),
    "tokens of a fixed width": lambda net, y, x: _tokens(y, x, 8),
    "blur of a fixed width": lambda net, y, x: F.conv2d(y, net.kernel.expand(8, 1, 3, 3), groups=8),
    "a number for each channel": lambda net, y, x: y * torch.arange(8.0, dtype=y.dtype)[None, :, None, None],
    "half of them, by a number": lambda net, y, x: torch.cat([y[:, :4] * 2, y[:, 4:]], 1),
    "a sum of half of them, by a number": lambda net, y, x: y * y.narrow(1, 4, 4).sum(1, keepdim=True).tanh(),
    "filled in place, with a number of theirs": lambda net, y, x: y.clone().masked_fill_(y < 0.2, 1 / y.shape[1]),
    "pieces of a number of channels": lambda net, y, x: torch.cat([p * i for i, p in enumerate(y.split(4, 1))], 1),
    "normalized one by one, by a number": lambda net, y, x: F.group_norm(y, 8),
    "regions of a position each": lambda net, y, x: ps_roi_pool(y, REGIONS, 2).repeat(1, 4, 1, 1),
    "another library's operation": lambda net, y, x: _rolled(y, 1, 2),
    "channels overwritten": lambda net, y, x: _put(y, (slice(None), ROWS), 0.5),
}


def _data() -> Tensor:
    return torch.randn(3, 4, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("name", PASSES)
def test_channels_pass(name: str) -> None:
    graph, plan = check_all(Between(PASSES[name]).double(), _data(), 0.5, 0)
    assert graph.prunable.sum() == 8 and not plan.is_identity


@pytest.mark.parametrize("name", STAYS)
def test_channels_stay_where_their_position_or_number_counts(name: str) -> None:
    graph, _ = check_all(Between(STAYS[name]).double(), _data(), 0.5, 0)
    assert not graph.prunable.any()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_convolution_padded_around(axes: int) -> None:
    conv, norm = (getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "BatchNorm"))
    net = nn.Sequential(
        conv(2, 8, 3, padding=1, padding_mode="circular"), norm(8), conv(8, 3, 3, padding=2, padding_mode="circular")
    )
    graph, _ = check_all(net.double(), torch.randn(2, 2, *(5,) * axes, dtype=torch.float64), 0.5, 0)
    assert np.count_nonzero(graph.prunable) == 8


def test_an_activation_for_each_sample_is_not_expanded_data() -> None:
    """A batch of one is no expansion, and what is expanded in the samples says nothing of the channels."""
    net = Between(lambda net, y, x: y * torch.rand(1, 8, 1, 1, dtype=y.dtype).expand(3, -1, 6, 6))
    assert not slim.trace(net.double(), _data()).prunable.any()


def test_the_trace_computes_nothing_that_would_have_to_repeat_itself() -> None:
    torch.use_deterministic_algorithms(True)
    assert slim.trace(Between(PASSES["unpooling"]).double(), _data()).prunable.sum() == 8
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "noise",
    [
        lambda y: y + torch.normal(0.0, y.abs()),
        lambda y: F.gumbel_softmax(y, hard=True, dim=3),
        lambda y: torch.poisson(y) + torch.empty_like(y).log_normal_(),
    ],
)
def test_random_numbers_per_channel_pass(noise: Callable[[Tensor], Tensor]) -> None:
    assert slim.trace(Between(lambda net, y, x: noise(y)).double(), _data()).prunable.sum() == 8


@pytest.mark.parametrize(
    "divided",
    [
        lambda net, y: y / net.norm.weight[:, None, None],
        lambda net, y: y.amax((2, 3), keepdim=True) / y.max(3, keepdim=True).values,
        lambda net, y: y.log() + y.reciprocal() + y.pow(-2),
    ],
)
def test_what_is_divided_by_what_a_mask_makes_zero_goes_only_when_asked(
    divided: Callable[[Between, Tensor], Tensor],
) -> None:
    graph = slim.trace(Between(lambda net, y, x: divided(net, y)).double(), _data())
    groups = graph.axes[("norm.weight", 0)]
    assert not graph.prunable.any() and graph.inexact[groups].all()
    assert "divided by what a mask makes zero" in graph.reason(int(groups[0]))


def test_in_inference_mode_operations_have_their_rules() -> None:
    net = Between(torch.inference_mode()(lambda net, y, x: net.norm(net.first(x)).relu_())).double()
    assert slim.trace(net, _data()).prunable.sum() == 8


class Generator(nn.Module):
    """Begins with a learned picture, as StyleGAN does, and lets the input scale it."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.style = nn.Parameter(torch.randn(1, 4, 6, 6)), nn.Linear(4, 8)
        self.first, self.norm, self.last = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.norm(self.first(self.picture.repeat(len(x), 1, 1, 1))).relu()
        result: Tensor = self.last(made * self.style(x.mean((2, 3)))[:, :, None, None])
        return result


def test_a_learned_input_is_no_weight() -> None:
    graph, _ = check_all(Generator().double(), _data(), 0.5, 0)
    assert graph.prunable[graph.axes[("norm.running_var", 0)]].all()


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_keeps_its_width_and_its_input_may_go(kind: type[nn.RNNCellBase]) -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(6, 2)
            self.cell = kind(8, 6)  # type: ignore[call-arg]

        def forward(self, x: Tensor) -> Tensor:
            state = self.cell(self.norm(self.first(x.mean((2, 3)))))
            result: Tensor = self.last(state[0] if isinstance(state, tuple) else state)
            return result

    graph, _ = check_all(Stepped().double(), _data(), 0.5, 0)
    assert graph.prunable.sum() == 8 == graph.prunable[graph.axes[("first.weight", 0)]].sum()
