"""Slim while training: is a run that is rebuilt after every sparse epoch cheaper than training the dense network?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bench.row import Row
from experiments.bench.runs import MACS, NETWORKS, PLACE, Size, record, trained

PHASES = ("baseline", "sparse", "finetune")
PICTURE = Path(__file__).with_name("slimming.png")


def run(quick: bool, data: Path | None, again: bool) -> list[Row]:
    """At most 0.7 of the dense baseline's wall time for the same epochs, sparse training and fine-tuning together."""
    size = Size(128, 64, 2, 1) if quick else Size(2000, 2000, 6, 3)
    rows, curves = [], {}
    for network in NETWORKS:
        places = {kind: trained(network, kind, size, data, again=again) for kind in ("dense", "early", "late")}
        told = {kind: record(place) for kind, place in places.items()}
        seconds = {kind: _seconds(entry) for kind, entry in told.items()}
        rates = {kind: _rates(place, size.images) for kind, place in places.items()}
        macs = {kind: _macs(entry, size) for kind, entry in told.items()}
        curves[network] = {kind: (rates[kind], macs[kind]) for kind in places}
        score = {kind: 100 * _last(entry)["metric"] for kind, entry in told.items()}
        detail = {"seconds": seconds, "images_per_second": rates, "macs": macs, "accuracy": score}
        what = f"{network}, {MACS:.0%} of the MACs, {size.images} images x {size.epochs} epochs"
        rows += [
            Row("slimming", f"{what}, rebuilt every epoch, over dense training", seconds["early"] / seconds["dense"],
                "x", ("<=", 0.7), detail),
            Row("slimming", f"{what}, one late cut, over dense training", seconds["late"] / seconds["dense"], "x"),
            Row("slimming", f"{network}, test accuracy ({score['early']:.1f} %) over one late cut "
                f"({score['late']:.1f} %), one seed, {size.test} images", score["early"] - score["late"], "points"),
        ]  # fmt: skip
    _draw(curves, PLACE / PICTURE.name if quick else PICTURE)
    return rows


def _seconds(told: dict[str, Any]) -> float:
    """Of all training phases, validation and checkpoints included."""
    return float(sum(told["phases"][phase]["seconds"] for phase in PHASES if phase in told["phases"]))


def _last(told: dict[str, Any]) -> dict[str, Any]:
    return dict(told["rows"]["finetuned" if "finetuned" in told["rows"] else "dense"])


def _rates(place: Path, images: int) -> list[float]:
    """Images per second of every epoch: between the moments at which its curves were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rates = []
    for phase in PHASES:
        if (place / phase).is_dir():
            events = EventAccumulator(str(place / phase), size_guidance={"scalars": 0})
            events.Reload()
            ends = [event.wall_time for event in events.Scalars("2_loss/train")]
            starts = [events.FirstEventTimestamp(), *ends]
            rates += [images / (end - start) for start, end in zip(starts, ends, strict=False)]
    return rates


def _macs(told: dict[str, Any], size: Size) -> list[int]:
    """Of the network in every epoch."""
    sparse = told["phases"].get("sparse")
    if sparse is None:
        return [told["rows"]["dense"]["macs"]] * size.epochs
    shrunk = {entry["epoch"]: entry["macs"] for entry in sparse.get("slimmed", [])}
    now, macs = told["rows"]["dense"]["macs"], []
    for epoch in range(size.sparse):
        now = shrunk.get(epoch, now)
        macs.append(now)
    return macs + [told["rows"]["finetuned"]["macs"]] * size.finetune


def _draw(curves: dict[str, dict[str, tuple[list[float], list[int]]]], place: Path) -> None:
    """Images/s and MACs against epochs, a column per network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {"dense": "dense", "early": "target, rebuilt every epoch", "late": "target, one late cut"}
    figure = Figure((5 * len(curves), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(curves), squeeze=False, sharex="col")
    for column, (network, kinds) in enumerate(curves.items()):
        for kind, (rates, macs) in kinds.items():
            epochs = range(1, len(rates) + 1)
            axes[0][column].step(epochs, rates, where="mid", label=names[kind], marker=".")
            axes[1][column].step(epochs, [value / 1e6 for value in macs], where="mid", label=names[kind], marker=".")
        axes[0][column].set(title=network, ylabel="images per second of training", ylim=(0, None))
        axes[1][column].set(xlabel="epoch", ylabel="million MACs per image", ylim=(0, None))
    axes[0][0].legend()
    figure.savefig(place, dpi=110)
