"""Parameters and MACs are the reference implementation's, by PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from slim.models import densenet, preresnet, resnet, vgg


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module) -> int:
    model = model.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() // 2


def selectable(model: nn.Module) -> int:
    """Entries of the reference's selection layers, one behind every BatchNorm that reads a shared stream."""
    inner = ("bn2", "bn3")
    return sum(
        module.num_features
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not name.endswith(inner)
    )


def test_vgg19_is_the_reference() -> None:
    model = vgg(19)
    assert parameters(model) == 20_035_018
    assert macs(model) == 398_136_320


def test_preresnet164_is_the_reference_without_its_selection_layers() -> None:
    model = preresnet(164)
    assert parameters(model) + selectable(model) == 1_711_338
    assert parameters(model) == pytest.approx(1_711_338, rel=0.01)
    assert macs(model) == pytest.approx(247.65e6, abs=0.005e6)


def test_densenet40_is_the_reference_without_its_selection_layers() -> None:
    model = densenet(40, growth=12)
    assert parameters(model) + selectable(model) == 1_068_658
    assert parameters(model) == pytest.approx(1_068_658, rel=0.01)
    assert macs(model) == pytest.approx(282.92e6, abs=0.005e6)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_resnet_matches_the_formula(depth: int) -> None:
    """He et al. 2016, section 4.2: counted by hand from widths and sizes, not from the modules."""
    n = (depth - 2) // 6
    weights = {16: 9 * 16 * 16, 32: 9 * 32 * 32, 64: 9 * 64 * 64}
    pixels = {16: 1024, 32: 256, 64: 64}
    counted, work = 9 * 3 * 16 + 2 * 16, 9 * 3 * 16 * 1024
    for width in (16, 32, 64):
        counted += 2 * n * (weights[width] + 2 * width)
        work += 2 * n * weights[width] * pixels[width]
    for narrow, wide in ((16, 32), (32, 64)):
        counted -= 9 * wide * (wide - narrow)
        work -= 9 * wide * (wide - narrow) * pixels[wide]
    counted, work = counted + 64 * 10 + 10, work + 64 * 10
    padded = resnet(depth, option="A")
    assert (parameters(padded), macs(padded)) == (counted, work)
    projected = resnet(depth)
    assert parameters(projected) == counted + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert macs(projected) == work + 16 * 32 * 256 + 32 * 64 * 64
