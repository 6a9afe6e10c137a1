"""A detector without its data-dependent ends: from images to what its heads give, before boxes are decoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RawOutputs(nn.Module):
    """View of a detector whose ``forward`` maps a batch of images to the raw outputs of all its heads.

    A detector's own forward takes lists and targets, matches anchors and suppresses overlaps: what it computes depends
    on numbers, not only on shapes. The view runs backbone and heads alone, on one tensor. It *is* the detector under
    another class: both have the same attributes, so that training mode, parameters, names and submodules that somebody
    replaces are those of the detector, and nothing is registered twice. Made by :func:`raw_outputs`.

    Known layouts, torchvision's: ``backbone`` and ``head`` (SSD, SSDlite, RetinaNet, FCOS); ``backbone``, ``rpn`` and
    ``roi_heads`` (the R-CNN family). Here every region is a whole image on one level, so that multiply-accumulates
    count one region per image and level. Another detector says itself what it is: a method ``raw_outputs(images)``.
    """

    def forward(self, images: Tensor | list[Tensor], targets: Any = None) -> Any:
        """Images float (N, C, H, W) in [0, 1] to nested dicts and lists of tensors.

        Equally large images may come as a list and with targets, as the detector takes them; targets are not looked at.
        """
        detector: Any = self
        if not isinstance(images, Tensor):
            images = torch.stack(list(images))
        if hasattr(detector, "raw_outputs"):
            return detector.raw_outputs(images)
        if hasattr(detector, "transform"):
            images = transformed(images, detector.transform)
        features = detector.backbone(images)
        features = {"0": features} if isinstance(features, Tensor) else features
        if not hasattr(detector, "rpn"):
            return detector.head(list(features.values()))
        scores, offsets = detector.rpn.head(list(features.values()))
        return {"scores": scores, "offsets": offsets, **_regions(detector.roi_heads, features)}


def raw_outputs(detector: nn.Module) -> RawOutputs:
    """The view of ``detector``; see :class:`RawOutputs`."""
    kind: Any = RawOutputs
    if hasattr(type(detector), "raw_outputs"):
        kind = type("RawOutputs", (RawOutputs, type(detector)), {})  # with the detector's own methods
    view: RawOutputs = kind.__new__(kind)
    object.__setattr__(view, "__dict__", detector.__dict__)
    return view


def transformed(images: Tensor, transform: Any) -> Tensor:
    """What torchvision's transform makes of equally large images, without the padding."""
    images = transform.normalize(images)
    if transform.fixed_size is not None:
        size = (transform.fixed_size[1], transform.fixed_size[0])
    else:
        height, width = images.shape[-2:]
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
        size = (int(height * scale), int(width * scale))
    return images if tuple(images.shape[-2:]) == size else F.interpolate(images, size, mode="bilinear")


def _regions(heads: Any, features: dict[str, Tensor]) -> dict[str, Any]:
    """Outputs of the heads that look at regions (box, mask, keypoint), on whole images."""
    found = {}
    for kind in ("box", "mask", "keypoint"):
        pool = getattr(heads, f"{kind}_roi_pool", None)
        if pool is None:
            continue
        regions = [F.adaptive_avg_pool2d(features[name], pool.output_size) for name in pool.featmap_names]
        head, predictor = getattr(heads, f"{kind}_head"), getattr(heads, f"{kind}_predictor")
        found[kind] = predictor(head(torch.cat(regions)))
    return found
