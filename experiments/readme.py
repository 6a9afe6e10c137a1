"""``make readme``: one run of the main job with its dense control gives the README's picture and its first row."""

from __future__ import annotations

import json
import re
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import train
from slim.files import write_atomic
from slim.report.style import png

ROOT = Path(__file__).parents[1]
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


def main() -> int:
    """Run, draw, write. Returns the exit code."""
    draw = runpy.run_path(str(ROOT / "docs" / "images" / "draw.py"))["draw"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        if (code := train.main([*LINE, f"hydra.run.dir={place}"])) != 0:
            return code
        record = json.loads((place / "report.json").read_text())
    write_atomic(ROOT / "docs" / "images" / "vgg_slim.png", png(draw(record)))
    page = ROOT / "README.md"
    text, count = ROW.subn(lambda _: row(record), page.read_text(encoding="utf-8"))
    if count != 1:
        print(f"README.md must have one row of the main job. Got {count}. Put it back.", file=sys.stderr)
        return 1
    write_atomic(page, text)
    print(row(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
