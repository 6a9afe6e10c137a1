"""What TensorBoard shows of a run: curves and gammas while it trains, the cut when it falls, one row at its end.

Losses and accuracies of an epoch come from the module itself; this callback adds what belongs to slimming. Values on
the device are read every ``every_n_steps`` steps, all in one transfer, so that logging does not slow training down.
Everything goes straight to the logger, before the checkpoint of the same step is written: a run that is killed and
resumed has every point once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT_OUT = ("output", "resume", "debug", "name", "task", "trainer.progress")
"""What does not change what a run computes."""


class Dashboard(pl.Callback):
    """Learning rate, loss per step, penalty, shares of small gammas, predicted MACs, histograms of gamma.

    Tags: ``lr``, ``train/loss_step``, ``sparsity/penalty`` and ``sparsity/gammas_below_<threshold>`` every
    ``every_n_steps``; every epoch ``sparsity/zero``, ``sparsity/target``, ``sparsity/macs_after_cut`` and
    ``sparsity/ready`` (what the module's ``prospects()`` have), ``macs`` of the network that trained in it (it may
    shrink meanwhile) and ``time/images_per_second`` of training alone, over all processes; histograms ``gamma/all`` and
    ``gamma_by_layer/<module>``. Tags below ``time/`` belong to the machine: they differ from run to run.

    Args:
        scales: Gamma ``(C,)`` of every layer by name. Default: the module's ``scales()`` if it has one, else every
            affine BatchNorm in it.
        threshold: A gamma counts as small when it is below this.
        every_n_steps: Optimizer steps between two looks at the device.
        histogram_every_n_epochs: Epochs between two histograms; the start and the last epoch always have theirs.
    """

    def __init__(
        self,
        scales: Mapping[str, Tensor] | None = None,
        *,
        threshold: float = 1e-2,
        every_n_steps: int = 50,
        histogram_every_n_epochs: int = 1,
    ) -> None:
        self._given = scales
        self._threshold = threshold
        self._every = max(every_n_steps, 1)
        self._histogram_every = max(histogram_every_n_epochs, 1)
        self._looked_at = 0
        self._lr = 0.0
        self._macs: tuple[Any, int] = (None, 0)
        self._began, self._ended, self._images = 0.0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Histograms of the untrained network; a resumed run has them already."""
        # With accumulated gradients several batches share a step: the one at which a run resumes has its point.
        self._looked_at = trainer.global_step
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out where it resumes within an epoch
        if trainer.global_step == 0:
            self._histograms(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts; surgery comes at the end of an epoch, so these are the MACs of all its steps."""
        self._began, self._ended, self._images = time.monotonic(), 0.0, 0
        graph = getattr(pl_module, "graph", None)
        if graph is not None and self._macs[0] is not graph:
            self._macs = (graph, graph.macs())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the learning rate of this step: when the batch ends, the schedule has moved on."""
        if trainer.optimizers:
            self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every few steps: one look at the device."""
        self._ended = time.monotonic()
        self._images += len(batch[0])
        step = trainer.global_step
        if trainer.logger is None or step % self._every or step <= self._looked_at:
            return
        self._looked_at = step
        with torch.no_grad():
            values = self._on_device(trainer, pl_module, outputs)
        points = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}
        trainer.logger.log_metrics({"lr": self._lr, **points}, step=step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Once an epoch: how far the network is on its way to the cut, its size and speed, and histograms."""
        if trainer.logger is None:
            return
        points: dict[str, float] = {}
        if callable(prospects := getattr(pl_module, "prospects", None)) and trainer.is_global_zero:
            tags = {"zero": "zero", "target": "target", "macs": "macs_after_cut", "ready": "ready"}
            points |= {f"sparsity/{tags[key]}": value for key, value in prospects().items() if key in tags}
        if self._macs[0] is not None:
            points["macs"] = float(self._macs[1])
        if self._ended > self._began:
            points["time/images_per_second"] = self._images * trainer.world_size / (self._ended - self._began)
        if points:
            trainer.logger.log_metrics(points, step=trainer.global_step)
        epoch = trainer.current_epoch + 1
        if epoch % self._histogram_every == 0 or epoch == trainer.max_epochs:
            self._histograms(trainer, pl_module)

    def _on_device(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> dict[str, Tensor]:
        """0-dim tensors in double, none of which has waited for the device."""
        values: dict[str, Tensor] = {}
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            # Lightning divides the loss of a batch by the number of batches that make a step.
            values["train/loss_step"] = outputs["loss"].detach() * trainer.accumulate_grad_batches
        penalty = getattr(module, "penalty", None)
        if penalty is not None:
            values["sparsity/penalty"] = penalty.value().detach()
        gammas = [gamma.detach().flatten() for gamma in self._scales(module).values()]
        if gammas:
            small = torch.cat(gammas).abs() < self._threshold
            values[f"sparsity/gammas_below_{self._threshold:g}"] = small.double().mean()
        return {name: value.double().to(module.device) for name, value in values.items()}

    def _scales(self, module: pl.LightningModule) -> Mapping[str, Tensor]:
        # Asked for anew each time: surgery in the middle of training changes them.
        if self._given is not None:
            return self._given
        if callable(found := getattr(module, "scales", None)):
            named: Mapping[str, Tensor] = found()
            return named
        norms = (item for item in module.named_modules() if isinstance(item[1], nn.modules.batchnorm._BatchNorm))
        return {name: norm.weight for name, norm in norms if norm.weight is not None}

    def _histograms(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        add = getattr(getattr(trainer.logger, "experiment", None), "add_histogram", None)
        scales = self._scales(module)
        if add is None or not scales or not trainer.is_global_zero:
            return
        sizes = [gamma.numel() for gamma in scales.values()]
        everything = torch.cat([gamma.detach().flatten().float() for gamma in scales.values()]).cpu()
        if not everything.isfinite().all():
            return  # no histogram has a place for them; the loss tells the user
        add("gamma/all", everything, trainer.global_step)
        for name, gamma in zip(scales, torch.split(everything, sizes), strict=True):
            if gamma.numel():
                add(f"gamma_by_layer/{name}", gamma, trainer.global_step)


def log_cut(
    log_dir: str | Path,
    *,
    widths: Mapping[str, Sequence[int]],
    gammas: Mapping[str, Sequence[float]],
    cut: float | None,
    step: int = 0,
    removed: Mapping[str, Sequence[bool]] | None = None,
) -> None:
    """Two figures for TensorBoard: widths before and after, and where the cut fell among all gammas.

    Args:
        log_dir: Folder of the prune phase. A cut logged there before is replaced.
        widths: Layer to ``(before, after)``.
        gammas: Layer to its gammas before the cut.
        cut: Largest removed \\|gamma\\|, or ``None``.
        step: Where the figures stand on TensorBoard's axis.
        removed: Layer to what was removed of its gammas.
    """
    from slim.report import figures

    drawn: dict[str, Figure] = {"cut/widths": figures.widths(widths)} if widths else {}
    if any(len(values) for values in gammas.values()):
        drawn["cut/gammas"] = figures.distribution(gammas, cut, removed)
        drawn["cut/gammas_by_layer"] = figures.by_layer(gammas, cut, removed)
    with _fresh_writer(Path(log_dir)) as writer:
        for tag, figure in drawn.items():
            writer.add_image(tag, _pixels(figure), step, dataformats="HWC")


def log_hparams(run_dir: str | Path, hparams: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """One row of TensorBoard's HParams table for a run, in ``run_dir/hparams``; written again, it is replaced.

    Args:
        run_dir: The run directory.
        hparams: The configuration, nested or flat.
        record: The run's record (the content of report.json); a missing figure is left out.
    """
    from torch.utils.tensorboard.summary import hparams as row

    found = figures_of(record)
    with _fresh_writer(Path(run_dir) / "hparams") as writer:
        # Without torch's description of the experiment TensorBoard makes its own, over all runs of the log directory:
        # then the columns in which they differ come first.
        _, start, end = row(flat(hparams), found)  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(start)
        writer.file_writer.add_summary(end)
        for tag, value in found.items():
            writer.add_scalar(tag, value, 0)


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a row of a sweep says about a run: test accuracies, shares of the dense network kept, speed-ups.

    >>> figures_of({"rows": {"dense": {"macs": 200, "accuracy": 0.9}, "rebuilt": {"macs": 50, "accuracy": 0.8}}})
    {'result/accuracy_dense': 0.9, 'result/accuracy_rebuilt': 0.8, 'result/macs_kept': 0.25}
    """
    rows: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    order = ("finetuned", "recovered", "rebuilt", "masked", "sparse", "dense")
    found: dict[str, float] = {}
    for name in reversed(order):
        if (accuracy := (rows.get(name) or {}).get("accuracy")) is not None:
            found[f"result/accuracy_{name}"] = float(accuracy)
    base: Mapping[str, Any] = next((rows[name] for name in ("dense", "sparse") if rows.get(name)), {})
    thin: Mapping[str, Any] = next((rows[name] for name in order[:3] if rows.get(name)), {})
    for key in ("macs", "params", "channels"):
        if base.get(key) and thin.get(key) is not None:
            found[f"result/{key}_kept"] = thin[key] / base[key]
    for batch in (1, 64):
        before, after = (row.get(f"latency_ms_b{batch}") for row in (base, thin))
        if before and after:
            found[f"result/speedup_batch_{batch}"] = before / after
    seconds = [phase.get("seconds") for phase in (record.get("phases") or {}).values()]
    if any(value is not None for value in seconds):
        found["result/seconds"] = float(sum(value or 0.0 for value in seconds))
    return found


def flat(hparams: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Nested configuration as columns: dotted keys, ``_target_`` by its last name, lists as text, no empty values.

    >>> flat({"model": {"_target_": "slim.models.vgg", "widths": [8, "M"]}, "seed": 0, "checkpoint": None})
    {'model': 'vgg', 'model.widths': '[8, M]', 'seed': 0}
    """
    columns: dict[str, bool | int | float | str] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = prefix.rstrip(".") if key == "_target_" else f"{prefix}{key}"
            if isinstance(value, Mapping):
                walk(value, f"{name}.")
            elif isinstance(value, list | tuple):
                columns[name] = f"[{', '.join(str(item) for item in value)}]"
            elif key == "_target_":
                columns[name] = str(value).rsplit(".", 1)[-1]
            elif value is not None:
                columns[name] = value if isinstance(value, bool | int | float) else str(value)

    walk(hparams, "")
    return {name: value for name, value in columns.items() if name not in LEFT_OUT}


def _fresh_writer(folder: Path) -> Any:
    """A writer whose folder shows nothing else: what was logged there before is gone."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(str(folder))


def _pixels(figure: Figure) -> Any:
    """A figure as uint8 ``(H, W, 3)``, drawn without pyplot."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(110)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
