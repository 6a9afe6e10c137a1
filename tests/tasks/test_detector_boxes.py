"""All boxes of a detector, and the choice among them, are what the detector answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slim.errors import SlimError
from slim.models import detection_model
from slim.tasks import AllBoxes, for_runtimes, raw_outputs
from tests.channels.laws import close

# torch's advice on a call inside torchvision's anchors.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid.*")

DETECTORS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("ssdlite_resnet8", 64, {}),
    ("ssdlite_resnet8", 64, {"topk_candidates": 3, "detections_per_img": 7}),
    ("ssdlite320_mobilenet_v3_large", 96, {}),
    ("retinanet_resnet50_fpn", 50, {}),
    ("fcos_resnet50_fpn", 50, {"topk_candidates": 20}),
]


def randomized(name: str, size: int | None, options: dict[str, Any]) -> Any:
    """A detector in double precision whose heads give all kinds of scores, none of them twice."""
    torch.manual_seed(0)
    options = {"score_thresh": 0.05, **options}
    detector: Any = detection_model(name, num_classes=4, image_size=size, gamma_init=1.0, **options).double().eval()
    for layer in detector.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    images = torch.rand(2, 3, 48, 40, dtype=torch.float64)
    with torch.no_grad():  # statistics of these images, so that what comes to the heads is of a usual size
        detector.backbone.train()
        detector.backbone(detector.transform(list(images))[0].tensors)
    detector.eval()
    for name, values in detector.head.named_parameters():
        if values.dim() > 1:
            nn.init.normal_(values, std=2 / values[0].numel() ** 0.5)
        elif "bias" in name:
            nn.init.zeros_(values)
    return detector, images


@pytest.mark.parametrize(("name", "size", "options"), DETECTORS)
def test_what_is_chosen_is_what_the_detector_answers(name: str, size: int | None, options: dict[str, Any]) -> None:
    detector, images = randomized(name, size, options)
    whole = AllBoxes(raw_outputs(detector), (48, 40))
    with torch.no_grad():
        scores, boxes = whole(images)
        found, expected = whole.detections(scores, boxes, (48, 40)), detector(list(images))
    assert scores.shape[:2] == boxes.shape[:2] and boxes.min() >= 0 and boxes.max() <= 1
    assert len(found) == len(expected) == 2 and all(len(one["labels"]) > 3 for one in expected)
    for mine, wanted in zip(found, expected, strict=True):
        assert mine["labels"].tolist() == wanted["labels"].tolist()
        close(mine["boxes"], wanted["boxes"], "boxes", 1e-6)  # anchors are made in single precision
        close(mine["scores"], wanted["scores"], "scores", 1e-6)


def test_the_detector_is_copied() -> None:
    detector, images = randomized(*DETECTORS[0])
    detector.train()
    whole = AllBoxes(detector, (48, 40))
    before = whole(images)[0]
    with torch.no_grad():
        next(detector.parameters()).zero_()
    assert detector.training and torch.equal(whole(images)[0], before)


def test_images_of_unknown_size_are_refused() -> None:
    with pytest.raises(SlimError, match="Got list as its example"):
        for_runtimes(raw_outputs(randomized(*DETECTORS[0])[0]), [torch.zeros(3, 48, 40)])


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"])
def test_other_detectors_are_refused(name: str) -> None:
    with pytest.raises(SlimError, match="must be of one stage"):
        AllBoxes(detection_model(name, num_classes=2, image_size=64), (64, 64))
