"""Which network is meant, what it is called with, and which learning rates are to come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slim
from slim import SlimError
from slim.lightning import SparseTraining, capture_example, find_network
from slim.lightning.example import as_example, named_inputs
from slim.sparsity import L0, LAWS, Penalty, gamma_parameters, install

from .modules import Plain, convnet, fit, images, same


class Pair(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = None
        self.generator, self.discriminator = convnet(), nn.Sequential(convnet(), nn.ReLU())
        self.loss = nn.CrossEntropyLoss()

    @property
    def first(self) -> nn.Module:
        return self.generator


def test_a_network_is_a_path_a_function_or_the_only_one() -> None:
    pair, plain = Pair(), Plain()
    assert find_network(plain) is plain.net
    assert find_network(plain, "") is plain
    assert find_network(pair, "first") is pair.generator
    assert find_network(pair, "discriminator.0") is pair.discriminator[0]
    assert find_network(pair, lambda module: module.generator) is pair.generator
    plain.net = torch.compile(plain.net)  # type: ignore[assignment]
    assert find_network(plain) is plain.net._orig_mod
    for network, words in [
        (None, "generator, discriminator"), ("generatr", "generator"), (lambda module: 3, "int"), (5, "network=5"),
        (lambda module: module.generatr, "AttributeError"), (Plain, "path"),
    ]:  # fmt: skip
        with pytest.raises(SlimError, match=words):
            find_network(pair, network)  # type: ignore[arg-type]
    with pytest.raises(SlimError, match="no attribute with"):
        find_network(nn.Sequential(nn.Linear(3, 3)))


class Keywords(Plain):
    """A network with keyword arguments, called after drawing random numbers."""

    def __init__(self) -> None:
        super().__init__()
        inner = self.net

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor, *, scale: torch.Tensor, flag: bool = True) -> Any:
                return self.inner(x * scale[:, None, None, None]) if flag else None

        self.net = Net()  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + torch.rand_like(x), scale=torch.rand(len(x)))


def test_an_example_is_captured_without_a_trace() -> None:
    module, before = Keywords(), Keywords()
    state = torch.get_rng_state()
    example = capture_example(module, images())
    assert {name: getattr(value, "shape", value) for name, value in example.items()} == {
        "x": (1, 3, 6, 6),
        "scale": (1,),
    }
    assert torch.equal(torch.get_rng_state(), state)
    assert same(module, before)
    assert module._trainer is None
    assert not module.net._forward_pre_hooks
    with pytest.raises(SlimError, match="must call the network"):
        capture_example(Unused(), images(), "net")


class Unused(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.other = convnet()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(x)


class Scheduled(Plain):
    def __init__(self, make: Any, interval: str, frequency: int = 1) -> None:
        super().__init__()
        self.make, self.interval, self.frequency = make, interval, frequency
        self.seen: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = {"scheduler": self.make(self, optimizer), "interval": self.interval, "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("make", "interval", "frequency", "accumulate"),
    [
        (lambda m, o: SCHEDULERS.OneCycleLR(o, 0.4, total_steps=m.trainer.estimated_stepping_batches), "step", 1, 1),
        (lambda module, o: SCHEDULERS.LambdaLR(o, module.factor), "step", 1, 2),
        (lambda module, o: SCHEDULERS.StepLR(o, 2), "epoch", 1, 1),
        (lambda module, o: SCHEDULERS.ExponentialLR(o, 0.5), "epoch", 2, 1),
        (
            lambda module, o: SCHEDULERS.SequentialLR(
                o, [SCHEDULERS.LinearLR(o, 0.1, total_iters=3), SCHEDULERS.CosineAnnealingLR(o, 9)], [3]
            ),
            "step", 1, 1,
        ),
        (lambda module, o: SCHEDULERS.ExponentialLR(o, 0.5), "step", 2, 1),
    ],
    ids=["one_cycle", "bound_method", "epochs", "frequency", "sequential", "every_second_batch"],
)  # fmt: skip
def test_the_forecast_knows_the_learning_rates_to_come(
    make: Any, interval: str, frequency: int, accumulate: int
) -> None:
    from slim.lightning.rates import replay_learning_rates

    class Watched(Scheduled):
        def factor(self, step: int) -> float:
            return 1 / (1 + step)

        def on_train_start(self) -> None:
            self.told = replay_learning_rates(self.trainer, self.trainer.optimizers[0])

    module = Watched(make, interval, frequency)
    fit(module, epochs=4, accumulate_grad_batches=accumulate)
    assert module.told == module.seen


def test_shrink_is_what_a_scale_can_lose_and_misuse_is_one_line() -> None:
    sparse = SparseTraining("l1", shrink=0.5)
    fit(Plain(), sparse)
    assert sparse.forecast is not None
    assert sparse.forecast.shrink_budget == pytest.approx(0.5)
    assert "lam" in sparse.forecast.line
    for misuse in (
        lambda: fit(Still(), SparseTraining("l1", shrink=1.0)),
        lambda: SparseTraining("l0", shrink=1.0),
        lambda: SparseTraining("l1", lamb=1.0),
        lambda: fit(Plain(), SparseTraining("l1"), epochs=-1, max_steps=-1),
        lambda: fit(Pair(), SparseTraining("l1")),
    ):
        with pytest.raises(SlimError) as caught:
            misuse()
        assert "\n" not in str(caught.value)


class Still(Plain):
    """Its learning rate is 0."""

    def __init__(self) -> None:
        super().__init__(lr=0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"penalty": wrong}, "the name of a law") for wrong in (None, 5, L0, LAWS["l1"])),
        *(({name: wrong}, f"{name}=") for name in ("epochs", "steps") for wrong in ("x", 1.5, 0, True)),
        *(({"shrink": wrong}, "shrink") for wrong in ("x", 0, True, [1])),
        ({"shrink": 1, "lam": 0}, "lam=0"),
        ({"lam": True}, "lam=True"),
        ({"trace": {"foo": 1}}, "trace.foo=1"),
        ({"trace": "keep"}, "trace='keep'"),
        ({"network": 5}, "network=5"),
    ],
)
def test_a_wrong_value_of_sparse_training_is_refused_when_it_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SlimError, match=words):
        SparseTraining(**options)


def test_a_law_of_ones_own_must_have_all_methods() -> None:
    class Own(Penalty):
        """No methods but those that ``install`` calls."""

        def attach(self, model: Any, graph: Any, total_steps: int) -> None:
            self.gammas = gamma_parameters(graph, model)

        def scales(self) -> list[Tensor]:
            return list(self.gammas)

        def before_step(self, lr: float) -> None: ...

        def after_step(self, lr: float) -> None: ...

    rest = "value, state_dict, load_state_dict, resize, summary, forecast"
    with pytest.raises(SlimError, match=f"Got Own without {rest}."):
        SparseTraining(Own())
    net = convnet()
    (law := Own()).attach(net, slim.trace(net, torch.zeros(1, 3, 6, 6)), 1)
    install(law, optimizer := torch.optim.SGD(net.parameters(), lr=0.1))
    optimizer.step()


def test_an_example_has_the_precision_of_the_network() -> None:
    """What autocast turns into bfloat16 arrives in the parameters' precision; indices stay what they are."""
    network = convnet().bfloat16()
    image, index = as_example(network, (torch.ones(2, 3, 4, 4), torch.ones(2, dtype=torch.int64)), {})
    assert (image.dtype, index.dtype) == (torch.bfloat16, torch.int64)
    assert image.shape == (2, 3, 4, 4) and not image.any() and not index.any()


def test_inputs_have_the_names_of_parameters_or_none() -> None:
    class Net(nn.Module):
        def forward(self, x: Any, *rest: Any, flag: bool = True, **more: Any) -> None:
            """Takes anything."""

    assert named_inputs(Net(), (1,), {"flag": False, "y": 2}) == {"x": 1, "flag": False, "y": 2}
    with pytest.raises(SlimError, match="name for each"):
        named_inputs(Net(), (1, 2), {})
