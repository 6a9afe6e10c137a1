"""``make readme``: one run of the main job with its dense control gives the README's pictures and its first row.

``python -m experiments.readme RUN`` makes the pictures again from a run that is there.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train
from slim.files import write_atomic
from slim.report.style import png
from tests.report.board import cockpit, tensorboard
from tests.report.browser import CHROMIUM, browser

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
LINE = ("+experiment=vgg_slim", "phases=[baseline,sparse,prune,finetune]")
ROW = re.compile(r"^\| VGG of 8 layers, digits .*$", re.MULTILINE)


def row(record: dict[str, Any]) -> str:
    """The row of the README's first table of results."""
    rows = record["rows"]
    dense, thin = rows["dense"], rows["finetuned"]
    values = ", ".join(f"{100 * rows[name]['metric']:.2f}" for name in ("dense", "rebuilt", "recovered", "finetuned"))
    kept = [f"{100 * thin[key] / dense[key]:.1f}%" for key in ("macs", "params")]
    time = ", ".join(f"{100 * thin[key] / dense[key]:.0f}%" for key in ("latency_ms_b1", "latency_ms_b64"))
    cells = ["VGG of 8 layers, digits (360 test images: one is 0.28 points)", values, *kept, time, "`make readme`"]
    return f"| {' | '.join(cells)} |"


def pictures(run: Path, scratch: Path) -> dict[str, Any]:
    """Draw the figure of a run, and photograph its TensorBoard and its page; returns its record."""
    record: dict[str, Any] = json.loads((run / "report.json").read_text())
    draw = runpy.run_path(str(IMAGES / "draw.py"))["draw"]
    write_atomic(IMAGES / "vgg_slim.png", png(draw(record)))
    if CHROMIUM is None:
        print("No Chromium is installed: cockpit.png and report.png stay as they are.", file=sys.stderr)
        return record
    with tensorboard(run, scratch / "told") as address, browser(scratch / "profile") as page:
        cockpit(page, address)
        page.picture(IMAGES / "cockpit.png")
        page.size(1120, 900)
        page.open((run / "report.html").absolute().as_uri())
        page.until("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
        # Down to the end of its first section: nothing is cut in two.
        page.size(1120, page.value("Math.ceil(document.querySelector('section').getBoundingClientRect().bottom) + 12"))
        page.picture(IMAGES / "report.png")
    return record


def main(argv: Sequence[str] = ()) -> int:
    """Run, draw, write. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        if argv:
            pictures(Path(argv[0]), Path(folder))
            return 0
        place = Path(folder) / "vgg_slim"
        if (code := train.main([*LINE, f"hydra.run.dir={place}"])) != 0:
            return code
        record = pictures(place, Path(folder))
    page = ROOT / "README.md"
    text, count = ROW.subn(lambda _: row(record), page.read_text(encoding="utf-8"))
    if count != 1:
        print(f"README.md must have one row of the main job. Got {count}. Put it back.", file=sys.stderr)
        return 1
    write_atomic(page, text)
    print(row(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
