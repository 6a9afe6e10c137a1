"""What callbacks refuse, in one line: wrong values when they are made, the rest before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelPruning, StochasticWeightAveraging
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from slim import SlimError
from slim.lightning import ChannelPruning, SparseTraining
from slim.lightning.example import quiet
from slim.lightning.own_calls import check_own_calls

from .modules import Plain, fit, images, same, trainer


def test_what_cannot_be_cut_is_refused_before_anything_is_trained() -> None:
    class Named(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step((batch["image"], batch["label"]), batch_idx)

    def named(batch: Any) -> Any:
        return {"image": torch.stack([x for x, _ in batch]), "label": torch.stack([y for _, y in batch])}

    x, y = images().dataset.tensors  # type: ignore[attr-defined]
    pairs = list(zip(x, y, strict=True))
    for pruning, data, words in (
        (ChannelPruning(macs=0.01, at=1), images(), "within reach"),
        (ChannelPruning(ratio=0.5, at=1, ignore=["no.such"]), images(), "no.such"),
        (ChannelPruning(ratio=0.5, at=1, criterion="taylor"), DataLoader([(a, (b, 1)) for a, b in pairs], 8), "loss="),
    ):
        module = Plain()
        run = trainer(pruning)
        with pytest.raises(SlimError, match=words), quiet():
            run.fit(module, data)
        assert run.global_step == 0
    taylor = ChannelPruning(ratio=0.5, at=1, criterion="taylor", recover=False)
    fit(Named(), taylor, data=DataLoader(pairs, 8, collate_fn=named))
    assert taylor.history, "the labels of a dict are what the network was not given"


def test_misuse_is_one_line() -> None:
    class Bare(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))

    class Frozen(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net[1].requires_grad_(False)
            self.net[4].requires_grad_(False)

    sharded = trainer()
    sharded.strategy.__class__ = type("FSDPStrategy", (type(sharded.strategy),), {})
    for misuse, words in (
        (lambda: ChannelPruning(), "none"),
        (lambda: ChannelPruning(macs=0.5, ratio=0.5), "ratio=0.5, macs=0.5"),
        (lambda: ChannelPruning(macs=0.5, every=1), "every=1"),
        (lambda: ChannelPruning(zeros=True), "every=None"),
        (lambda: ChannelPruning(zeros=True, every=1, strategy="layer"), "strategy"),
        (lambda: fit(Plain(), ChannelPruning(zeros=True, every=1, ignore=["nothing"])), "matches none"),
        (lambda: ChannelPruning(macs=0.5, min_chanels=2), "min_channels"),
        (lambda: ChannelPruning(macs=0.5, recover={"batch": 2}), "batches"),
        (lambda: ChannelPruning(macs=0.5, recover=50), "batches"),  # type: ignore[arg-type]
        (lambda: fit(Plain(), ChannelPruning(macs=0.5, at=3)), "max_epochs=2"),
        (lambda: fit(Plain(), ChannelPruning(macs=0.5, at=[2, 1])), "ascending"),
        (lambda: fit(Plain(), ChannelPruning(macs=0.5, at={"count": 3}), epochs=3), "max_epochs to at least 4"),
        (lambda: fit(Bare(), ChannelPruning(macs=0.5)), "convolutions"),
        (lambda: fit(Frozen(), SparseTraining("l1")), "frozen"),
        (lambda: fit(Plain(), SparseTraining("l0"), StochasticWeightAveraging(0.1)), "cannot be averaged"),
        (lambda: fit(Plain(), SparseTraining("l0"), ChannelPruning(macs=0.5, at=[1, 2])), "random gates"),
        (
            lambda: fit(Plain(), SparseTraining("l1", trace={"residual": "keep"}), ChannelPruning(macs=0.5, trace={})),
            "trace",
        ),
        (lambda: ChannelPruning(macs=0.5).setup(sharded, Plain(), "fit"), "FSDP"),
    ):
        with pytest.raises(SlimError, match=words) as caught:
            misuse()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("steps", "at", "fits"), [(6, 3, False), (6, [1, 3], False), (7, 3, True), (6, 2, True)])
def test_a_cut_for_which_there_are_too_few_steps_is_refused_before_the_first(steps: int, at: Any, fits: bool) -> None:
    pruning = ChannelPruning(ratio=0.5, at=at, recover=False)
    run = trainer(pruning, epochs=-1, max_steps=steps)
    if fits:
        with quiet():
            run.fit(Plain(), images())
        assert len(pruning.history) == 1
        return
    with pytest.raises(SlimError, match=r"max_steps=6, and 6 steps in the 2 epochs"), quiet():
        run.fit(Plain(), images())
    assert run.global_step == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"recover": {"batches": wrong}}, "recover.batches=") for wrong in ("x", 1.5, -1, True)),
        *(({"recover": {"least_squares": wrong}}, "recover.least_squares=") for wrong in ("x", 1.5, -1, True)),
        ({"recover": {"evaluate": 3}}, "recover.evaluate=3"),
        ({"recover": {"absorb": "x"}}, "recover.absorb="),
        ({"copies": "teacher"}, r"Set copies=\['teacher'\]"),
        *(({"copies": wrong}, "list of networks") for wrong in (5, None, nn.Sequential())),
        ({"copies": [5]}, "network=5"),
        ({"network": 5}, "network=5"),
        *(({"ratio": wrong}, "ratio must be") for wrong in ("half", [0.5], True)),
        *(({"ratio": None, kind: "x"}, f"{kind}='x'") for kind in ("macs", "params", "memory", "latency")),
        ({"at": {"start": "x"}}, "start='x'"),
        ({"at": {"every": "x"}}, "at.every='x'"),
        ({"at": "ende"}, "at='ende'"),
        ({"criterion": {"nam": "gamma"}}, "dict of name"),
        ({"criterion": 5}, "criterion=5"),
        ({"criterion": {"name": "taylor", "batches": -1}}, "criterion.batches=-1"),
        ({"trace": {"foo": 1}}, "trace.foo=1"),
        ({"trace": "keep"}, "trace='keep'"),
        ({"overrides": ["0"]}, "overrides"),
        ({"inexact": "x"}, "inexact='x'"),
        ({"ratio": None, "zeros": True, "every": True}, "every=True"),
        ({"ratio": None, "zeros": True, "every": 1, "min_channels": "x"}, "min_channels='x'"),
        ({"ratio": None, "zeros": "x", "every": 1}, "zeros='x'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_when_the_callback_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SlimError, match=words):
        ChannelPruning(**{"ratio": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"copies": ["techer"], "at": 2}, "techer"),
        ({"criterion": lambda graph: 5}, "pairs of channel groups and as many values. Got int"),
        ({"criterion": lambda graph: [1, 2]}, "pairs of channel groups and as many values. Got 1 for a pair"),
        ({"network": lambda module: module.nett}, "AttributeError"),
        ({"network": lambda module: None}, "NoneType"),
    ],
)
def test_what_only_a_fit_can_know_is_refused_before_its_first_step(options: dict[str, Any], words: str) -> None:
    run = trainer(ChannelPruning(ratio=0.5, **options))
    with pytest.raises(SlimError, match=words), quiet():
        run.fit(Plain(), images())
    assert run.global_step == 0


def test_masks_of_single_weights_are_refused_before_training() -> None:
    masks = ModelPruning("l1_unstructured", amount=0.5)
    run = trainer(ChannelPruning(ratio=0.5, at=1), masks)
    with pytest.raises(SlimError, match="Got ModelPruning among the callbacks"), quiet():
        run.fit(Plain(), images())
    assert run.global_step == 0


def test_numbers_of_numpy_are_numbers_and_a_figure_must_be_one() -> None:
    whole = {"absorb": True, "batches": np.int64(1), "least_squares": np.int64(1)}
    pruning = ChannelPruning(ratio=np.float32(0.5), min_channels=np.int64(2), recover=whole)
    fit(Plain(), pruning, SparseTraining("l1", shrink=np.float32(0.5), epochs=np.int64(1)))
    assert pruning.history
    with pytest.raises(SlimError, match="a figure, higher is better"):
        ChannelPruning(ratio=0.5, recover={"evaluate": lambda net: None}).cut(Plain(), batches=images())


class Aside(Plain):
    """A head of its own reads what the first layers of the network make."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 3, 1)
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        side = self.head(self.net[:3](batch[0])).mean((2, 3))
        return super().training_step(batch, batch_idx) + nn.functional.cross_entropy(side, batch[1])


class Halves(Plain):
    """Its step calls the layers of the network in two pieces, which a cut leaves fitting."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.net(batch[0][:1])
        loss = nn.functional.cross_entropy(self.net[3:](self.net[:3](batch[0])), batch[1])
        self.logger.log_metrics({"loss": float(loss)})
        return loss


def test_a_reader_outside_of_the_network_is_refused_after_the_first_batch() -> None:
    run = trainer(ChannelPruning(ratio=0.4, at=1, network="net"))
    with pytest.raises(SlimError, match="calls '0' of the network by themselves"), quiet():
        run.fit(Aside(), images())
    assert run.global_step == 1
    module, kept = Aside(), ChannelPruning(ratio=0.4, at=1, network="net", ignore=["0"])
    fit(module, kept)
    assert kept.history and module.net[0].out_channels == 8 > module.net[3].out_channels
    assert module.steps == 6, "the step that was tried was that of a copy"


def test_a_step_that_calls_layers_by_themselves_is_tried_without_effects(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def trained(place: Any) -> Halves:
        module, logger = Halves(), CSVLogger(place, flush_logs_every_n_steps=1)
        fit(module, ChannelPruning(ratio=0.4, at=1, network="net"), logger=logger)
        return module

    tried: list[Any] = []
    monkeypatch.setattr(
        "slim.lightning.pruning.check_own_calls", lambda *given: tried.append(given[2]) or check_own_calls(*given)
    )
    one = trained(tmp_path / "one")
    assert tried == [["0", "1", "3", "4", "8"]]
    monkeypatch.setattr("slim.lightning.pruning.check_own_calls", lambda *given: None)
    two = trained(tmp_path / "two")
    assert same(one, two)
    assert not torch.nn.modules.module._global_forward_pre_hooks
    files = [next((tmp_path / name).rglob("metrics.csv")).read_text() for name in ("one", "two")]
    assert files[0] == files[1]
