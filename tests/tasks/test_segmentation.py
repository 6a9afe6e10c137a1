"""Pixels are counted exactly, ignored ones nowhere; torchvision's networks train and can be cut."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

import slim
from slim.command.compose import compose
from slim.data import SegmentationDigits
from slim.models import segmentation_model
from slim.runs.prepare import prepare
from slim.runs.pruning import score
from slim.tasks import Segmentation
from slim.tasks.segmentation import MeanIoU
from tests.tasks.plain import SGD, fit, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated.*"),
]


def digits(**options: Any) -> SegmentationDigits:
    sizes: dict[str, Any] = {"scenes": 12, "val_scenes": 5, "test_scenes": 3, "image_size": 24, "batch_size": 4}
    return SegmentationDigits(**{**sizes, "eval_batch_size": 2, **options})


def make(name: str = "lraspp_resnet8") -> Segmentation:
    torch.manual_seed(0)
    return Segmentation(segmentation_model(name, num_classes=11), optimizer=SGD)


def predicted(module: Segmentation, batches: Any) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        return module.network.eval()(x)["out"], y


def test_mean_iou_is_torchmetrics_over_the_whole_set() -> None:
    """Whatever the batches; classes that never occur are left out."""
    labels, found = torch.randint(0, 5, (6, 7, 7)), torch.randint(0, 5, (6, 7, 7))
    labels[torch.rand(labels.shape) < 0.2] = 255
    ours, theirs = MeanIoU(), MulticlassJaccardIndex(5, ignore_index=255)
    for rows in (slice(0, 1), slice(1, 6)):
        ours.update(found[rows], labels[rows])
    assert float(ours.compute()) == pytest.approx(float(theirs(found, labels)), rel=1e-6)
    assert float(ours.compute()) != 0


def test_figures_are_of_all_pixels_that_count(tmp_path: Path) -> None:
    module, data = make(), digits()
    figures = fit(module, tmp_path, data, max_epochs=2)
    logits, y = predicted(module, data.val_dataloader())
    assert (y == 255).any() and set(figures) == {"train/loss", "val/loss", "val/accuracy", "val/miou"}
    counted = y != 255
    assert figures["val/loss"] == pytest.approx(float(F.cross_entropy(logits, y, ignore_index=255)), rel=1e-5)
    assert figures["val/accuracy"] == float((logits.argmax(1) == y)[counted].double().mean())
    metric = MeanIoU()
    metric.update(logits.argmax(1), y)
    assert figures["val/miou"] == float(metric.compute())
    (tested,) = trainer(tmp_path).test(module, data, verbose=False)
    assert set(tested) == {"test/loss", "test/accuracy", "test/miou"}


def test_a_batch_of_ignored_pixels_has_a_loss() -> None:
    module = make().eval()
    assert float(module._loss(torch.randn(1, 11, 4, 4), torch.full((1, 4, 4), 255))) == 0


class TwoHeads(nn.Module):
    """Logits of two classifiers, as torchvision's networks with an auxiliary one give them."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, 11, 1), nn.Conv2d(3, 11, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.out(x), "aux": self.aux(x)}


def test_the_auxiliary_loss_counts_with_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    network = TwoHeads()
    module = Segmentation(network, optimizer=SGD, aux_weight=0.25)
    monkeypatch.setattr(module._means, "log", lambda *_: None)
    x, y = next(iter(digits().train_dataloader()))
    with torch.no_grad():
        parts = [F.cross_entropy(network(x)[name], y, ignore_index=255) for name in ("out", "aux")]
        assert torch.allclose(module.training_step((x, y), 0), parts[0] + 0.25 * parts[1])


def test_a_plain_tensor_of_logits_will_do(tmp_path: Path) -> None:
    module = Segmentation(nn.Conv2d(3, 11, 3, padding=1), optimizer=SGD)
    assert 0 <= fit(module, tmp_path, digits())["val/miou"] <= 1
    assert module.predict_step(torch.zeros(1, 3, 8, 8), 0).shape == (1, 8, 8)


LINE = [
    *("+experiment=segmentation_slim", "model.name=lraspp_resnet8", "data.image_size=24", "data.scenes=8"),
    *("data.val_scenes=2", "data.test_scenes=1", "data.batch_size=4", "trainer.accelerator=cpu"),
]


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_criteria_with_labels_leave_out_what_the_loss_leaves_out(criterion: str) -> None:
    config = compose(
        [*LINE, f"criterion={criterion}", "criterion.batches=2"], Namespace(config_dir=None, config_name=None)
    )[0]
    parts = prepare(config)
    assert isinstance(parts.module(), Segmentation)
    graph = parts.trace(parts.dense())
    pairs = parts.data.plain_batches(2)
    assert any((y == 255).any() for _, y in pairs)
    expected = slim.score(
        graph, criterion, loader=pairs, batches=2, loss=lambda out, y: F.cross_entropy(out["out"], y, ignore_index=255)
    )
    assert score(parts, graph).values == pytest.approx(expected.values, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["model=custom", "model._target_=torch.nn.Identity"], r"per pixel. Got \(1, 3, 24, 24"),
        (["model=ssdlite", "model.name=ssdlite_resnet8"], "11 logits per pixel. Got list"),
        (["+model.num_classes=5"], "has the num_classes of its data"),
    ],
)
def test_a_network_without_a_logit_per_pixel_is_refused(given: list[str], says: str) -> None:
    line = [item for item in LINE if not item.startswith("model.name")]
    with pytest.raises(slim.SlimError, match=says):
        prepare(compose([*line, *given], Namespace(config_dir=None, config_name=None))[0])


def test_a_weight_of_the_auxiliary_loss_is_a_number() -> None:
    with pytest.raises(slim.SlimError, match="aux_weight must be a number"):
        Segmentation(segmentation_model("fcn_resnet8", num_classes=11), optimizer=SGD, aux_weight="a")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lraspp_resnet8", "fcn_resnet8"])
def test_half_of_the_network_goes_exactly_and_the_rest_trains_on(tmp_path: Path, name: str) -> None:
    module, data = make(name), digits()
    fit(module, tmp_path, data)
    x = next(iter(data.val_dataloader()))[0]
    graph = slim.trace(module.network.eval(), x)
    plan = slim.select(graph, slim.score(graph), macs=0.5)
    masked, before = slim.mask(module.network, plan), graph.macs()
    slim.rebuild(module.network, plan, in_place=True)
    assert torch.allclose(masked(x)["out"], module(x), atol=1e-4)
    assert slim.trace(module.network, x).macs() <= 0.5 * before
    module.network.train()
    assert fit(module, tmp_path, data)["train/loss"] < 5


def test_images_are_normalized_as_a_network_was_trained(tmp_path: Path) -> None:
    """An artifact says mean and deviation; what is given as an option counts."""
    told = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    usual, given, asked = digits(), digits(), digits(**told)
    given.setup("fit")
    given.normalize_as(**told)
    asked.normalize_as([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert (usual.mean, usual.std) == ((0.25, 0.25, 0.25), (0.2, 0.2, 0.2))
    for data in (given, asked):
        assert [*data.mean, *data.std] == [*told["mean"], *told["std"]]
    for part in ("val_dataloader", "test_dataloader"):
        mine, theirs, before = (next(iter(getattr(data, part)()))[0] for data in (given, asked, usual))
        assert torch.equal(mine, theirs) and not torch.equal(mine, before)
