"""A picture of images that two networks see differently: one class per image, one per pixel, or boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.report.style import CUT, THIN, blank, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12
"""Images in the picture."""
BEFORE, AFTER = CUT, THIN

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Seen:
    """One image, and what two networks make of it.

    Attributes:
        image: ``(H, W, 3)`` in [0, 1].
        truth: A class; a map of classes (H, W); or boxes ``(n, 4)`` and classes ``(n,)`` as a pair.
        before: Likewise, of the first network.
        after: Likewise, of the second.
    """

    image: Array
    truth: Any
    before: Any
    after: Any

    @property
    def amount(self) -> float:
        """How differently: 0 or 1, the share of pixels, or the number of boxes that only one of both has."""
        if isinstance(self.before, tuple):
            return float(_alone(self.before, self.after) + _alone(self.after, self.before))
        return float(np.mean(np.asarray(self.before) != np.asarray(self.after)))


def picture(seen: Sequence[Seen], names: Sequence[str] = (), title: str = "") -> Figure | None:
    """The images that are seen most differently; ``None`` where all are seen alike.

    Args:
        seen: Of some held-out images.
        names: Of the classes.
        title: Of the picture.
    """
    chosen = sorted((one for one in seen if one.amount > 0), key=lambda one: -one.amount)[:MOST]
    if not chosen:
        return None
    if isinstance(chosen[0].before, tuple):
        figure = _grid(chosen, 4, 3.0, lambda axes, one: _boxes(axes, one, names))
        title += ": boxes of the first in red, of the second in blue"
    elif np.ndim(chosen[0].before):
        figure = _maps(chosen[:6])
    else:
        figure = _grid(chosen, 6, 2.1, lambda axes, one: _class(axes, one, names))
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return figure


def _grid(chosen: Sequence[Seen], across: int, size: float, draw: Any) -> Figure:
    down = -(-len(chosen) // across)
    figure = blank(size * min(across, max(len(chosen), 3)), 0.4 + (size + 0.35) * down)
    axes = figure.subplots(down, min(across, max(len(chosen), 3)), squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for place, one in zip(axes.flat, chosen, strict=False):
        place.imshow(one.image, interpolation="nearest")
        draw(place, one)
    return figure


def _class(axes: Axes, one: Seen, names: Sequence[str]) -> None:
    said = [f"{word} {_name(value, names)}" for word, value in (("is", one.truth), ("dense", one.before))]
    axes.set_title(f"{said[0]}\n{said[1]}, thin {_name(one.after, names)}", fontsize=8.5)


def _maps(chosen: Sequence[Seen]) -> Figure:
    """A row for each image: it, the truth, both predictions, and where they differ."""
    heads = ("image", "truth", "dense", "thin", "they differ")
    figure = blank(2.0 * len(heads), 0.6 + 2.0 * len(chosen))
    axes = figure.subplots(len(chosen), len(heads), squeeze=False)
    top = max(
        int(np.max(part[part != 255], initial=1)) for one in chosen for part in (one.truth, one.before, one.after)
    )
    for row, one in zip(axes, chosen, strict=True):
        row[0].imshow(one.image)
        for place, part in zip(row[1:4], (one.truth, one.before, one.after), strict=True):
            place.imshow(
                np.where(part == 255, 0, part), cmap="nipy_spectral", vmin=0, vmax=top, interpolation="nearest"
            )
        row[4].imshow(one.before != one.after, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row[4].set_title(f"{one.amount:.1%} of the pixels", fontsize=8.5)
    for place, head in zip(axes[0][:4], heads, strict=False):
        place.set_title(head, fontsize=8.5)
    for place in axes.flat:
        place.set_axis_off()
    return figure


def _boxes(axes: Axes, one: Seen, names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    for (boxes, labels), color, dash in ((one.before, BEFORE, (0, (4, 2))), (one.after, AFTER, "-")):
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            corner, size = (left, top), (right - left, bottom - top)
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=1.4, linestyle=dash))
            axes.text(left, top, _name(label, names), color="white", fontsize=6.5, backgroundcolor=color)
    axes.set_title(f"{len(one.truth[0])} true, dense {len(one.before[0])}, thin {len(one.after[0])}", fontsize=8.5)


def _alone(first: tuple[Array, Array], second: tuple[Array, Array]) -> int:
    """Boxes of ``first`` without a counterpart in ``second``: the same class, and half of the union shared."""
    count = 0
    for box, label in zip(*first, strict=True):
        others = second[0][second[1] == label]
        low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
        both = np.prod(np.clip(high - low, 0, None), axis=1)
        areas = [np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (box, others)]
        count += not bool((both >= 0.5 * (areas[0] + areas[1] - both)).any())
    return count


def _name(value: Any, names: Sequence[str]) -> str:
    return literal(str(names[int(value)])) if 0 <= int(value) < len(names) else str(int(value))
