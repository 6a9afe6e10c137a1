"""Tracing: any kind of input, output, mode and wrapper; nothing is touched; failures are one line."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torchvision.ops import DropBlock2d

import slim
from slim.channels import count_macs, count_params
from slim.errors import SlimError
from tests.channels.laws import assert_unchanged, check_all, snapshot


def small() -> nn.Module:
    tail = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), *tail)


X = torch.zeros(2, 3, 8, 8)


def free(model: nn.Module, inputs: Any, **options: Any) -> int:
    return int(slim.trace(model, inputs, **options).prunable.sum())


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_untouched(training: bool) -> None:
    net = small().train(training)
    net[0].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before = snapshot(net)
    slim.trace(net, X)
    assert_unchanged(net, before)
    assert net.training == training and not net[0].weight.requires_grad


class Drawing(nn.Module):
    """Draws a number in its forward, and has a layer that training alone reaches."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.net, self.auxiliary, self.draw = small(), nn.Linear(3, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x) * (1 + float(self.draw()))
        return self.auxiliary(out) if self.training else out


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_a_forward_that_draws_numbers_leaves_every_random_state(draw: Any) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    net, before = Drawing(draw), states()
    graph = slim.trace(net, X)
    assert graph.prunable.sum() == 14
    plan = slim.select(graph, slim.score(graph), ratio=0.5)
    slim.rebuild(net, plan), slim.rebuild(net, plan, in_place=True), slim.fold(net, X)
    assert states() == before


def test_in_inference_mode_the_same_goes_and_the_thin_network_can_be_trained() -> None:
    net = small()
    with torch.inference_mode():
        result = slim.prune(net, X, ratio=0.5)
    assert result.plan == slim.prune(net, X, ratio=0.5).plan
    result.model(torch.randn(2, 3, 8, 8)).sum().backward()


class Batch(NamedTuple):
    image: Tensor


class Attributes(dict[str, Tensor]):
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("kind", [Batch, Attributes])
def test_inputs_that_json_does_not_give_back_are_no_fixed_width(kind: Any) -> None:
    class Unpacking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, batch: Any) -> Tensor:
            return self.net(batch.image)

    batch = kind(image=X)
    result = slim.prune(Unpacking(), (batch,), ratio=0.5)
    assert result.model(batch).shape == (2, 3) and result.model.net[0].out_channels < 8


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_scripts_are_refused_where_they_hold_weights() -> None:
    net = nn.Sequential(small(), torch.jit.script(nn.Softmax(1)))
    assert free(net, X) == 14
    with pytest.raises(SlimError, match=r"Got a ScriptModule \(1\)"):
        slim.trace(nn.Sequential(nn.Identity(), torch.jit.script(small())), X)


def test_weights_of_a_class_of_their_own_are_refused() -> None:
    net = small()
    net[-1].weight = nn.Parameter(TwoTensor(torch.zeros(3, 6), torch.zeros(3, 6)))  # as torchao's and DTensor are
    with pytest.raises(SlimError, match=r"plain tensors\. Got 8\.weight \(TwoTensor\)"):
        slim.trace(net, X)


def test_what_has_no_copy_is_one_line() -> None:
    net = small()
    plan = slim.prune(net, X, ratio=0.5).plan
    net.lock = threading.Lock()
    for function in (slim.mask, slim.rebuild):
        with pytest.raises(SlimError, match=r"copy\.deepcopy copies\. Got TypeError: .*lock.* \(Sequential\)"):
            function(net, plan)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: m.half(),
        lambda m: m.to(memory_format=torch.channels_last),
        lambda m: m.requires_grad_(False),
        lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m),
        lambda m: nn.DataParallel(m),
        lambda m: torch.compile(m),
        lambda m: m.to("meta"),
    ],
)
def test_any_wrapper_dtype_or_layout(wrap: Any) -> None:
    model = wrap(small())
    dtype = next(model.parameters()).dtype
    assert free(model, X.to(dtype)) == 14
    assert free(model, X.to(dtype).to("meta")) == 14


@dataclasses.dataclass
class Out:
    logits: Tensor
    extra: dict[str, Tensor]


@dataclasses.dataclass(slots=True)
class Slots:
    logits: Tensor


class OneSlot:
    __slots__ = "logits"

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda y: (y, 1),
    "dict": lambda y: {"out": y},
    "dataclass": lambda y: Out(y, {"n": y.mean()}),
    "dataclass with slots": Slots,
    "object with a slot": OneSlot,
    "deque": lambda y: deque([y]),
    "values of a dict": lambda y: {"out": y}.values(),
    "generator": lambda y: (part * 2 for part in y.split(1)),
}


class ManyInputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Linear(5, 8), nn.Conv2d(8, 2, 1)
        self.kind = kind

    def forward(self, image: Tensor, context: Tensor | None = None) -> Any:
        x = self.a(image)
        if context is not None:
            x = x + self.b(context)[:, :, None, None]
        return RETURNS[self.kind](self.head(x))


@pytest.mark.parametrize("kind", RETURNS)
def test_inputs_and_outputs_of_any_kind(kind: str) -> None:
    context = torch.zeros(2, 5)
    assert free(ManyInputs(kind), (X, context)) == 8
    assert free(ManyInputs(kind), {"image": X, "context": context}) == 8


def test_what_only_training_reaches_is_coupled_too() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.aux = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    net = Auxiliary()
    graph = slim.trace(net, X)
    removed = np.zeros(len(graph), dtype=bool)
    removed[np.flatnonzero(graph.prunable)[:3]] = True
    thin = slim.rebuild(net, graph.plan(removed))
    assert thin.aux.in_channels == 5
    assert graph.macs() == count_macs(net, X)  # the eval forward's
    thin.train()(X)


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, 0.5, self.training)


class FixedNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(1, 8, 1, 1) if self.training else x


NOISE = [nn.Dropout2d(), nn.FeatureAlphaDropout(), FunctionalDropout(), DropBlock2d(0.5, 3), FixedNoise()]


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: type(noise).__name__)
def test_noise_as_wide_as_its_input_pins_nothing_in_a_train_forward(noise: nn.Module) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.noise, self.norm = nn.Conv2d(3, 8, 1), noise, nn.BatchNorm2d(8)
            self.head, self.aux = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.stem(x))
            return (self.head(self.noise(x)), self.aux(x)) if self.training else self.head(self.noise(x))

    net, x = Noisy().eval(), torch.randn(2, 3, 8, 8)
    graph = slim.trace(net, x)
    assert int(graph.prunable.sum()) == (0 if isinstance(noise, FixedNoise) else 8)
    plan = graph.plan(graph.prunable & (np.arange(len(graph)) % 2 == 0))
    thin = slim.rebuild(net, plan)
    assert torch.allclose(thin(x), slim.mask(net, plan)(x), atol=1e-6)
    thin.train()(x)
    assert thin.aux.in_channels == thin.head.in_channels == (8 if isinstance(noise, FixedNoise) else 4)


class NeedsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * x.sum().item()


def test_real_tensors_where_values_are_needed() -> None:
    assert free(NeedsValues(), X) == 8
    with pytest.raises(SlimError, match="_local_scalar_dense"):
        slim.trace(NeedsValues(), X.to("meta"))


def test_a_forward_that_keeps_something_does_not_keep_meta_tensors() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.conv(x)
            return self.last

    net = Caching()
    slim.trace(net, X)
    assert net.last is None


@pytest.mark.parametrize(
    ("model", "inputs", "options", "says"),
    [
        (small(), torch.zeros(2, 4, 8, 8), {}, "expected input"),
        (small(), torch.zeros(2, 3, 8, 8, dtype=torch.int64), {}, "dtype"),
        (small(), torch.zeros(2, 3, 2, 2), {}, "module 0"),
        (small(), X, {"residual": "maybe"}, "residual"),
        (small(), X, {"grouped": "half"}, "grouped"),
        (len, X, {}, "model must be a Module"),
    ],
)
def test_bad_input_is_one_line(model: Any, inputs: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SlimError, match=says) as caught:
        slim.trace(model, inputs, **options)
    assert "\n" not in str(caught.value)


def test_counts_are_pytorchs() -> None:
    net = small()
    graph = slim.trace(net, X)
    assert graph.macs() == count_macs(net, X)
    assert graph.params() == count_params(net)
    removed = np.zeros(len(graph), dtype=bool)
    removed[np.flatnonzero(graph.prunable)[::2]] = True
    thin = slim.rebuild(net, graph.plan(removed))
    assert graph.macs(removed) == count_macs(thin, X)
    assert graph.params(removed) == count_params(thin)
    assert graph.peak_activation(removed) < graph.peak_activation()


def test_groups_name_their_members() -> None:
    graph = slim.trace(small(), X)
    group = next(g for g in graph.groups if g.prunable)
    assert ("0.weight", 0, [0]) in group.members and ("3.weight", 1, [0]) in group.members
    assert len(list(graph.groups)) == len(graph)
    pinned = graph.groups[-1]
    assert not pinned.prunable and pinned.reason


def test_a_removal_the_structure_forbids_is_refused() -> None:
    graph = slim.trace(small(), X)
    for removed, says in (
        (np.ones(len(graph), dtype=bool), "prunable"),
        (graph.prunable.copy(), "empty"),
        (np.zeros(2, dtype=bool), "one flag per group"),
    ):
        with pytest.raises(SlimError, match=says):
            graph.plan(removed)
    uneven = slim.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)), X)
    removed = np.zeros(len(uneven), dtype=bool)
    removed[np.flatnonzero(uneven.prunable)[:1]] = True
    with pytest.raises(SlimError, match="equally many"):
        uneven.plan(removed)


class GroupsShifted(nn.Module):
    """A grouped convolution whose shift the forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.grouped, self.last = nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, weight = self.norm(self.first(x)), self.grouped.weight
        shift = torch.full((weight.shape[0],), 0.5, dtype=x.dtype)
        return self.last(nn.functional.conv2d(x, weight, shift, groups=2))


def test_a_grouped_convolution_may_have_a_shift_that_the_forward_makes() -> None:
    graph, _ = check_all(GroupsShifted().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64), 0.5, seed=1)
    assert graph.prunable.any()


class Writes(nn.Module):
    """A forward that fills a buffer, and keeps something in attributes of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.register_buffer("table", None)
        self.kept = {"levels": {"calls": 0}, "maps": deque[Tensor](maxlen=2)}
        self.place, self.steps = SimpleNamespace(last=None), torch.zeros(1)
        self.generators = torch.Generator().manual_seed(0), np.random.default_rng(0), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        if self.table is None:
            self.table = torch.ones(y.shape[2:], dtype=y.dtype, device=y.device)
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones_like(self.table))
        self.kept["levels"]["calls"] += 1
        self.kept["maps"].append(y)
        self.place.last, self.steps[0] = y, self.steps[0] + 1
        draws = torch.rand(1, generator=self.generators[0]), *(g.random() for g in self.generators[1:])
        assert len(draws) == 3
        return self.last(y * self.table + self.late)

    def state(self) -> tuple[object, ...]:
        torchs, numpys, python = self.generators
        drawn = torchs.get_state().tolist(), numpys.bit_generator.state, python.getstate()
        inside = self.kept["levels"]["calls"], len(self.kept["maps"]), self.place.last, float(self.steps)
        return (*inside, *drawn, self.table, list(self._buffers))


@pytest.mark.parametrize("real", [False, True])
def test_what_a_forward_writes_does_not_outlive_a_trace_or_a_check(real: bool) -> None:
    class Asks(Writes):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.conv.weight.clamp_(-0.1, 0.1)
            return super().forward(x * float(x.mean() > -9))

    net = (Asks() if real else Writes()).eval()
    before, weight = net.state(), net.conv.weight.detach().clone()
    graph = slim.trace(net, X)
    thin = slim.rebuild(net, slim.select(graph, slim.score(graph), ratio=0.5))
    assert count_macs(thin, X) == graph.macs() // 2
    assert net.state() == before == thin.state() and torch.equal(net.conv.weight, weight)
    assert thin(X).shape == net(X).shape


class Features(nn.Module):
    """Returns its features in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.inner(self.conv(x).relu()).relu()
        return (self.last(y), y.mean((2, 3))) if self.training else self.last(y)


def test_what_only_training_returns_stays() -> None:
    graph = slim.trace(Features(), X)
    assert not graph.prunable[graph.axes[("inner.weight", 0)]].any()
    assert graph.prunable[graph.axes[("conv.weight", 0)]].all()


def test_a_network_without_weights_yet_is_refused() -> None:
    with pytest.raises(SlimError, match="Run the network once"):
        slim.trace(nn.Sequential(nn.LazyConv2d(8, 1), nn.ReLU()), X)
