"""report.md: the record of a run as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slim.report import deployment, environment, formatting, tables
from slim.report.metric import metric_of

CAPTIONS = {
    "summary": "Metric and cost of every network of the run",
    "widths": "Channels per layer, before and after",
    "gammas": "All gammas before the cut, and the cut",
    "gammas_by_layer": "Gammas per layer, and what was removed",
    "history": "Loss and metric per epoch",
    "slimming": "MACs per epoch: the network is rebuilt while it trains",
}


def render(record: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The page, in Markdown.

    Args:
        record: The content of report.json.
        figures: Names of the figures beside it (``figures/<name>.png``).
    """
    parts = [f"# {record.get('experiment') or 'slim'}", _facts(record), "## Networks", _table(record)]
    parts += [_list(tables.input_note(record), *(record.get("latency") or {}).values())]
    if asked := _budgets(record):
        parts += ["## Budget", asked]
    if passes := _passes(record):
        parts += ["## Passes", passes]
    if phases := _phases(record):
        parts += ["## Phases", phases]
    if recovery := _recovery(record):
        parts += ["## Recovery", recovery]
    if stayed := record.get("stayed"):
        rows = [[row["reason"], formatting.percent(row["share"], 1), row["where"], row["advice"]] for row in stayed]
        parts += ["## What must stay", _grid(("reason", "channel groups", "such as", "what can be done"), rows)]
    parts += deployment.markdown(record)
    if notes := record.get("notes"):
        parts += ["## Notes", _list(*notes)]
    for name in figures:
        caption = CAPTIONS.get(name, name.replace("_", " ").capitalize())
        parts += [f"## {caption}", f"![{caption}](figures/{name}.png)"]
    if widths := _widths(record):
        parts += ["## Widths", widths]
    paths = record.get("paths") or {}
    files = [f"artifact: `{paths['artifact']}`"] if paths.get("artifact") else []
    if command := tables.tensorboard_command(record):
        files.append(f"curves: `{command}`")
    if files:
        parts += ["## Files", _list(*files)]
    if machine := record.get("environment"):
        parts += ["## Environment", environment.line(dict(machine))]
    return "\n\n".join(part for part in parts if part) + "\n"


def networks(record: Mapping[str, Any]) -> str:
    """The table of the run's networks, and what its numbers mean."""
    return f"{_table(record)}\n\n{_list(tables.input_note(record), *(record.get('latency') or {}).values())}"


def plan(record: Mapping[str, Any]) -> str:
    """What was asked, what it came to, and every layer's width before and after."""
    return "\n\n".join(part for part in (_budgets(record), _widths(record)) if part)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---", *("---:" for _ in head[1:])], *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _list(*lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _facts(record: Mapping[str, Any]) -> str:
    names = ("model", "data", "seed", "schedule", "passes", "input_shape", "plan_hash")
    facts = {name: record[name] for name in names if record.get(name) is not None}
    if "plan_hash" in facts:
        facts["plan_hash"] = str(facts["plan_hash"])[:16]  # plan.json has all of it
    if record.get("depth"):
        dense, after = record["depth"]
        facts["depth"] = f"{dense} -> {after} convolutions and linear layers"
    return _list(*(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))


def _table(record: Mapping[str, Any]) -> str:
    rows = [[f"{c.value} ({c.change})" if c.change else c.value for c in row] for row in tables.cells(record)]
    return _grid(tables.columns(record), rows)


def _budgets(record: Mapping[str, Any]) -> str:
    asked, got = record.get("requested") or {}, record.get("achieved") or {}
    rows = [[k, _plain(asked.get(k)), _plain(got.get(k))] for k in dict.fromkeys((*asked, *got))]
    return _grid(("budget", "requested", "achieved"), rows) if rows else ""


def _passes(record: Mapping[str, Any]) -> str:
    """Every cut of a run that cuts more than once, or goes on from other weights than the trained ones."""
    cuts = record.get("cuts") or []
    if len(cuts) < 2 and all(cut["weights"] == "trained" for cut in cuts):
        return ""
    kinds = list(dict.fromkeys(kind for cut in cuts for kind in cut["requested"]))
    steps = [name for name in formatting.LABELS if any(name in cut["validation"] for cut in cuts)]
    rows, metric = [], metric_of(record)
    for cut in cuts:
        amounts = [f"{_plain(cut['requested'].get(kind))}, {_plain(cut['achieved'].get(kind))}" for kind in kinds]
        after = [metric.shown(cut["validation"].get(name)) for name in steps]
        rows.append([cut["phase"], *amounts, *after, metric.shown(cut.get("finetuned"))])
    head = ("cut", *(f"{kind}: requested, achieved" for kind in kinds), *(formatting.LABELS[name] for name in steps))
    return f"Shares are of the dense network, {metric.name} of the validation data.\n\n" + _grid(
        (*head, "fine-tuned"), rows
    )


def _recovery(record: Mapping[str, Any]) -> str:
    """The steps after the cut, on held-out data, and which of them stayed."""
    metric = metric_of(record)
    rows = [
        [
            step["name"],
            metric.shown(step["before"]),
            metric.shown(step["after"]),
            "yes" if step["kept"] else "no",
            step["reason"],
        ]
        for step in record.get("recovery") or []
    ]
    return _grid(("step", "before", "after", "kept", "because"), rows) if rows else ""


def _plain(value: Any) -> str:
    amount = formatting.number(value)
    if amount is None:
        return formatting.MISSING if value is None else str(value)
    return f"{amount:.4g}" if abs(amount) < 1e4 else formatting.count(amount)


def _phases(record: Mapping[str, Any]) -> str:
    rows, metric = [], metric_of(record)
    for name, phase in (record.get("phases") or {}).items():
        best = metric.shown(phase.get("best_val"))
        if phase.get("best_epoch") is not None:
            best += f" (epoch {phase['best_epoch']})"
        epochs = formatting.MISSING if phase.get("epochs") is None else str(phase["epochs"])
        cells = [name, epochs, metric.shown(phase.get("val")), best, metric.shown(phase.get("metric"))]
        rows.append([*cells, formatting.seconds(phase.get("seconds"))])
    head = ("phase", "epochs", "validation, last epoch", "validation, best", "test, last epoch", "time")
    return _grid(head, rows) if rows else ""


def _widths(record: Mapping[str, Any]) -> str:
    rows, why = [], record.get("why_kept") or {}
    for name, (before, after) in (record.get("widths") or {}).items():
        row = [name, str(before), str(after), formatting.change(after, before) or "0%"]
        rows.append([*row, why.get(name, "")] if why else row)
    head = ("layer", "before", "after", "change", *(["what is left"] if why else []))
    return _grid(head, rows) if rows else ""
