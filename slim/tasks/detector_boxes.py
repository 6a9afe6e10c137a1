"""A detector up to its boxes: the score and the box of every anchor, before some of them are chosen."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim.errors import SlimError
from slim.tasks.detector_view import RawOutputs, transformed


def for_runtimes(network: nn.Module, example: Any) -> nn.Module:
    """What of a network a runtime can run: all of it; of a detector, whose answers are lists, up to its boxes.

    Args:
        network: Any.
        example: Its input; of a detector images float (N, 3, H, W).

    Raises:
        SlimError: A detector that does not come to its boxes by shapes alone, or of images of unknown size.
    """
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    detects = isinstance(network, RawOutputs) or isinstance(
        getattr(network, "transform", None), GeneralizedRCNNTransform
    )
    if not detects:
        return network
    if not isinstance(example, Tensor):
        raise SlimError(
            f"A detector in a file reads images of one size. Got {type(example).__name__} as its example. "
            "Give the data an image_size, or leave export out of phases."
        )
    height, width = example.shape[-2:]
    return AllBoxes(network, (height, width))


class AllBoxes(nn.Module):
    """One-stage detectors of torchvision (SSD, SSDlite, RetinaNet, FCOS) as a function of shapes alone, for runtimes.

    Which boxes are left, thresholds and overlaps decide, by numbers. Here that is a step of its own:
    :meth:`detections` makes of all boxes what the detector answers.

    Args:
        detector: Of torchvision, or its view :class:`~slim.tasks.RawOutputs`. It is copied.
        image_size: Height and width of the images that it will be given.

    Attributes:
        choice: What :meth:`detections` goes by, plain data: ``score_thresh``, ``nms_thresh``, ``detections_per_img``,
            ``topk_candidates``; ``levels``: anchors per feature map, the best of each of which are looked at, or None
            where it is the best of each label; ``first_label``: labels below are background.

    Raises:
        SlimError: Another detector.
    """

    anchors: Tensor

    def __init__(self, detector: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.kind = _kind(detector)
        # A view is the detector under another class: a copy of its parts has all that is needed.
        self.detector = copy.deepcopy(detector).eval()
        with torch.no_grad():
            weight = next(self.detector.parameters())
            images, self.scaled = self._prepared(torch.zeros(1, 3, *image_size).to(weight))
            maps = self._maps(images)
            found = self.detector.head(maps)["cls_logits"].shape[1]
            anchors = self.detector.anchor_generator(_image_list(images, self.scaled), maps)[0]
        self.register_buffer("anchors", anchors.to(weight))
        places = [found_map.shape[-2] * found_map.shape[-1] for found_map in maps]
        levels = None if self.kind == "ssd" else [found // sum(places) * count for count in places]
        names = ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates")
        self.image_size = image_size
        self.choice: dict[str, Any] = {name: getattr(detector, name) for name in names}
        self.choice |= {"levels": levels, "first_label": 1 if self.kind == "ssd" else 0}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images float (N, 3, H, W) in [0, 1] to scores (N, anchors, labels) and boxes (N, anchors, 4).

        Scores are in [0, 1]. A box is x1, y1, x2, y2 as shares of the image's width and height.
        """
        from torchvision.ops import clip_boxes_to_image

        found = self.detector.head(self._maps(self._prepared(images)[0]))
        logits, offsets = found["cls_logits"], found["bbox_regression"]
        if self.kind == "ssd":
            scores = logits.softmax(-1)
        elif self.kind == "fcos":
            scores = (logits.sigmoid() * found["bbox_ctrness"].sigmoid()).sqrt()
        else:
            scores = logits.sigmoid()
        anchors = self.anchors.expand(offsets.shape[0], -1, -1).reshape(-1, 4)
        coder = self.detector.box_coder
        decode = coder.decode if self.kind == "fcos" else coder.decode_single
        height, width = self.scaled
        boxes = clip_boxes_to_image(decode(offsets.reshape(-1, 4), anchors), self.scaled)
        return scores, (boxes / boxes.new_tensor([width, height, width, height])).reshape(offsets.shape)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a program must know to use a file of it."""
        return {"choice": self.choice, "size": list(self.image_size)}

    def detections(self, scores: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """What the detector answers, one dict per image, for what :meth:`forward` gave; boxes in pixels."""
        height, width = image_size
        pixels = boxes * boxes.new_tensor([width, height, width, height])
        return [self._chosen(*one) for one in zip(scores, pixels, strict=True)]

    def _chosen(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        from torchvision.ops import batched_nms

        choice, flat = self.choice, scores.flatten()
        cells = torch.arange(len(flat), device=flat.device).view(scores.shape)
        if choice["levels"] is None:
            groups = cells[:, choice["first_label"] :].unbind(1)
        else:
            groups = tuple(part.flatten() for part in torch.split(cells, choice["levels"]))
        orders = [flat[group].argsort(descending=True, stable=True) for group in groups]
        best = [group[order[: choice["topk_candidates"]]] for group, order in zip(groups, orders, strict=True)]
        cell = torch.cat([group[flat[group] > choice["score_thresh"]] for group in best])
        anchor, label = cell // scores.shape[1], cell % scores.shape[1]
        kept = batched_nms(boxes[anchor], flat[cell], label, choice["nms_thresh"])[: choice["detections_per_img"]]
        return {"boxes": boxes[anchor[kept]], "scores": flat[cell[kept]], "labels": label[kept]}

    def _prepared(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images normalized, scaled and padded as the detector does; their height and width before the padding."""
        transform = self.detector.transform
        images = transformed(images, transform)
        height, width = images.shape[-2:]
        multiple = transform.size_divisible
        return F.pad(images, (0, -width % multiple, 0, -height % multiple)), (height, width)

    def _maps(self, images: Tensor) -> list[Tensor]:
        found = self.detector.backbone(images)
        return [found] if isinstance(found, Tensor) else list(found.values())


def _kind(detector: Any) -> str:
    from torchvision.models.detection.fcos import FCOSHead
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.models.detection.ssd import SSDHead
    from torchvision.models.detection.ssdlite import SSDLiteHead

    heads = {"ssd": (SSDHead, SSDLiteHead), "retinanet": (RetinaNetHead,), "fcos": (FCOSHead,)}
    head = getattr(detector, "head", None)
    for kind, classes in heads.items():
        if isinstance(head, classes):
            return kind
    raise SlimError(
        f"A detector in a file must be of one stage: SSD, SSDlite, RetinaNet or FCOS of torchvision. Got "
        f"head={type(head).__name__}. Leave export out of phases; slim.load gives the thin detector of a run's "
        "model.safetensors."
    )


def _image_list(images: Tensor, size: tuple[int, int]) -> Any:
    from torchvision.models.detection.image_list import ImageList

    return ImageList(images, [size])
