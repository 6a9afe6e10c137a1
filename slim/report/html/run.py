"""The page of one run: what it came to in one line, then how, then every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim.report import deployment, formatting, tables
from slim.report.ends import ends, kept, trained_first
from slim.report.html import charts
from slim.report.html.page import Cell, Figure, escape, page, place, section, table
from slim.report.metric import metric_of

LEFT_OUT = ("gammas", "removed")
"""What is in the page as a figure only: a value for each of up to a hundred thousand channels."""


def run_page(record: Mapping[str, Any]) -> str:
    """report.html of a run, from the content of report.json alone."""
    drawn = {
        "ladder": charts.ladder(record),
        "costs": charts.costs(record),
        "gammas": charts.gammas(record),
        "widths": charts.widths(record),
        "metric": charts.curves(record, loss=False),
        "loss": charts.curves(record, loss=True),
    }
    figures: dict[str, Figure] = {name: figure for name, figure in drawn.items() if figure is not None}
    title = str(record.get("experiment") or "slim")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(_facts(record))}</p>',
        f'<p class="headline">{escape(headline(record))}</p>',
        _tiles(record),
        section("Networks", _two(figures, "ladder", "costs"), _networks(record)),
        section("Gammas before the cut", place("gammas", figures)),
        section("Channels per layer", place("widths", figures)),
        section("Layers", _layers(record)),
        *_deployed(record),
        section("Training", _two(figures, "metric", "loss")),
        section("Notes", _notes(record)),
        section("Command", f"<pre>{escape(record['command'])}</pre>" if record.get("command") else ""),
        section("Environment", _environment(record)),
    ]
    return page(title, parts, figures, {key: value for key, value in record.items() if key not in LEFT_OUT})


def headline(record: Mapping[str, Any]) -> str:
    """The run in one sentence.

    >>> dense, thin = {"metric": 0.9, "macs": 100, "params": 10}, {"metric": 0.89, "macs": 25, "params": 4}
    >>> headline({"rows": {"sparse": dense, "finetuned": thin}})
    'accuracy 89.00% (-1.00 pt against the sparse network) with 25.0% of the MACs, 40.0% of the parameters.'
    """
    dense, thin = ends(record)
    metric = metric_of(record)
    if not thin:
        return "No network yet." if record.get("status") != "failed" else f"Failed: {record.get('error', '')}"
    moved = metric.change(thin.get("metric"), dense.get("metric"))
    against = f" ({moved} against the {trained_first(record)} network)" if moved and thin != dense else ""
    said = f"{metric.name} {metric.shown(thin.get('metric'))}{against}"
    names = {"macs": "of the MACs", "params": "of the parameters", "latency_ms_b1": "of the time at batch 1"}
    shares = {of: share for key, of in names.items() if (share := kept(thin, dense, key)) is not None}
    if thin.get("macs") == dense.get("macs"):
        return f"{said}; nothing was cut."
    return f"{said} with {', '.join(f'{formatting.percent(share, 1)} {of}' for of, share in shares.items())}."


def _facts(record: Mapping[str, Any]) -> str:
    names = {"model": "", "data": "on ", "seed": "seed ", "schedule": "schedule ", "input_shape": "input "}
    return " · ".join(f"{word}{record[key]}" for key, word in names.items() if record.get(key) is not None)


def _tiles(record: Mapping[str, Any]) -> str:
    """The headline: each figure after, and before."""
    dense, thin = ends(record)
    metric = metric_of(record)
    before = formatting.LABELS[trained_first(record)]
    tiles = []
    if formatting.number(thin.get("metric")) is not None:
        moved = metric.change(thin.get("metric"), dense.get("metric"))
        tiles.append(
            (metric.name, metric.shown(thin["metric"]), f"{before} {metric.shown(dense.get('metric'))}", moved)
        )
    shown = {"macs": formatting.count, "params": formatting.count}
    for key, name in charts.COSTS.items():
        if key != "channels" and formatting.number(thin.get(key)) is not None:
            written = shown.get(key, formatting.millis)
            moved = formatting.change(thin[key], dense.get(key))
            tiles.append((name, written(thin[key]), f"dense {written(dense.get(key))}", moved))
    inside = [
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="after">{escape(after)}</div>'
        f'<div class="before faint">{escape(was)} <b>{escape(moved)}</b></div></div>'
        for name, after, was, moved in tiles
    ]
    return f'<div class="tiles">{"".join(inside)}</div>' if inside else ""


def _networks(record: Mapping[str, Any]) -> str:
    rows = [
        [
            Cell(
                f'{escape(cell.value)} <span class="was">{escape(cell.change)}</span>'.removesuffix(" "), None, at == 0
            )
            for at, cell in enumerate(row)
        ]
        for row in tables.cells(record)
    ]
    lines = [tables.input_note(record), *(str(line) for line in (record.get("latency") or {}).values())]
    said = "".join(f'<p class="faint">{escape(line)}</p>' for line in lines)
    return table(tables.columns(record), rows) + said if rows else ""


def _layers(record: Mapping[str, Any]) -> str:
    """Every layer that is in the plan or costs anything, sortable."""
    found: dict[str, Mapping[str, Any]] = {
        key: record.get(key) or {} for key in ("widths", "layer_macs", "layer_ms", "why_kept")
    }
    names = list(dict.fromkeys([*found["widths"], *found["layer_macs"]]))
    head = ["layer", "channels", "left", "change", "MACs", "left", "change"]
    head += ["ms, batch 1", "left"] * bool(found["layer_ms"]) + ["why they stayed"] * bool(found["why_kept"])
    rows = []
    for name in names:
        row = [Cell(escape(name), None, True)]
        for key in ("widths", "layer_macs"):
            before, after = found[key].get(name, (None, None))
            row += [_number(formatting.count(before), before), _number(formatting.count(after), after)]
            row.append(_number(formatting.change(after, before) or "0%", after / before - 1 if before else 0.0))
        if found["layer_ms"]:
            both = found["layer_ms"].get(name, (None, None))
            row += [_number(formatting.millis(value).removesuffix(" ms"), value) for value in both]
        if found["why_kept"]:
            row.append(Cell(escape(found["why_kept"].get(name, "")), None, True))
        rows.append(row)
    return table(head, rows, sortable=True) if rows else ""


def _number(text: str, value: Any) -> Cell:
    number = formatting.number(value)
    return Cell(escape(text), -1.0 if number is None else number)


def _deployed(record: Mapping[str, Any]) -> list[str]:
    """The exported files, and the ladder from dense fp32 to thin int8."""
    found = []
    for each in deployment.sections(record):
        rows = [[Cell(escape(cell), None, at == 0) for at, cell in enumerate(row)] for row in each.rows]
        found.append(section(each.title, f'<p class="faint">{escape(each.note)}</p>', table(each.head, rows)))
    return found


def _notes(record: Mapping[str, Any]) -> str:
    lines = [*(record.get("notes") or [])]
    lines += [
        f"{row['share']:.0%} of the channel groups must stay: {row['reason']} ({row['where']}). {row['advice']}"
        for row in record.get("stayed") or []
    ]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _environment(record: Mapping[str, Any]) -> str:
    machine: Mapping[str, Any] = record.get("environment") or {}
    facts = {key: value for key, value in machine.items() if value is not None and key != "versions"}
    facts |= machine.get("versions") or {}
    rows = [[Cell(escape(key), None, True), Cell(escape(value), None, True)] for key, value in facts.items()]
    return table(("", ""), rows) if rows else ""


def _two(figures: Mapping[str, Figure], *names: str) -> str:
    inside = "".join(f"<div>{place(name, figures)}</div>" for name in names if name in figures)
    return f'<div class="two">{inside}</div>' if inside else ""
