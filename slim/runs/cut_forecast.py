"""What the cut would be if sparse training ended now: logged after every epoch, from the gammas alone."""

from __future__ import annotations

import pytorch_lightning as pl

from slim.lightning import ChannelPruning, SparseTraining
from slim.runs.curves import epoch_step

TAGS = {"zero": "zero", "target": "target", "macs": "macs_after_cut", "ready": "ready"}
"""Key of a forecast -> its TensorBoard tag below ``sparsity/``."""


class CutForecast(pl.Callback):
    """Logs after every epoch how far the network is on its way to the cut.

    Args:
        sparse: The penalty; a law that knows its own target is asked.
        pruning: The cut to come, for other laws; ``None`` where none comes.

    Attributes:
        latest: Shares of the dense network: ``zero`` of its removable scales are near zero or gone, ``target`` of its
            channels would go, ``macs`` of its MACs would be left; and ``ready``: 1 when every scale that would go is
            near zero, else 0.
    """

    def __init__(self, sparse: SparseTraining, pruning: ChannelPruning | None) -> None:
        self._sparse, self._pruning = sparse, pruning
        self.latest: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Straight to the logger, before the checkpoint of the epoch is written."""
        if not trainer.is_global_zero:
            return
        found = self._sparse.summary()
        if "target" not in found and self._pruning is not None:
            self._pruning.traced = self._sparse.traced
            with self._sparse.deterministic_scales():
                found |= self._pruning.preview()
        self.latest = found
        if trainer.logger is not None:
            points = {f"sparsity/{TAGS[key]}": value for key, value in found.items() if key in TAGS}
            trainer.logger.log_metrics(points, step=epoch_step(trainer))

    def line(self) -> str:
        """For the progress display, such as ``zero 0.41 of 0.50, macs 0.62 after the cut``."""
        found, parts = self.latest, []
        if "zero" in found:
            parts.append(f"zero {found['zero']:.2f}" + (f" of {found['target']:.2f}" if "target" in found else ""))
        if "macs" in found:
            parts.append(f"macs {found['macs']:.2f} after the cut")
        if found.get("ready"):
            parts.append("ready to prune")
        return ", ".join(parts)
