"""Which networks are tried, found by asking the libraries: no list of names. Each is built with random weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 384)
FAMILY_SAMPLE = 8  # members of a timm family that are sized up to find its smallest


def torchvision_names() -> Iterator[str]:
    """All classifiers, then the segmentation networks whole, then the backbones of the detection networks."""
    from torchvision import models

    for kind, module in (
        ("classifier", models),
        ("segmentation", models.segmentation),
        ("detection", models.detection),
        ("video", models.video),
        ("flow", models.optical_flow),
    ):
        for name in models.list_models(module=module):
            yield f"torchvision/{kind}/{name}"


def transformers_names() -> Iterator[str]:
    """The small models of :mod:`experiments.coverage.hugging`."""
    from experiments.coverage.hugging import SMALL

    yield from (f"transformers/small/{name}" for name in SMALL)


def timm_names(every: bool = False) -> Iterator[str]:
    """One small network per family and file of timm; with ``every`` all networks of timm.

    A family is the name up to its first digit or underscore (`resnet`, `ecaresnet`, `seresnext`, ...). Its
    representative is the one with the fewest parameters, of all members or of eight spread evenly over them.
    """
    import timm

    for module in timm.list_modules():
        families: dict[str, list[str]] = {}
        for name in timm.list_models(module=module):
            families.setdefault(re.match(r"(tf_)?[a-z]+", name).group(), []).append(name)  # type: ignore[union-attr]
        for members in families.values():
            if every:
                yield from (f"timm/{module}/{name}" for name in members)
                continue
            step = -(-len(members) // FAMILY_SAMPLE)
            yield f"timm/{module}/{min(members[::step], key=_timm_size)}"


def _timm_size(name: str) -> int:
    import timm

    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def build(path: str) -> tuple[nn.Module, Tensor | tuple[Tensor, Tensor]]:
    """The network that a path of this catalog names, prepared, and its example image."""
    source, kind, name = path.split("/")
    channels, fixed = 3, None
    if source == "transformers":
        from experiments.coverage.hugging import small

        return prepare(small(name), sizes=(64,))
    if kind in ("video", "flow"):
        return _moving(_torchvision(kind, name), kind, name)
    if source == "timm":
        import timm

        model = timm.create_model(name)
        shape = model.pretrained_cfg.get("input_size", (3, 224, 224))
        channels = shape[0]
        fixed = shape[1] if model.pretrained_cfg.get("fixed_input_size") else None
    else:
        model = _torchvision(kind, name)
        fixed = getattr(model, "image_size", None)
    return prepare(model, channels, fixed)


def prepare(
    model: nn.Module, channels: int = 3, fixed: int | None = None, sizes: tuple[int, ...] = SIZES
) -> tuple[nn.Module, Tensor]:
    """``model`` in eval mode and an image ``(2, C, H, W)``: ``fixed``, or the smallest of ``SIZES`` that it accepts.

    Norms get random scales and shifts and statistics fitted to a random batch, layer scales are made large and zeros
    random: at their defaults a channel removed by mistake would hardly show.
    """
    stir(model)
    for size in (fixed,) if isinstance(fixed, int) else sizes:
        image = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
        try:
            fit_statistics(model, image)
            return model.eval(), image
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            last = error
    raise RuntimeError(f"no image of {SIZES} fits: {' '.join(str(last).split())[:100]}")


def _moving(model: nn.Module, kind: str, name: str) -> tuple[nn.Module, Tensor | tuple[Tensor, Tensor]]:
    """A video network and a clip ``(N, 3, T, H, W)``, or a flow network and two images ``(2, 3, 128, 128)``."""
    stir(model)
    generator = torch.Generator().manual_seed(0)
    example: Tensor | tuple[Tensor, Tensor]
    if kind == "flow":
        first, second = (torch.randn(2, 3, 128, 128, generator=generator) for _ in range(2))
        example = first, second
    elif name.startswith("mvit"):
        example = torch.randn(1, 3, 16, 224, 224, generator=generator)
    else:
        side = 224 if name == "s3d" else 64
        example = torch.randn(2, 3, 16, side, side, generator=generator)
    fit_statistics(model, example)
    return model.eval(), example


def _torchvision(kind: str, name: str) -> nn.Module:
    from torchvision import models

    options = {"weights_backbone": None} if kind in ("segmentation", "detection") else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": False}
    model = models.get_model(name, weights=None, **options)
    return model.backbone if kind == "detection" else model


def stir(model: nn.Module) -> None:
    """Give vectors of parameters values between 0.3 and 1, a quarter of them negative; and what is all zero, noise."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=0):
                value = torch.rand(parameter.shape, generator=generator) * 0.7 + 0.3
                sign = torch.where(torch.rand(parameter.shape, generator=generator) < 0.25, -1.0, 1.0)
                parameter.copy_(value * sign)
            elif not parameter.any():
                parameter.normal_(std=0.1, generator=generator)


def norms(model: nn.Module) -> list[nn.Module]:
    """The layers with running statistics."""
    return [module for module in model.modules() if getattr(module, "running_mean", None) is not None]


def fit_statistics(model: nn.Module, image: Tensor | tuple[Tensor, ...]) -> None:
    """One forward in which every BatchNorm takes its statistics from the batch, so that activations keep their size."""
    model.eval()
    momenta = []
    for module in norms(model):
        momenta.append((module, module.momentum))
        module.momentum = 1.0
        module.train()
    try:
        with torch.no_grad():
            model(*image) if isinstance(image, tuple) else model(image)
    finally:
        for module, momentum in momenta:
            module.momentum = momentum
        model.eval()
