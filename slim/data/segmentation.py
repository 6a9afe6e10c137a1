"""Images with a class per pixel: scenes of digits, torchvision's VOC and Oxford-IIIT Pet, folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from slim.data import options
from slim.data.mask_sets import VOC_CLASSES, DownloadedMasks, MaskFolder, SceneMasks, pet, voc
from slim.data.scenes import IGNORE, SceneOptions
from slim.data.task_data import TaskData, known
from slim.errors import SlimError


class MaskData(TaskData):
    """Images with masks: data that are normalized per channel."""

    origin: Any  # with a ``finish``, Normalized

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0, 1]."""
        return tuple(self.origin.finish.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, likewise."""
        return tuple(self.origin.finish.std)

    def normalize_as(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalize as a network was trained; what the options say is kept."""
        finish = self.origin.finish
        if len(mean) == len(std) == self.in_channels and not finish.given:
            finish.mean, finish.std = tuple(mean), tuple(std)
            self._sets.clear()  # which may be normalized already


class SegmentationDigits(MaskData):
    """Scenes of handwritten digits; embedded. See :class:`~slim.data.scenes.DigitScenes`.

    Batches are ``(images float32 (N, 3, H, W), masks int64 (N, H, W))``: 0 is background, digit + 1 a digit, 255 the
    rim of a stroke, which counts nowhere.

    Args:
        scenes: Of training.
        val_scenes: Of validation.
        test_scenes: Of test.
        image_size: Height and width.
        digits: Most digits per scene.
        scene_seed: Of the scenes; runs that differ only in ``seed`` train on the same.
        mean: Per channel, of pixels in [0, 1]; None for the scenes' own.
        std: Likewise.
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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **common: Any,
    ) -> None:
        content = SceneOptions(scenes, val_scenes, test_scenes, image_size, digits, scene_seed)
        super().__init__(SceneMasks(content, mean, std), **known(common))


class VOCSegmentationData(MaskData):
    """PASCAL VOC's 20 classes and background; the official validation images are the test set.

    Args:
        root: Folder of the downloaded files.
        download: Whether missing files may be downloaded.
        year: 2007 to 2012.
        image_size: Pictures are scaled to this height and width.
        mean: Per channel, of pixels in [0, 1]; None for ImageNet's.
        std: Likewise.
        common: See :class:`~slim.data.task_data.TaskData`.
    """

    def __init__(
        self,
        *,
        root: str = "datasets",
        download: bool = True,
        year: str | int = "2012",
        image_size: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **common: Any,
    ) -> None:
        origin = DownloadedMasks("voc_segmentation", root, download, VOC_CLASSES, image_size, mean, std)
        origin.make = partial(voc, year=str(year), root=str(origin.root))
        super().__init__(origin, **known(common))


class OxfordPetData(MaskData):
    """Oxford-IIIT Pet: pet or background; the border between them counts nowhere. Arguments as VOC's, but ``year``."""

    def __init__(
        self,
        *,
        root: str = "datasets",
        download: bool = True,
        image_size: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **common: Any,
    ) -> None:
        origin = DownloadedMasks("oxford_pet", root, download, ("background", "pet"), image_size, mean, std)
        origin.make = partial(pet, root=str(origin.root))
        origin.classes = {1: 1, 2: 0, 3: IGNORE}
        super().__init__(origin, **known(common))


class SegmentationFolder(MaskData):
    """Your own: ``images/name.jpg`` with ``masks/name.png``, whose pixels are classes; 255 counts nowhere.

    Args:
        dir: The folder. With ``train`` and ``test`` (and ``val`` or ``valid``) inside, each with ``images`` and
            ``masks``; without, a fixed fifth is the test set.
        num_classes: Classes, 0 (background) included.
        image_size: Pictures are scaled to this height and width.
        mean: Per channel, of pixels in [0, 1]; None for ImageNet's.
        std: Likewise.
        common: See :class:`~slim.data.task_data.TaskData`.
    """

    def __init__(
        self,
        *,
        dir: str,
        num_classes: int,
        image_size: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **common: Any,
    ) -> None:
        classes = options.integer("num_classes", num_classes, 2)
        if classes > IGNORE:
            raise SlimError(
                f"a mask tells at most {IGNORE} classes apart. Got num_classes={classes}. Lower data.num_classes."
            )
        super().__init__(MaskFolder(Path(dir).expanduser(), classes, image_size, mean, std), **known(common))
