"""The page of several runs: what each kept against what it costs, the front of those that no other beats, a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slim.report import formatting
from slim.report.ends import ends, kept
from slim.report.html.charts import layout
from slim.report.html.page import Cell, Figure, escape, page, place, section, table
from slim.report.metric import Metric, metric_of
from slim.report.pareto import front

AXES = {
    "macs": "MACs left, %",
    "latency_ms_b1": "time left at batch 1, %",
    "latency_ms_b64": "time left at batch 64, %",
}


@dataclass(frozen=True)
class Job:
    """One run among several.

    Attributes:
        name: Of its folder.
        differs: What tells it from the others, such as its overrides.
        record: The content of its report.json; one that failed has ``status`` and ``error``.
        link: To its own page, relative; empty: none.
    """

    name: str
    differs: str
    record: Mapping[str, Any]
    link: str = ""

    @property
    def state(self) -> str:
        """``finished``, ``failed``, ``running``, or ``pruned``: stopped because others were ahead."""
        status = str(self.record.get("status", "finished"))
        return status if status in ("failed", "running", "pruned") else "finished"

    @property
    def end(self) -> str:
        """What became of it where it did not finish; empty where it did."""
        if self.state == "finished":
            return ""
        why = str(self.record.get("error") or "")
        # A pruned job says so itself.
        return why if why.lower().startswith(self.state) else f"{self.state}: {why}" if why else self.state

    @property
    def told(self) -> str:
        """What tells it from the others, and what became of it where it did not finish."""
        return f"{self.differs} {self.end}".strip()


def jobs_page(title: str, jobs: Sequence[Job], *, command: str = "") -> str:
    """The page of a sweep, or of runs side by side, from their records alone."""
    done = [job for job in jobs if job.state == "finished"]
    metric = metric_of(done[0].record) if done else Metric()
    alike = one_metric(done)
    best = best_job(done) if alike else None
    drawn = {f"against_{key}": _scatter(done, key, best) for key in AXES if alike}
    figures: dict[str, Figure] = {name: figure for name, figure in drawn.items() if figure is not None}
    broken = [job for job in jobs if job.state == "failed"]
    count = Counter(job.state for job in jobs)
    failures = "".join(
        f"<li><b>{escape(job.name)}</b> {escape(job.differs)}: {escape(job.record.get('error', ''))}</li>"
        for job in broken
    )
    charts = "".join(f"<div>{place(name, figures)}</div>" for name in figures)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(", ".join(f"{number} {state}" for state, number in count.items()))}</p>',
        f'<p class="headline">{_sentence(best)}</p>' if best else "",
        section(f"{metric.name} against cost", f'<div class="two">{charts}</div>' if charts else ""),
        section("Failed jobs", f"<ul>{failures}</ul>" if broken else ""),
        section("Jobs", _table(jobs, metric, best)),
        section("Command", f"<pre>{escape(command)}</pre>" if command else ""),
    ]
    report = {job.name: numbers(job) for job in jobs}
    return page(title, parts, figures, report)


def one_metric(jobs: Sequence[Job]) -> bool:
    """Whether the finished jobs can be compared: an error in pixels is neither better nor worse than an accuracy."""
    return len({metric_of(job.record) for job in jobs if job.state == "finished"}) < 2


def best_job(jobs: Sequence[Job]) -> Job | None:
    """The finished job that held-out data say is best; of equals the one with fewer MACs.

    Where a job has no such figure, that of the test data decides for all.
    """
    known = [
        job
        for job in jobs
        if job.state == "finished" and formatting.number(ends(job.record)[1].get("metric")) is not None
    ]
    everywhere = all(_held_out(job) is not None for job in known)

    def rank(job: Job) -> tuple[float, float]:
        thin = ends(job.record)[1]
        value: Any = _held_out(job) if everywhere else thin["metric"]
        return -_sign(job) * float(value), float(thin.get("macs") or 0)

    return min(known, key=rank, default=None)


def _held_out(job: Job) -> float | None:
    """The metric on held-out data after the last phase that trained."""
    phases = list((job.record.get("phases") or {}).values())
    return next((formatting.number(phase["val"]) for phase in reversed(phases) if "val" in phase), None)


def numbers(job: Job) -> dict[str, Any]:
    """What the page says of a job, as in its report.json."""
    names = ("status", "error", "experiment", "metric", "rows", "requested", "achieved", "plan_hash", "command")
    return {"differs": job.differs} | {key: job.record[key] for key in names if key in job.record}


def _sign(job: Job) -> float:
    given = job.record.get("metric")
    return -1.0 if isinstance(given, Mapping) and given.get("mode") == "min" else 1.0


def _sentence(best: Job) -> str:
    dense, thin = ends(best.record)
    metric = metric_of(best.record)
    share = kept(thin, dense, "macs")
    macs = f" with {formatting.percent(share, 1)} of the MACs" if share is not None else ""
    return f"Best: <b>{escape(best.differs or best.name)}</b>, {metric.name} {metric.shown(thin['metric'])}{macs}."


def _scatter(jobs: Sequence[Job], key: str, best: Job | None) -> Figure | None:
    """The metric against a cost that is left, the front as a line, the best as a star."""
    points = []
    for job in jobs:
        dense, thin = ends(job.record)
        share, value = kept(thin, dense, key), formatting.number(thin.get("metric"))
        if share is not None and value is not None:
            points.append((job, 100 * share, value))
    if not points:
        return None
    metric = metric_of(points[0][0].record)
    ahead = front([(share, _sign(job) * value) for job, share, value in points])
    # A path along the front: what is not on it could be had better, cheaper, or both.
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [points[index][1] for index in ahead],
        "y": [metric.scaled(points[index][2]) for index in ahead],
        "line": {"color": "--thin", "shape": "hv", "width": 1.5},
        "hoverinfo": "skip",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "jobs",
        "x": [share for _, share, _ in points],
        "y": [metric.scaled(value) for _, _, value in points],
        "customdata": [
            f"<b>{escape(job.name)}</b><br>{escape(job.differs).replace(' ', '<br>')}" for job, _, _ in points
        ],
        "marker": {
            "size": [15 if job is best else 9 for job, _, _ in points],
            "symbol": ["star" if job is best else "circle" for job, _, _ in points],
            "color": ["--thin" if index in ahead else "--dense" for index in range(len(points))],
            "line": {"color": "--paper", "width": 1},
        },
        "hovertemplate": "%{customdata}<br>" + escape(metric.name) + " %{y:.4g}, %{x:.1f}% left<extra></extra>",
    }
    shown = layout(360, hovermode="closest", showlegend=False)
    shown["xaxis"] |= {"title": {"text": AXES[key]}, "rangemode": "tozero"}
    shown["yaxis"] |= {"title": {"text": escape(metric.label)}}
    return {"data": [line, marks], "layout": shown}


def _table(jobs: Sequence[Job], metric: Metric, best: Job | None) -> str:
    keys = {
        "channels": "channels",
        "params": "params",
        "macs": "MACs",
        "latency_ms_b1": "batch 1",
        "latency_ms_b64": "batch 64",
    }
    alike = one_metric(jobs)
    head = ("job", "what differs", f"{metric.name if alike else 'metric'} before", "after", *keys.values())
    rows: list[list[Cell]] = []
    marks: dict[int, str] = {}
    for number, job in enumerate(jobs):
        marks |= {number: job.state} if job.state != "finished" else {number: "best"} if job is best else {}
        dense, thin = ends(job.record)
        name = f'<a href="{escape(job.link)}">{escape(job.name)}</a>' if job.link else escape(job.name)
        row = [Cell(name, None, True), Cell(escape(job.told), None, True)]
        for end in (dense, thin):
            value, own = formatting.number(end.get("metric")), metric_of(job.record)
            shown = own.shown(value) if alike else f"{own.name} {own.shown(value)}"
            row.append(Cell(escape(shown), -1.0 if value is None else value))
        for key in keys:
            share = kept(thin, dense, key)
            row.append(Cell(formatting.percent(share, 1), -1.0 if share is None else share))
        rows.append(row)
    note = '<p class="faint">From channels on: what is left of the dense network\'s. Time is measured.</p>'
    return table(head, rows, sortable=True, marks=marks) + note if rows else ""
