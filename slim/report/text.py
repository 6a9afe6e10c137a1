"""Pages of Markdown for TensorBoard's text tab: the command, the networks, the plan, the notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim.report import environment, markdown


def pages(record: Mapping[str, Any]) -> dict[str, str]:
    """Tag -> Markdown, in reading order; what the record lacks is left out."""
    found = {}
    if record.get("command"):
        machine = record.get("environment")
        where = f"\n\n{environment.line(dict(machine))}" if machine else ""
        found["overview/1_command"] = f"`{record['command']}`{where}"
    if record.get("rows"):
        found["overview/2_networks"] = markdown.networks(record)
    if record.get("widths"):
        found["overview/3_plan"] = markdown.plan(record)
    if record.get("notes"):
        found["overview/4_notes"] = "\n".join(f"- {line}" for line in record["notes"])
    return found
