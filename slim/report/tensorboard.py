"""What TensorBoard shows of a run besides its curves: the cut when it falls, and one row of HParams at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT_OUT = ("output", "resume", "debug", "name", "task", "trainer.progress")
"""What does not change what a run computes."""


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
    """What a row of a sweep says about a run: its metric on test data, shares of the dense network kept, speed-ups.

    >>> figures_of({"rows": {"dense": {"macs": 200, "metric": 0.9}, "rebuilt": {"macs": 50, "metric": 0.8}}})
    {'result/accuracy_dense': 0.9, 'result/accuracy_rebuilt': 0.8, 'result/macs_kept': 0.25}
    """
    rows: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    metric = str((record.get("metric") or {}).get("name", "accuracy"))
    order = ("finetuned", "recovered", "rebuilt", "masked", "sparse", "dense")
    found: dict[str, float] = {}
    for name in reversed(order):
        if (value := (rows.get(name) or {}).get("metric")) is not None:
            found[f"result/{metric}_{name}"] = float(value)
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
