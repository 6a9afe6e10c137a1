"""Images with boxes: scenes of digits, torchvision's VOC, COCO and whatever has its format.

Batches are ``(images float32 (N, 3, H, W) in [0, 1], targets)``; see :data:`~slim.data.box_sets.Target`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slim.data.box_sets import CocoBoxes, SceneBoxes, VOCBoxes
from slim.data.scenes import SceneOptions
from slim.data.task_data import TaskData, known
from slim.errors import SlimError


class DetectionDigits(TaskData):
    """Scenes of handwritten digits; embedded. See :class:`~slim.data.scenes.DigitScenes`. Label digit + 1.

    Args:
        scenes: Of training.
        val_scenes: Of validation.
        test_scenes: Of test.
        image_size: Height and width.
        digits: Most digits per scene.
        scene_seed: Of the scenes; runs that differ only in ``seed`` train on the same.
        common: See :class:`~slim.data.task_data.TaskData`.
    """

    def __init__(
        self,
        *,
        scenes: int = 600,
        val_scenes: int = 100,
        test_scenes: int = 200,
        image_size: int = 64,
        digits: int = 3,
        scene_seed: int = 0,
        **common: Any,
    ) -> None:
        content = SceneOptions(scenes, val_scenes, test_scenes, image_size, digits, scene_seed)
        super().__init__(SceneBoxes(content), **known(common))


class VOCDetectionData(TaskData):
    """PASCAL VOC's 20 classes. Test is the test set of 2007, the validation images of other years.

    Args:
        root: Folder of the downloaded files.
        download: Whether missing files may be downloaded.
        year: 2007 to 2012.
        image_size: Pictures are scaled to this height and width.
        common: See :class:`~slim.data.task_data.TaskData`.
    """

    def __init__(
        self,
        *,
        root: str = "datasets",
        download: bool = True,
        year: str | int = "2007",
        image_size: int = 320,
        **common: Any,
    ) -> None:
        super().__init__(VOCBoxes(root, download, str(year), image_size), **known(common))


class CocoDetectionData(TaskData):
    """COCO, or your own images with boxes in its format. Paths are relative to ``dir``; the defaults are COCO 2017's.

    Args:
        dir: The folder.
        train_images: Folder of the training images.
        train_boxes: Their JSON file.
        test_images: Folder of the test images.
        test_boxes: Their JSON file.
        val_images: Folder of the validation images; None cuts them from the training images.
        val_boxes: Their JSON file.
        image_size: Pictures are scaled to this height and width.
        common: See :class:`~slim.data.task_data.TaskData`.
    """

    def __init__(
        self,
        *,
        dir: str,
        train_images: str = "train2017",
        train_boxes: str = "annotations/instances_train2017.json",
        test_images: str = "val2017",
        test_boxes: str = "annotations/instances_val2017.json",
        val_images: str | None = None,
        val_boxes: str | None = None,
        image_size: int = 320,
        **common: Any,
    ) -> None:
        root = Path(dir).expanduser()
        parts = {"train": (root / train_images, root / train_boxes), "test": (root / test_images, root / test_boxes)}
        if (val_images is None) != (val_boxes is None):
            raise SlimError(
                f"validation images and their boxes belong together. Got val_images={val_images}, "
                f"val_boxes={val_boxes}. Set data.val_images and data.val_boxes, or neither."
            )
        if val_images is not None and val_boxes is not None:
            parts["val"] = (root / val_images, root / val_boxes)
        super().__init__(CocoBoxes("coco_detection", parts, image_size), **known(common))
