"""A detector trains and predicts whole; the slimming core sees it as a function of one tensor."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

import slim
from slim.data import DetectionDigits
from slim.models import detection_model
from slim.tasks import Detection, raw_outputs
from slim.tasks.detection import average_precision
from tests.tasks.plain import fit, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated.*"),
    # torch's advice on a call inside torchvision's anchors.
    pytest.mark.filterwarnings("ignore:torch.meshgrid.*"),
]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


@pytest.fixture(scope="module")
def data() -> DetectionDigits:
    sizes: dict[str, Any] = {"scenes": 8, "val_scenes": 4, "test_scenes": 2, "image_size": 32}
    return DetectionDigits(**sizes, batch_size=4, eval_batch_size=4)


def make(name: str = "ssdlite_resnet8") -> Detection:
    torch.manual_seed(0)
    return Detection(detection_model(name, num_classes=11, image_size=32), optimizer=adam)


def test_a_run_logs_cocos_figures(tmp_path: Path, data: DetectionDigits) -> None:
    module = make()
    figures = fit(module, tmp_path, data, max_epochs=2)
    assert set(figures) == {"train/loss", "val/map", "val/map_50"}
    (tested,) = trainer(tmp_path).test(module, data, verbose=False)
    metric = average_precision()
    module.detector.eval()
    with torch.no_grad():
        for images, targets in data.test_dataloader():
            metric.update(module(images), targets)
    expected = metric.compute()
    assert tested == {f"test/{name}": pytest.approx(float(expected[name])) for name in ("map", "map_50")}


class Oracle(nn.Module):
    """Knows the boxes of ``samples``, and no label of the first ``wrong``."""

    def __init__(self, samples: Any, wrong: int = 0) -> None:
        super().__init__()
        self.known = {}
        for index, (image, target) in enumerate(samples):
            labels = 11 - target["labels"] if index < wrong else target["labels"]
            scores = torch.linspace(1, 0.5, len(labels))
            self.known[image.sum().item()] = {"boxes": target["boxes"], "labels": labels, "scores": scores}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.known[image.sum().item()] for image in images]


def test_a_perfect_detector_has_a_mean_average_precision_of_one(tmp_path: Path, data: DetectionDigits) -> None:
    data.setup()
    oracle = Detection(Oracle(data._sets["val"]), optimizer=adam)
    (figures,) = trainer(tmp_path).validate(oracle, data.val_dataloader(), verbose=False)
    assert figures == {"val/map": 1.0, "val/map_50": 1.0}


def test_where_nothing_is_to_be_found_there_is_no_figure(tmp_path: Path) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    oracle = Detection(Oracle([(torch.zeros(3, 8, 8), nothing)]), optimizer=adam)
    batches = DataLoader([(torch.zeros(1, 3, 8, 8), [nothing])], batch_size=None)
    (figures,) = trainer(tmp_path).validate(oracle, batches, verbose=False)
    assert all(math.isnan(value) for value in figures.values())


def test_two_processes_log_the_figures_of_one(tmp_path: Path) -> None:
    """Of an odd number of images: one process has more than the other."""
    sizes: dict[str, Any] = {"scenes": 2, "val_scenes": 5, "test_scenes": 1, "image_size": 32}
    data = DetectionDigits(**sizes, batch_size=2, eval_batch_size=2)
    data.setup()
    module = Detection(Oracle(data._sets["val"], wrong=2), optimizer=adam)
    (alone,) = trainer(tmp_path).validate(module, data, verbose=False)
    ours = trainer(tmp_path, strategy="ddp_fork", devices=2)
    ours.validate(module, data, verbose=False)
    assert 0 < alone["val/map"] < 1
    assert {name: float(value) for name, value in ours.callback_metrics.items()} == alone


def test_the_view_is_the_detector_under_another_class() -> None:
    module = make()
    view = module.network
    assert list(view.state_dict()) == list(module.detector.state_dict())
    assert set(module.state_dict()) == {f"detector.{name}" for name in view.state_dict()}
    view.eval()
    assert not module.detector.training
    twin = copy.deepcopy(view)
    assert twin.backbone is not view.backbone and twin.backbone is twin._modules["backbone"]
    module.detector.backbone = nn.Identity()
    assert isinstance(view.backbone, nn.Identity)


def randomized(detector: nn.Module) -> nn.Module:
    """Statistics and scales as of a trained network, so that every channel counts."""
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.1, 1.0)
            nn.init.normal_(layer.bias, 0.0, 0.1)
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return detector.eval()


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("ssdlite_resnet8", "gamma"),
        ("ssdlite320_mobilenet_v3_large", "gamma"),
        ("retinanet_resnet50_fpn", "l1"),  # neither its pyramid nor its heads have gammas
        ("fasterrcnn_resnet50_fpn", "l1"),
    ],
)
def test_half_of_a_detector_goes_exactly_and_the_rest_works(name: str, criterion: str, data: DetectionDigits) -> None:
    images, targets = next(iter(data.val_dataloader()))
    module = make(name)
    detector = randomized(module.detector)
    graph = slim.trace(module.network, images[:1])
    plan = slim.select(graph, slim.score(graph, criterion=criterion), macs=0.5)
    masked, before = slim.mask(module.network, plan), graph.macs()
    slim.rebuild(module.network, plan, in_place=True)
    with torch.no_grad():
        for one, other in zip(tree_leaves(masked(images)), tree_leaves(module.network(images)), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    assert slim.trace(module.network, images[:1]).macs() <= 0.5 * before
    sum(detector.train()(list(images), targets).values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    with torch.no_grad():
        assert len(detector.eval()(list(images))) == len(images)


def test_the_view_gives_what_the_heads_give(data: DetectionDigits) -> None:
    """Same numbers that the detector's own forward computes on its way."""
    images, _ = next(iter(data.val_dataloader()))
    detector = randomized(make().detector)
    seen = []
    handle = detector.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        detector(list(images))
        found = raw_outputs(detector)(images)
    handle.remove()
    assert all(torch.allclose(found[key], seen[0][key], atol=1e-6) for key in found)


def test_a_detector_may_say_itself_what_its_raw_outputs_are() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def raw_outputs(self, images: Tensor) -> Tensor:
            return self.layer(images)

    assert raw_outputs(Mine())(torch.zeros(1, 3, 4, 4)).shape == (1, 2, 4, 4)


def test_a_missing_metric_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmetrics.detection

    def missing(**_: Any) -> None:
        raise ModuleNotFoundError("no backend")

    monkeypatch.setattr(torchmetrics.detection, "MeanAveragePrecision", missing)
    with pytest.raises(slim.SlimError, match=r"pip install 'slim-channels\[detection\]'"):
        average_precision()
