"""One data module per data set, with plain keyword arguments: the ``_target_`` of the files in conf/data."""

from __future__ import annotations

import inspect
from typing import Any

from slim.data import options
from slim.data.digits import Digits
from slim.data.folder import ImageFolder
from slim.data.image_data import ImageData
from slim.data.torchvision_sets import TorchvisionSet
from slim.errors import SlimError, nearest


class DigitsData(ImageData):
    """scikit-learn's handwritten digits, embedded; see :class:`~slim.data.image_data.ImageData` for ``common``."""

    def __init__(self, *, image_size: int = 32, **common: Any) -> None:
        super().__init__(Digits(options.integer("image_size", image_size, 8)), **_common_options(common))


class _Downloaded(ImageData):
    """A data set of torchvision.

    Args:
        root: Folder of the downloaded files.
        download: Whether missing files may be downloaded.
        image_size: Height and width of batches; None for the data set's own.
        common: See :class:`~slim.data.image_data.ImageData`.
    """

    set_name = ""

    def __init__(
        self, *, root: str = "datasets", download: bool = True, image_size: int | None = None, **common: Any
    ) -> None:
        size = None if image_size is None else options.integer("image_size", image_size, 1)
        super().__init__(TorchvisionSet(self.set_name, str(root), bool(download), size), **_common_options(common))


class MNISTData(_Downloaded):
    """MNIST, 28x28 grey."""

    set_name = "mnist"


class FashionMNISTData(_Downloaded):
    """Fashion-MNIST, 28x28 grey."""

    set_name = "fashion_mnist"


class CIFAR10Data(_Downloaded):
    """CIFAR-10, 32x32 colour."""

    set_name = "cifar10"


class CIFAR100Data(_Downloaded):
    """CIFAR-100, 32x32 colour."""

    set_name = "cifar100"


class SVHNData(_Downloaded):
    """Street view house numbers, 32x32 colour."""

    set_name = "svhn"


class ImageFolderData(ImageData):
    """Any user's own images; see :class:`~slim.data.folder.ImageFolder` for the layout.

    Args:
        dir: The folder.
        image_size: Height and width the images are scaled and cut to.
        in_channels: 3 for colour, 1 for grey.
        memory_budget_gb: Images that take more when decoded are streamed.
        num_workers: Processes that decode when streaming.
        augment: As in ``common``; ``"zoom"`` crops a random part of random size, as is usual for large images.
        common: See :class:`~slim.data.image_data.ImageData`.
    """

    def __init__(
        self,
        *,
        dir: str,
        image_size: int = 32,
        in_channels: int = 3,
        memory_budget_gb: float = 4.0,
        num_workers: int = 2,
        augment: bool | str = True,
        **common: Any,
    ) -> None:
        if not dir or (not isinstance(dir, (str, bytes)) and not hasattr(dir, "__fspath__")):
            raise SlimError(f"image_folder needs a folder. Got data.dir={dir!r}. Set data.dir=<folder>.")
        if in_channels not in (1, 3):
            raise SlimError(f"in_channels must be 1 or 3. Got in_channels={in_channels!r}. Set data.in_channels.")
        folder = ImageFolder(
            str(dir),
            image_size=options.integer("image_size", image_size, 1),
            in_channels=in_channels,
            budget=options.gigabytes("memory_budget_gb", memory_budget_gb),
            workers=options.integer("num_workers", num_workers, 0),
            zoom=options.augmentation(augment) == "zoom",
        )
        super().__init__(folder, augment=augment, **_common_options(common))


def _common_options(common: dict[str, Any]) -> dict[str, Any]:
    """``common`` without the options that say how files are read, which data sets without files do not need.

    They are accepted everywhere so that one command line fits every data set.

    Raises:
        SlimError: an option that no data set has, with the nearest names.
    """
    options.gigabytes("memory_budget_gb", common.pop("memory_budget_gb", 0))
    options.integer("num_workers", common.pop("num_workers", 0), 0)
    known = [key for key in inspect.signature(ImageData.__init__).parameters if key not in ("self", "dataset")]
    for key, value in common.items():
        if key not in known:
            raise SlimError(f"data.{key} must be an option of the data set. Got {key}={value!r}. {nearest(key, known)}")
    return common
