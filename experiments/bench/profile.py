"""Where the time of an epoch in Lightning goes: operators of PyTorch, Lightning, TensorBoard, or our own code."""

from __future__ import annotations

import cProfile
import pstats
from collections import defaultdict
from pathlib import Path

from experiments.bench.loop import lightning
from experiments.bench.row import Row
from experiments.bench.steps import BATCH, chosen

OWNERS = {
    "slim": "slim",
    "pytorch_lightning": "Lightning",
    "lightning_fabric": "Lightning",
    "torchmetrics": "Lightning",
    "tensorboard": "TensorBoard",
    "torch": "PyTorch's Python",
}
ROWS = 15


def run(quick: bool) -> list[Row]:
    """Python's profile of the fit that the loop is measured with: own milliseconds per step. No aim."""
    batch, steps = (16, 6) if quick else (BATCH, 20)
    profile = cProfile.Profile()
    lightning(chosen(), batch, 2)  # imports, and what is made once
    lightning(chosen(), batch, steps, profile)
    spent: dict[str, float] = defaultdict(float)
    functions: dict[str, tuple[float, float]] = {}
    for (file, line, name), (_, calls, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        spent[_owner(file)] += own
        place = name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"
        functions[place] = (own, calls)
    whole = sum(spent.values())
    rows = [
        Row("profile", f"{owner}, {100 * own / whole:.2f} % of the time", 1e3 * own / steps, "ms/step")
        for owner, own in sorted(spent.items(), key=lambda item: -item[1])
    ]
    top = sorted(functions.items(), key=lambda item: -item[1][0])[:ROWS]
    rows += [Row("profile", f"{place}, {calls / steps:.1f} calls per step", 1e3 * own / steps, "ms/step")
             for place, (own, calls) in top]  # fmt: skip
    return rows


def _owner(file: str) -> str:
    """Whose code it is, by the innermost package that the path names."""
    if file == "~":
        return "operators and built-ins"
    parts = Path(file).parts
    if "models" in parts and "slim" in parts:
        return "the network's Python"
    if "site-packages" not in parts:
        return "slim" if "slim" in parts else "Python's library"
    package = parts[len(parts) - parts[::-1].index("site-packages")]
    if package == "torch" and "tensorboard" in parts:
        package = "tensorboard"
    return OWNERS.get(package, "other packages")
