"""The result of a sensitivity analysis: a table, a CSV from which it can resume, and caps for the selection."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from slim.errors import SlimError
from slim.files import write_atomic


@dataclass
class Sensitivity:
    """Accuracy against the share of channels that one layer alone loses.

    Attributes:
        shares: Shares removed, ascending.
        accuracy: Layer (space name) -> accuracy in [0, 1] per share.
        whole: Accuracy of the whole network, measured the same way.
        images: Held-out images it was measured on.
        key: Fingerprint of network, ranking and images.
    """

    shares: tuple[float, ...]
    whole: float
    images: int
    key: str
    accuracy: dict[str, list[float]] = field(default_factory=dict)

    def to_caps(self, max_drop: float) -> dict[str, dict[str, float]]:
        """``overrides`` for :func:`slim.select`: the largest share that costs a layer at most ``max_drop``.

        Args:
            max_drop: Accuracy that may be lost, in [0, 1]: 0.02 is two points.

        Raises:
            SlimError: ``max_drop`` out of range.

        >>> result = Sensitivity((0.1, 0.5), 0.9, 512, "", {"conv1": [0.9, 0.4], "conv2": [0.91, 0.89]})
        >>> result.to_caps(max_drop=0.05)
        {'conv1': {'max_layer_ratio': 0.1}, 'conv2': {'max_layer_ratio': 0.5}}
        """
        if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop <= 1:
            raise SlimError(f"max_drop must be in [0, 1]. Got max_drop={max_drop!r}. Set sensitivity.max_drop to 0.02.")
        caps = {}
        for layer, row in self.accuracy.items():
            cap = 0.0
            for share, accuracy in zip(self.shares, row, strict=True):
                if self.whole - accuracy > max_drop + 1e-12:
                    break
                cap = share
            caps[layer] = {"max_layer_ratio": cap}
        return caps

    def to_csv(self) -> str:
        """One row per layer and share; the first line identifies the analysis."""
        out = io.StringIO()
        out.write(f"# key={self.key} images={self.images} whole={self.whole!r}\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["layer", "share", "accuracy"])
        for layer, row in self.accuracy.items():
            writer.writerows([layer, share, accuracy] for share, accuracy in zip(self.shares, row, strict=True))
        return out.getvalue()

    def save(self, path: Path) -> None:
        """Write the CSV atomically."""
        write_atomic(path, self.to_csv())

    def resume(self, path: Path) -> None:
        """Load the layers that an earlier run wrote to ``path``.

        Raises:
            SlimError: The file belongs to another network, ranking, set of shares or images.
        """
        try:
            head, *lines = path.read_text().splitlines()
            if f"key={self.key} " not in head:
                raise ValueError("another key")
            rows: dict[str, list[tuple[float, float]]] = {}
            for row in csv.DictReader(lines):
                rows.setdefault(row["layer"], []).append((float(row["share"]), float(row["accuracy"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SlimError(
                f"A sensitivity file can be resumed only by the same analysis. Got {path} ({error})."
                " Delete it, or set sensitivity.csv to another path."
            ) from error
        for layer, points in rows.items():
            if tuple(share for share, _ in points) == self.shares:
                self.accuracy[layer] = [accuracy for _, accuracy in points]
