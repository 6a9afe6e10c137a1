"""results.json as two tables in README.md, mean and deviation over the seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.page import fill, spread

HERE = Path(__file__).parent
MARKS = "<!-- tables: written by the script -->", "<!-- end of tables -->"
FORMS = ("dense", "csr", "zipped", "own")


def by_method(results: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Method to seed to result, in the order of the table: dense, what changes no share, one half, more."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, result in results.items():
        method, _, seed = name.rpartition("/")
        if seed.startswith("s"):
            found.setdefault(method, {})[seed] = result
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _place(method: str) -> tuple[int, int, str]:
    order = ("dense", "int8", "ternary", "unstructured", "2:4", "low rank", "filters", "thin", "slimming")
    share = 1 if "50%" in method else 2 if "80%" in method else 0
    return share, next(i for i, start in enumerate(order) if method.startswith(start)), method


def mean(each: list[dict[str, Any]], *keys: str) -> float | None:
    """Mean of one figure over the seeds, None where it is missing."""
    values = []
    for result in each:
        value: Any = result
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return None
        values.append(float(value))
    return statistics.mean(values) if values else None


def sizes(results: dict[str, Any]) -> str:
    """Accuracy, what is left of the weights and the MACs, kilobytes."""
    head = (
        "method", "seeds", "test accuracy", "to dense", "weights removed", "MACs", "MACs without zeros", "kB dense",
        "kB CSR", "kB zipped", "kB own form",
    )  # fmt: skip
    lines = [head, ("---", *("---:",) * (len(head) - 1))]
    methods = by_method(results)
    for method, by_seed in methods.items():
        each, dense = list(by_seed.values()), methods.get("dense", {})
        gaps = [r["accuracy"] - dense[seed]["accuracy"] for seed, r in by_seed.items() if seed in dense]
        shares = [mean(each, key) for key in ("removed", "macs", "nonzero_macs")]
        kilobytes = [mean(each, "bytes", form) for form in FORMS]
        lines.append((
            method, str(len(each)), spread([r["accuracy"] for r in each]),
            "" if method == "dense" else spread(gaps, "+.2f"),
            *("" if v is None else f"{100 * v:.0f}%" for v in shares),
            *("" if v is None else f"{v / 1000:.0f}" for v in kilobytes),
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(latency: dict[str, Any]) -> str:
    """Milliseconds and share of the dense network's time, per batch size and runtime."""
    batches = latency["batches"]
    head = ["method"]
    for batch in batches:
        head += [f"batch {batch}, torch", f"batch {batch}, ONNX Runtime", f"batch {batch}, torch CSR"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method in sorted(batches["1"]["onnx"], key=_place):
        line = [method]
        for by_runtime in batches.values():
            for runtime in ("torch", "onnx", "csr"):
                cell = by_runtime.get(runtime, {}).get(method)
                line.append("" if cell is None else f"{cell['ms']:.2f} ms, {cell['ratio']:.2f}")
        lines.append(line)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{table}\n\nMedians of {latency['turns']} turns; the second figure is the share of the dense network's time"
        f" in the same runtime (CSR: of eager torch). {latency['machine']};"
        f" load average {latency['load']} before.\n\n2:4 on this machine: `{latency['two_four']}`"
    )


def write(results: dict[str, Any], folder: Path = HERE) -> None:
    """Tables into README.md."""
    parts = [sizes(results)]
    if "latency" in results:
        parts.append(times(results["latency"]))
    fill(folder / "README.md", MARKS, "\n\n".join(parts))
