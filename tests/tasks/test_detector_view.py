"""What the view of a detector shows its backbone is what torchvision's own transform makes of the images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import slim
from slim.errors import SlimError
from slim.models import detection_model
from slim.tasks.detector_view import raw_outputs, transformed


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (30, 90), (32, 32)])
def test_images_are_scaled_as_by_torchvision(height: int, width: int) -> None:
    """Shorter side to min_size, unless the longer one would pass max_size; padding aside."""
    transform = GeneralizedRCNNTransform(64, 96, [0.5] * 3, [0.25] * 3, size_divisible=1).eval()
    images = torch.rand(2, 3, height, width)
    theirs, _ = transform(list(images))
    ours = transformed(images, transform)
    assert ours.shape == theirs.tensors.shape == (2, 3, *theirs.image_sizes[0])
    assert torch.allclose(ours, theirs.tensors, atol=0.1)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_thin_detector_is_a_detector_again(in_place: bool, tmp_path: Path) -> None:
    """Its own forward asks for numbers, so that shapes alone do not tell whether it runs."""

    def detector() -> torch.nn.Module:
        return detection_model("ssdlite_resnet8", num_classes=3, image_size=32).eval()

    torch.manual_seed(0)
    view, images = raw_outputs(detector()), torch.rand(2, 3, 32, 32)
    result = slim.prune(view, images[:1], macs=0.6)
    slim.save(tmp_path / "thin.safetensors", result.model, result.plan)
    if in_place:
        thin = slim.rebuild(detector(), result.plan, in_place=True)
        thin.load_state_dict(result.model.state_dict())
    else:
        thin = slim.load(tmp_path / "thin.safetensors", detector())
    with torch.no_grad():
        for found, expected in zip(raw_outputs(thin)(images).values(), result.model(images).values(), strict=True):
            assert torch.equal(found, expected)
        assert [set(boxes) for boxes in thin(list(images))] == [{"boxes", "scores", "labels"}] * 2


@pytest.mark.parametrize("in_place", [False, True])
def test_a_fixed_width_is_found_where_a_forward_asks_for_numbers(in_place: bool) -> None:
    """The plan is of another forward of the same layers, as that of raw outputs is of a detector's."""

    class Suppressing(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body, self.head, self.width = torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8, 2), width

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.body(x[x.sum((1, 2, 3)) >= 0]).mean((2, 3))
            return self.head(found.view(-1, self.width or found.shape[1]))

    class Twin(Suppressing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).mean((2, 3)))

    layers, graph = Suppressing(8), slim.trace(Twin(8), torch.rand(1, 3, 4, 4))
    plan = slim.select(graph, slim.score(graph, "l1"), ratio=0.5)
    with pytest.raises(SlimError, match="The thin network must run"):
        slim.rebuild(layers, plan, in_place=in_place)
    assert layers.body.out_channels == 8
    thin = slim.rebuild(Suppressing(0), plan, in_place=in_place)
    assert thin(torch.rand(2, 3, 4, 4)).shape == (2, 2)
