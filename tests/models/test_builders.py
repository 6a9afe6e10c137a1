"""Builders: sizes follow the data, gamma_init is respected, mistakes are one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError
from slim.models import (
    build,
    check,
    densenet,
    mlp,
    preresnet,
    recipe,
    resnet,
    torchvision_model,
    torchvision_names,
    vgg,
)

SMALL: dict[str, Callable[..., nn.Module]] = {
    "vgg": lambda **kw: vgg(widths=[8, "M", 16, "M", 16], **kw),
    "vgg11": lambda **kw: vgg(11, **kw),
    "resnet": lambda **kw: resnet(8, **kw),
    "resnet-A": lambda **kw: resnet(8, option="A", **kw),
    "preresnet": lambda **kw: preresnet(11, **kw),
    "densenet": lambda **kw: densenet(7, growth=4, **kw),
    "mlp": lambda **kw: mlp([12, 8], image_size=32, **kw),
}


def gammas(model: nn.Module) -> torch.Tensor:
    return torch.cat([m.weight for m in model.modules() if isinstance(m, _BatchNorm)])


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_sizes_follow_the_data(family: str, in_channels: int) -> None:
    model = SMALL[family](num_classes=7, in_channels=in_channels)
    logits = model(torch.randn(2, in_channels, 32, 32))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("gamma_init", [0.5, 0.25, None])
def test_gamma_starts_where_told(family: str, gamma_init: float | None) -> None:
    scales = gammas(SMALL[family](num_classes=2, gamma_init=gamma_init))
    assert (scales == (1.0 if gamma_init is None else gamma_init)).all()


@pytest.mark.parametrize("family", SMALL)
def test_default_gamma_is_the_papers(family: str) -> None:
    assert (gammas(SMALL[family](num_classes=2)) == 0.5).all()


def test_same_seed_same_weights() -> None:
    first, second = (torch.manual_seed(3) and resnet(8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("size", [16, 28, 40])
def test_vgg_reads_other_sizes(size: int) -> None:
    assert vgg(16, in_channels=1)(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_paper_mlp_is_784_500_300_10() -> None:
    assert [tuple(p.shape) for p in mlp().parameters() if p.ndim == 2] == [(500, 784), (300, 500), (10, 300)]


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: vgg(12), "depth"),
    (lambda: vgg("16"), "depth"),  # type: ignore[arg-type]
    (lambda: vgg(widths=[64, "N"]), "model.widths"),
    (lambda: vgg(widths="M"), "model.widths"),
    (lambda: vgg(widths=[]), "model.widths"),
    (lambda: vgg(widths=[True]), "model.widths"),
    (lambda: vgg(num_classes=0), "num_classes"),
    (lambda: vgg(in_channels=0), "in_channels"),
    (lambda: vgg(gamma_init=0.0), "gamma_init"),
    (lambda: vgg(gamma_init=float("nan")), "gamma_init"),
    (lambda: vgg(gamma_init="half"), "gamma_init"),  # type: ignore[arg-type]
    (lambda: resnet(21), "6n+2"),
    (lambda: resnet(2), "6n+2"),
    (lambda: resnet(20, option="C"), "model.option"),
    (lambda: preresnet(163), "9n+2"),
    (lambda: densenet(41), "3n+4"),
    (lambda: densenet(40, growth=0), "model.growth"),
    (lambda: mlp([]), "model.hidden"),
    (lambda: mlp([5, -1]), "model.hidden"),
    (lambda: torchvision_model("resnet19"), "resnet18"),
    (lambda: torchvision_model("resnet18", pretrained="NOPE"), "model.pretrained"),
    (lambda: torchvision_model("resnet18", colour="red"), "resnet18"),
    (lambda: torchvision_model("vit_b_16", image_size=30), "data.image_size"),
    (lambda: build("vg", 10), "Did you mean vgg"),
    (lambda: build("slim.models.vggg", 10), "Did you mean vgg"),
    (lambda: build("no.such.thing", 10), "model._target_"),
    (lambda: build("vgg", 10, deepth=16), "Did you mean depth"),
    (lambda: build("collections.OrderedDict", 10), "torch.nn.Module"),
    (lambda: build("math.pi", 10), "model._target_"),
    (lambda: build("torch.nn.Linear", 10, in_features=-3, out_features=2), "model._target_"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_mistakes_are_one_line(index: int) -> None:
    call, hint = BAD[index]
    with pytest.raises(SlimError) as caught:
        call()
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_build_takes_families_and_paths() -> None:
    torch.manual_seed(0)
    by_name = build("resnet", 5, 1, depth=8)
    torch.manual_seed(0)
    by_path = build("slim.models.resnet", 5, 1, image_size=32, depth=8)
    for a, b in zip(by_name.parameters(), by_path.parameters(), strict=True):
        assert torch.equal(a, b)


class Stranger(nn.Module):
    """Calls things by other names."""

    def __init__(self, n_classes: int, in_chans: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_chans, n_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean((2, 3))


def test_build_speaks_other_libraries_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn, "Stranger", Stranger, raising=False)
    model = build("torch.nn.Stranger", 4, 2, image_size=8)
    assert model.layer.weight.shape == (4, 2, 1, 1)
    check(model, 4, 2, 8)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "regnet_x_400mf", "mnasnet0_5"])
def test_torchvision_classifiers_follow_the_data(name: str) -> None:
    model = torchvision_model(name, num_classes=7, in_channels=1)
    check(model, 7, 1, 64)
    assert (gammas(model) == 0.5).all() if name != "squeezenet1_1" else True


def test_every_torchvision_name_is_offered() -> None:
    assert {"resnet50", "vgg19_bn", "vit_b_16", "convnext_tiny"} <= set(torchvision_names())


def test_vision_transformer_takes_the_datas_size() -> None:
    with torch.device("meta"):
        model = torchvision_model("vit_b_16", num_classes=7, image_size=32)
    check(model, 7, 3, 32)
    assert model.image_size == 32


def test_pretrained_weights_fit_new_classes_and_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grey image, through the averaged stem, gives what it gave in colour; gamma is not reset."""
    from torchvision.models import ResNet18_Weights, resnet18

    trained = resnet18()
    for module in trained.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight)
    state = copy.deepcopy(trained.state_dict())
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **_: state)
    model = torchvision_model("resnet18", num_classes=7, in_channels=1, pretrained=True).eval()
    assert torch.equal(gammas(model), gammas(trained))
    grey = torch.randn(2, 1, 64, 64)
    trained.eval()
    features = trained.conv1(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.conv1(grey), features)
    assert model(grey).shape == (2, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_networks_come_without_their_auxiliary_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import get_model, get_model_weights

    with torch.device("meta"):
        state = get_model(name, aux_logits=True, init_weights=False).state_dict()
        monkeypatch.setattr(get_model_weights(name), "get_state_dict", lambda self, **_: state)
        model = torchvision_model(name, num_classes=7, pretrained=True)
        options = recipe("torchvision", 7, name=name, pretrained=True)
        twin = build(options.pop("_target_"), **options)
        assert model.train()(torch.empty(2, 3, 96, 96)).shape == (2, 7)
    assert model.transform_input == twin.transform_input
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SlimError, match=r"resnet18-\w+\.pth into .*model\.pretrained=false") as caught:
        torchvision_model("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


def test_check_leaves_the_model_alone() -> None:
    model = resnet(8).train()
    model.fc.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check(model, 10, 3, 32)
    assert model.training and not model.fc.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize(("classes", "channels", "size"), [(9, 3, 32), (10, 1, 32), (10, 3, 4)])
def test_check_names_what_does_not_fit(classes: int, channels: int, size: int) -> None:
    with pytest.raises(SlimError):
        check(vgg(16), classes, channels, size)
