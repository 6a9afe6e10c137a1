"""Seconds and memory of surgery at 50%, beside Torch-Pruning: one torchvision classifier a line, then the summary."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMEOUT = 240  # seconds for one network, both tools, all repetitions; Torch-Pruning finds no end on swin_v2


def run_one(name: str, repeats: int, size: int) -> dict[str, Any]:
    """One network in a process of its own: a crash or a leak of one tool stays there."""
    command = [sys.executable, "-W", "ignore", "-m", "experiments.surgery.one", name, str(repeats), str(size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=HERE.parents[1])
    except subprocess.TimeoutExpired:
        return {"model": name, "failed": f"more than {TIMEOUT} s"}
    if done.returncode:
        return {"model": name, "failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def seconds(row: dict[str, Any], tool: str) -> float | None:
    """Total median seconds of ``tool``, None where it failed."""
    total = row.get(tool, {}).get("seconds", {}).get("total")
    return None if total is None else float(total)


def line(row: dict[str, Any]) -> str:
    """One printed line of a measured network."""
    if "failed" in row:
        return f"{row['model']:40s} {row['failed']}"
    cells = []
    for tool in ("slim", "torch-pruning"):
        took, peak = seconds(row, tool), row[tool].get("peak MiB")
        cells.append("   failed          " if took is None else f"{took:8.3f} s {peak or 0:5.0f} MiB")
    ours, theirs = seconds(row, "slim"), seconds(row, "torch-pruning")
    ratio = f"{ours / theirs:6.3f}" if ours and theirs else "     -"
    why = "".join(
        f"  [{tool}: {row[tool]['failed'][:60]}]" for tool in ("slim", "torch-pruning") if "failed" in row[tool]
    )
    return f"{row['model']:40s} {cells[0]}  {cells[1]}  ratio {ratio}  tracing +{row['trace MiB'] or 0:.0f} MiB{why}"


def compared(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float, float]]:
    """The networks with BatchNorm that both tools take, with the seconds of each."""
    timed = ((row, seconds(row, "slim"), seconds(row, "torch-pruning")) for row in rows)
    return [(row, ours, theirs) for row, ours, theirs in timed if ours and theirs and row["criterion"] == "gamma"]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the goals are about."""
    ratios, cpu = {}, []
    for row, ours, theirs in compared(rows):
        ratios[row["model"]] = ours / theirs
        cpu.append(row["slim"]["seconds"]["cpu"] / row["torch-pruning"]["seconds"]["cpu"])
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    if worst is None:
        return {"compared": 0}
    return {
        "networks": len(rows),
        "compared": len(ratios),
        "median ratio": statistics.median(ratios.values()),
        "median ratio of processor seconds": statistics.median(cpu),
        "worst ratio": [worst, ratios[worst]],
        "densenet201 ratio": ratios.get("densenet201"),
        "vgg19_bn tracing MiB": next((row.get("trace MiB") for row in rows if row["model"] == "vgg19_bn"), None),
        "slim failed": [row["model"] for row in rows if seconds(row, "slim") is None],
        "torch-pruning failed": [row["model"] for row in rows if seconds(row, "torch-pruning") is None],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The compared networks as the table of README.md."""
    lines = ["| network | slim, s | Torch-Pruning, s | ratio | tracing adds, MiB |", "|---|---|---|---|---|"]
    for row, ours, theirs in compared(rows):
        lines.append(f"| {row['model']} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.3f} | {row['trace MiB']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write results.json beside this file."""
    parser = argparse.ArgumentParser(prog="python -m experiments.surgery", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="height and width of the example image")
    parser.add_argument("--only", default="", help="only the networks whose name contains this")
    parser.add_argument("--catalog", default="", help="instead, networks of the coverage's results: timm/, .../small/")
    parser.add_argument("--bn", action="store_true", help="only networks with BatchNorm, which are those compared")
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth of them")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--no-growth", action="store_true", help="leave the ResNets of growing depth out")
    args = parser.parse_args()

    import torch
    from torchvision import models

    from experiments.surgery.contenders import dense_network
    from experiments.surgery.growth import growth

    names = models.list_models(module=models)
    if args.catalog:
        known = json.loads((HERE.parent / "coverage" / "results.json").read_text())
        names = [row["model"] for row in known if args.catalog in row["model"] and row.get("criterion") == "gamma"]
    if args.bn:
        names = [
            name for name in names if any(isinstance(m, torch.nn.BatchNorm2d) for m in dense_network(name).modules())
        ]
    rows = []
    for name in [name for name in names if args.only in name][:: args.every]:
        rows.append(run_one(name, args.repeats, args.size))
        print(line(rows[-1]), flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    results: dict[str, Any] = {"machine": machine | {"torch": torch.__version__}, "summary": summary(rows)}
    if not args.no_growth:
        results["growth"] = growth(args.repeats)
    print(json.dumps({key: value for key, value in results.items() if key != "machine"}, indent=2))
    print(markdown(rows))
    if not args.only or args.results != HERE / "results.json":
        args.results.write_text(json.dumps(results | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
