"""What TensorBoard shows of a run besides its curves: the cut when it falls, text, pictures, one row of HParams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.report import formatting, tags
from slim.report.ends import ends
from slim.report.metric import metric_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW = "overview"
"""The folder of a run with what belongs to no phase."""

LEFT_OUT = (
    *("output", "resume", "debug", "name", "task", "figures", "logger", "latency_seconds", "checkpoint"),
    *("trainer.progress", "trainer.log_every", "trainer.checkpoint_every"),
)
"""What does not change what a run computes, or names a file."""


def log_cut(
    log_dir: str | Path,
    *,
    widths: Mapping[str, Sequence[int]],
    gammas: Mapping[str, Sequence[float]],
    cut: float | None,
    step: int = 0,
    removed: Mapping[str, Sequence[bool]] | None = None,
) -> None:
    """Figures for TensorBoard: widths before and after, and where the cut fell among all gammas and in each layer.

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
        drawn["cut/gamma_ridges"] = figures.ridges(gammas, cut, removed)
    with _fresh_writer(Path(log_dir)) as writer:
        for tag, figure in drawn.items():
            writer.add_image(tag, _pixels(figure), step, dataformats="HWC")


def log_overview(
    run_dir: str | Path,
    record: Mapping[str, Any],
    overrides: Sequence[str] | None = None,
    pictures: Mapping[str, Figure] | None = None,
) -> None:
    """What belongs to no phase, in ``run_dir/overview``; written again, it is replaced.

    The page of custom scalars; as text the command, the final table, the plan and the notes, as far as the record knows
    them; one row of HParams.

    Args:
        run_dir: The run directory.
        record: The run's record (the content of report.json), or, of a run that begins, command and metric.
        overrides: What the user changed of the experiment, for the row; ``None``: no row yet.
        pictures: Tag to figure.
    """
    from torch.utils.tensorboard.summary import hparams as row

    from slim.report import text

    with _fresh_writer(Path(run_dir) / OVERVIEW) as writer:
        writer.add_custom_scalars(tags.layout(metric_of(record).name))
        for name, page in text.pages(record).items():
            writer.add_text(name, page, 0)
        for tag, figure in (pictures or {}).items():
            writer.add_image(tag, _pixels(figure), 0, dataformats="HWC")
        if overrides is not None:
            found = figures_of(record)
            # Without torch's description of the experiment TensorBoard makes its own, over all runs of the log
            # directory: then the columns in which they differ come first.
            _, start, end = row(columns(overrides), found)  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(start)
            writer.file_writer.add_summary(end)
            for tag, value in found.items():
                writer.add_scalar(tag, value, 0)


def log_picture(folder: str | Path, tag: str, figure: Figure) -> None:
    """One figure in an event folder of its own; written again, it is replaced."""
    with _fresh_writer(Path(folder)) as writer:
        writer.add_image(tag, _pixels(figure), 0, dataformats="HWC")


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What the row of a run says: the metric of its last network, how far that is from the first trained one, its cost.

    >>> rows = {"dense": {"macs": 200, "metric": 0.5}, "rebuilt": {"macs": 50, "metric": 0.25, "latency_ms_b1": 2.0}}
    >>> figures_of({"rows": rows})
    {'result/accuracy': 0.25, 'result/gap_to_dense': -0.25, 'result/macs': 50.0, 'result/ms_batch_1': 2.0}
    """
    dense, thin = ends(record)
    found: dict[str, float] = {}
    value, before = formatting.number(thin.get("metric")), formatting.number(dense.get("metric"))
    if value is not None:
        found[f"result/{metric_of(record).name}"] = value
        if before is not None:
            found["result/gap_to_dense"] = value - before
    for key, tag in COSTS.items():
        if (cost := formatting.number(thin.get(key))) is not None:
            found[f"result/{tag}"] = cost
    return found


COSTS = {"macs": "macs", "params": "params", "latency_ms_b1": "ms_batch_1", "latency_ms_b64": "ms_batch_64"}


def columns(overrides: Sequence[str]) -> dict[str, bool | int | float | str]:
    """What the user changed of an experiment, as columns.

    >>> columns(["+experiment=vgg_slim", "prune.ratio=0.3", "model=resnet", "seed=0", "output=x", "hydra.run.dir=y"])
    {'experiment': 'vgg_slim', 'prune.ratio': 0.3, 'model': 'resnet', 'seed': 0}
    """
    found: dict[str, bool | int | float | str] = {}
    for item in overrides:
        key, given, value = item.lstrip("+~").partition("=")
        if given and key not in LEFT_OUT and not key.startswith("hydra."):
            found[key] = _typed(value.strip("'\""))
    return found


def _typed(value: str) -> bool | int | float | str:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


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
