"""What the cut would be if sparse training ended now: logged after every epoch, from the gammas alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl

import slim
from slim import criteria
from slim.channels import ChannelGraph, plan_of
from slim.lightning import SparseTraining
from slim.runs.components import Components
from slim.selection import select_next_cut

NEAR_ZERO = 1e-2
"""A scale below it counts as gone."""

TAGS = {"zero": "zero", "target": "target", "macs": "macs_after_cut", "ready": "ready"}
"""Key of a forecast -> its TensorBoard tag below ``sparsity/``."""

Forecast = Callable[[ChannelGraph], dict[str, float]]


def cut_forecast(parts: Components, number: int) -> Forecast | None:
    """Forecasts the cut of the pass ``number`` (0-based); ``None`` where there is none, or one that is measured.

    Channels are ranked as the cut will rank them, or by gamma where its criterion needs data.

    Returns:
        From the graph of the network as it is now to shares of the dense network: ``zero`` of its removable scales are
        near zero or gone, ``target`` of its channels would go, ``macs`` of its MACs would be left; and ``ready``: 1
        when every scale that would go is near zero, else 0.
    """
    config = parts.config
    if "prune" not in config.phases or config.budget[0] == "latency":
        return None
    options = dict(config.criterion)
    name = options.pop("name")
    if "loader" in inspect.signature(criteria.find(name).rank).parameters:
        name, options = "gamma", {}
    wanted = {**config.prune.limits, config.budget[0]: config.passes[number].amount}
    dense = parts.trace(parts.dense())
    scales = max(len(_gammas(dense, dense.prunable)), 1)

    def forecast(graph: ChannelGraph) -> dict[str, float]:
        scores = slim.score(graph, name, **options)
        if plan_of(graph.model) is None:
            selection = slim.select_groups(graph, scores, **wanted)
        else:
            selection = select_next_cut(dense, graph, scores, **wanted)
        return {
            "zero": 1 - float((_gammas(graph, graph.prunable) >= NEAR_ZERO).sum()) / scales,
            "target": selection.achieved["ratio"],
            "macs": selection.achieved["macs"],
            "ready": float(_gammas(graph, selection.removed).max(initial=0.0) < NEAR_ZERO),
        }

    return forecast


class CutForecast(pl.Callback):
    """Logs the forecast after every epoch; a law that knows its own target is asked first.

    Attributes:
        latest: The forecast of the last epoch.
    """

    def __init__(self, sparse: SparseTraining, forecast: Forecast | None) -> None:
        self._sparse, self._forecast = sparse, forecast
        self.latest: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Straight to the logger, before the checkpoint of the epoch is written."""
        if not trainer.is_global_zero:
            return
        found = self._sparse.summary()
        if "target" not in found and self._forecast is not None and self._sparse.graph is not None:
            with self._sparse.settled():
                found |= self._forecast(self._sparse.graph)
        self.latest = found
        if trainer.logger is not None:
            points = {f"sparsity/{TAGS[key]}": value for key, value in found.items() if key in TAGS}
            trainer.logger.log_metrics(points, step=trainer.global_step)

    def line(self) -> str:
        """For the progress display, such as ``zero 0.41 of 0.50, macs 0.62 after the cut``."""
        found, words = self.latest, []
        if "zero" in found:
            words.append(f"zero {found['zero']:.2f}" + (f" of {found['target']:.2f}" if "target" in found else ""))
        if "macs" in found:
            words.append(f"macs {found['macs']:.2f} after the cut")
        if found.get("ready"):
            words.append("ready to prune")
        return ", ".join(words)


def _gammas(graph: ChannelGraph, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """|gamma| of every scale on the chosen groups (groups,), in one vector."""
    found = [np.zeros(0, np.float32)]
    for scale in graph.scales:
        if scale.weight is not None:
            gamma = graph.model.get_parameter(scale.weight).detach().abs().float().cpu().numpy()
            found.append(gamma[(scale.groups >= 0) & chosen[scale.groups]])
    return np.concatenate(found)
