"""The figures of a page as plotly.js takes them: plain data, colours by the names of the style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slim.report import formatting
from slim.report.cuts import magnitudes, visible
from slim.report.ends import ends
from slim.report.html.page import Figure, escape
from slim.report.metric import Metric, metric_of

POINTS = 400
"""Most points of one curve; of a longer one every k-th is drawn, and the last."""

COSTS = {
    "channels": "channels",
    "params": "parameters",
    "macs": "MACs",
    "latency_ms_b1": "time, batch 1",
    "latency_ms_b64": "time, batch 64",
}


def layout(height: int, **options: Any) -> dict[str, Any]:
    """What all figures share; ``xaxis`` and ``yaxis`` of ``options`` are completed."""
    axes = {name: {**_axis(), **options.pop(name, {})} for name in ("xaxis", "yaxis")}
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 30, "b": 44},
        "paper_bgcolor": "--clear",
        "plot_bgcolor": "--clear",
        "font": {"color": "--ink", "size": 12},
        "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "font": {"color": "--ink"}, "align": "left"},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        **axes,
        **options,
    }


def ladder(record: Mapping[str, Any]) -> Figure | None:
    """The metric of every network of the run, in the order they came to be."""
    metric, rows = metric_of(record), record.get("rows") or {}
    names = [name for name in formatting.LABELS if formatting.number((rows.get(name) or {}).get("metric")) is not None]
    if not names:
        return None
    values = [rows[name]["metric"] for name in names]
    bars = {
        "type": "bar",
        "x": [formatting.LABELS[name] for name in names],
        "y": [metric.scaled(value) for value in values],
        "text": [metric.shown(value) for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": ["--dense" if name in ("dense", "sparse") else "--thin" for name in names]},
        "hovertemplate": "%{x}: %{text}<extra></extra>",
    }
    axis = {"title": {"text": escape(metric.label)}, "range": list(metric.limits(values))}
    return {"data": [bars], "layout": layout(300, yaxis=axis, showlegend=False)}


def costs(record: Mapping[str, Any]) -> Figure | None:
    """What is left of the dense network's cost, in percent."""
    dense, thin = ends(record)
    shares = {
        label: 100 * now / then
        for key, label in COSTS.items()
        if (now := formatting.number(thin.get(key))) is not None and (then := formatting.number(dense.get(key)))
    }
    if not shares:
        return None
    names = list(shares)[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "x": [shares[name] for name in names],
        "text": [f"{shares[name]:.1f}%" for name in names],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": ["--cut" if shares[name] > 100 else "--thin" for name in names]},
        "hovertemplate": "%{y}: %{text} of the dense network<extra></extra>",
    }
    axis = {"range": [0, max(112.0, 1.15 * max(shares.values()))], "ticksuffix": "%"}
    shown = layout(300, xaxis=axis, showlegend=False, shapes=[_line(x=100)])
    shown["margin"]["l"] = 110
    return {"data": [bars], "layout": shown}


def widths(record: Mapping[str, Any]) -> Figure | None:
    """Channels of every layer, before and after."""
    given: Mapping[str, Sequence[int]] = record.get("widths") or {}
    if not given:
        return None
    names = [escape(name) for name in given]  # plotly.js reads markup in what it writes
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": names,
            "x": [pair[index] for pair in given.values()],
            "marker": {"color": color},
            "hovertemplate": "%{y}: %{x} " + label + "<extra></extra>",
        }
        for index, label, color in ((0, "before", "--dense"), (1, "after", "--thin"))
    ]
    row = 20 if len(names) <= 60 else 12
    shown = layout(90 + row * max(len(names), 3), barmode="overlay", bargap=0.25)
    shown["yaxis"] |= {"autorange": "reversed", "showgrid": False, "automargin": True, "type": "category"}
    if len(names) <= 60:
        shown["yaxis"] |= {"tickmode": "linear", "dtick": 1}
    shown["xaxis"] |= {"title": {"text": "channels"}}
    return {"data": bars, "layout": shown}


def gammas(record: Mapping[str, Any]) -> Figure | None:
    """All |gamma| before the cut in bins of equal ratio: what stayed, what went, and the line between."""
    given: Mapping[str, Sequence[float]] = record.get("gammas") or {}
    if not any(len(values) for values in given.values()):
        return None
    values, gone = magnitudes(given, record.get("cut"), record.get("removed"))
    floor, shown, zeros = visible(values)
    low, high = np.log10(floor), max(float(np.log10(shown.max())), float(np.log10(floor)) + 1)
    edges = np.linspace(low - 1e-9, high + 1e-9, 61)
    at = (edges[1:] + edges[:-1]) / 2
    bars = []
    for label, color, chosen in (("kept", "--thin", ~gone), ("removed", "--cut", gone)):
        counts = np.histogram(np.log10(shown[chosen]), edges)[0]
        bars.append(
            {
                "type": "bar",
                "name": label,
                "x": [round(float(x), 4) for x in at],
                "y": counts.tolist(),
                "customdata": [f"{10**x:.2g}" for x in at],
                "marker": {"color": color},
                "hovertemplate": "%{y} " + label + " near %{customdata}<extra></extra>",
            }
        )
    steps = (1, 2, 5) if high - low < 2 else (1,)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ticks = [tick for decade in decades for step in steps if low <= np.log10(tick := step * 10.0**decade) <= high]
    title = "|gamma|" + (f"; leftmost: {zeros} at or below {floor:.0e}" if zeros else "")
    axis = {"title": {"text": title}, "tickvals": np.log10(ticks).tolist(), "ticktext": [f"{tick:g}" for tick in ticks]}
    cut = formatting.number(record.get("cut"))
    shape = layout(320, xaxis=axis, barmode="stack", bargap=0.05)
    if cut is not None:
        line = float(np.log10(max(cut, floor)))
        above = {"y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "left", "showarrow": False}
        shape |= {"shapes": [_line(x=line)], "annotations": [{"x": line, "text": f"cut at {cut:.3g}", **above}]}
    shape["yaxis"] |= {"title": {"text": "channels"}}
    return {"data": bars, "layout": shape}


def curves(record: Mapping[str, Any], *, loss: bool) -> Figure | None:
    """The loss, or the metric, over the epochs of all phases, one after the other."""
    metric, history = metric_of(record), record.get("history") or {}
    data: list[dict[str, Any]] = []
    lines, names, start = [], [], 0
    for phase, found in history.items():
        length = max((len(values) for values in found.values()), default=0)
        for name, values in found.items():
            is_metric = name == metric.name or name.endswith(f"_{metric.name}")
            if (loss and ("loss" not in name or is_metric)) or (not loss and not is_metric):
                continue
            curve = _curve(name.replace("_", " "), phase, start, values, metric if is_metric else None)
            data.append(curve | {"showlegend": all(curve["name"] != other["name"] for other in data)})
        if length and start:
            lines.append(_line(x=start + 0.5))
        names.append({"x": start + (1 + length) / 2, "text": phase} if length else None)
        start += length
    if not data:
        return None
    above = {"y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "font": {"color": "--faint", "size": 11}}
    shown = layout(320, shapes=lines, hovermode="closest", annotations=[name | above for name in names if name])
    shown["xaxis"] |= {"title": {"text": "epoch"}}
    shown["yaxis"] |= {"title": {"text": "loss" if loss else escape(metric.label)}}
    shown["legend"] |= {"y": -0.26, "yanchor": "top"}
    shown["margin"]["b"] = 76
    return {"data": data, "layout": shown}


def _curve(label: str, phase: str, start: int, values: Sequence[Any], metric: Metric | None) -> dict[str, Any]:
    numbers = {epoch: formatting.number(value) for epoch, value in enumerate(values, start=start + 1)}
    known = [(epoch, metric.scaled(n) if metric else n) for epoch, n in numbers.items() if n is not None]
    chosen = sorted({*known[:: -(-len(known) // POINTS)], known[-1]}) if known else []
    held_out = not label.startswith("train")
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(chosen) < 3 else "lines",
        "name": escape(label),
        "x": [epoch for epoch, _ in chosen],
        "y": [value for _, value in chosen],
        "line": {"color": "--thin" if held_out else "--dense", "width": 2},
        "hovertemplate": "epoch %{x}: %{y:.4g}<extra>" + f"{phase}, {escape(label)}" + "</extra>",
    }


def _axis() -> dict[str, Any]:
    return {"gridcolor": "--line", "zerolinecolor": "--line", "linecolor": "--line", "automargin": True}


def _line(*, x: float) -> dict[str, Any]:
    """A vertical line through the whole figure."""
    line = {"color": "--ink", "width": 1, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}
