"""Networks of timm and transformers by name: heads and stems follow the data, mistakes are one line, offline too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError
from slim.models import check, detection_model, preprocessing, recipe, timm_model, transformers_model

NETWORKS: dict[str, tuple[Callable[..., nn.Module], str, int]] = {
    "timm, any size": (timm_model, "resnet10t", 32),
    "timm, told its size": (timm_model, "vit_tiny_patch16_224", 48),
    "transformers, any size": (transformers_model, "resnet", 32),
    "transformers, told its size": (transformers_model, "vit", 24),
}


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_sizes_follow_the_data(kind: str, in_channels: int) -> None:
    builder, name, size = NETWORKS[kind]
    check(builder(name, num_classes=7, in_channels=in_channels, image_size=size), 7, in_channels, size)


@pytest.mark.parametrize("kind", ["timm, any size", "transformers, any size"])
@pytest.mark.parametrize("gamma_init", [0.25, None])
def test_gamma_starts_where_told(kind: str, gamma_init: float | None) -> None:
    builder, name, _ = NETWORKS[kind]
    model = builder(name, gamma_init=gamma_init)
    scales = torch.cat([m.weight for m in model.modules() if isinstance(m, _BatchNorm)])
    assert (scales == 0.25).all() if gamma_init else (scales != 0.25).all()


def _without_a_network() -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models._api.load_state_dict_from_url", _unreachable)
        return detection_model("ssdlite320_mobilenet_v3_large", pretrained="backbone")


def test_a_detector_on_a_pretrained_backbone_is_built_again_without_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchvision halves the last layers of a backbone that is not pretrained."""
    from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large

    state = mobilenet_v3_large().state_dict()
    monkeypatch.setattr(MobileNet_V3_Large_Weights, "get_state_dict", lambda self, **_: state)
    options: dict[str, Any] = {"name": "ssdlite320_mobilenet_v3_large", "pretrained": "backbone"}
    made = recipe("slim.models.detection_model", 5, **options)
    assert made.pop("_target_") and not made["pretrained"]
    trained, twin = detection_model(num_classes=5, **options), detection_model(**made)
    twin.load_state_dict(trained.state_dict())
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        assert torch.equal(trained.eval()(images)[0]["scores"], twin.eval()(images)[0]["scores"])


def test_the_backbone_of_ssd300_has_the_weights_for_the_scale_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import VGG16_Weights

    asked = []
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **_: asked.append(self.name) or _unreachable())
    with torch.device("meta"), pytest.raises(SlimError, match="on disk or downloadable"):
        detection_model("ssd300_vgg16", pretrained="backbone")
    assert asked == ["IMAGENET1K_FEATURES"]


def _unreachable(*_: object, **__: object) -> None:
    raise URLError("Name or service not known")


BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm, name": (lambda: timm_model("resnet10"), "Did you mean resnet10t"),
    "timm, option": (lambda: timm_model("resnet10t", colour="red"), "Change model"),
    "timm, classes": (lambda: timm_model("resnet10t", num_classes=0), "num_classes"),
    "timm, channels": (lambda: timm_model("resnet10t", in_channels=0), "in_channels"),
    "timm, size": (lambda: timm_model("vit_tiny_patch16_224", image_size=-3), "Change model"),
    "timm, offline": (lambda: timm_model("resnet10t", pretrained=True), "Set model.pretrained=false"),
    "timm, hub": (lambda: timm_model("hf-hub:nobody/nothing"), "could not build hf-hub:nobody/nothing"),
    "transformers, name": (lambda: transformers_model("resnett"), "Did you mean resnet"),
    "transformers, unknown": (lambda: transformers_model("resnet", hiden_sizes=[8]), "Did you mean hidden_sizes"),
    "detection, tail": (lambda: detection_model("ssdlite_resnet8", whole_tail=True), "Set it to false"),
    "detection, backbone": (_without_a_network, "on disk or downloadable"),
    "transformers, field": (lambda: transformers_model("resnet", depths="many"), "Change model"),
    "transformers, classes": (lambda: transformers_model("resnet", num_classes=0), "num_classes"),
    "transformers, channels": (lambda: transformers_model("resnet", in_channels=0), "in_channels"),
    "transformers, hub": (lambda: transformers_model("nobody/nothing"), "Set model.pretrained=false"),
    "transformers, weights": (lambda: transformers_model("nobody/nothing", pretrained=True), "pretrained=false"),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_one_line(kind: str) -> None:
    call, hint = BAD[kind]
    with pytest.raises(SlimError) as caught:
        call()
    message = str(caught.value)
    assert hint in message and "\n" not in message


def test_timms_networks_know_their_preprocessing() -> None:
    found = preprocessing(timm_model("resnet10t"))
    assert found == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "image_size": 176}


def test_weights_and_preprocessing_of_transformers_come_from_a_folder(tmp_path: Path) -> None:
    """What a hub would give, without one; a head of another size starts fresh, the rest keeps its weights."""
    from transformers import ConvNextImageProcessor

    trained = transformers_model("resnet", num_classes=5)
    trained.model.save_pretrained(tmp_path)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    ConvNextImageProcessor(image_mean=mean, image_std=std, size={"shortest_edge": 40}).save_pretrained(tmp_path)
    loaded = transformers_model(str(tmp_path), num_classes=3, pretrained=True)
    assert preprocessing(loaded) == {"mean": tuple(mean), "std": tuple(std), "image_size": 40}
    check(loaded, 3, 3, 32)
    for (name, before), after in zip(
        trained.model.resnet.state_dict().items(), loaded.model.resnet.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name
