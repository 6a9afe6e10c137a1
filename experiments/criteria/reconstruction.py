"""`python -m experiments.criteria.reconstruction --data FOLDER`: one cut to half of the MACs, and no training after it.

What each step of recovery is worth by itself and with the others, under several rankings. The networks are those of
`python -m experiments.criteria`, from the same cache; they are trained where they are not there. Cuts that are in
reconstruction.json are not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slim
from experiments.criteria.images import load
from experiments.criteria.jobs import trained
from experiments.criteria.training import INPUTS, Setting, accuracy
from experiments.page import fill, spread
from slim.channels import Plan, count_macs
from slim.errors import SlimError
from slim.files import write_atomic
from slim.recovery import absorb, least_squares, recalibrate, recover

HERE = Path(__file__).parent
MARKS = "<!-- reconstruction: written by the script -->", "<!-- end of reconstruction -->"
RANKINGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "random": {},
    "gamma": {},
    "l1": {"normalize": "mean"},
    "taylor": {"beta": True, "strategy": "marginal"},
    "thinet": {"strategy": "marginal"},
    "channel_pruning": {"strategy": "marginal"},
}
COLUMNS = ("bare", "absorbed", "recalibrated", "least squares", "least squares, recalibrated", "each step evaluated")
FITTED = 20  # batches of 64 images
RECALIBRATED = 94  # one epoch


def main() -> None:
    """Make what is missing, then write the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.criteria.reconstruction", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ImageFolder tree with train/ and test/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/criteria"), help="decoded images, trained networks")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of reconstruction.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--sparse-epochs", type=int, default=12)
    parser.add_argument("--macs", type=float, default=0.5, help="fraction kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names, e.g. seed0/ thinet")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except SlimError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def run(args: argparse.Namespace) -> None:
    """The cuts of ``args``."""
    images = load(args.data, args.cache, args.images, 2000, 10_000)
    setting = Setting(*images, args.sparse_epochs, 0, args.macs, 0.8, False, args.cache)
    path = args.out / "reconstruction.json"
    told = {"macs": args.macs, "images": args.images, "sparse_epochs": args.sparse_epochs, "fitted": FITTED}
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"setting": told}
    if results["setting"] != told:
        raise SlimError(
            f"reconstruction.json holds one setting. Got {told}, the file has {results['setting']}. Give another --out."
        )
    for seed in range(args.seeds):
        for name in RANKINGS:
            key = f"seed{seed}/{name}"
            if key in results or not any(part in key for part in args.only):
                continue
            results[key] = cut(setting, seed, name)
            write_atomic(path, json.dumps(results, indent=1))
            print(key, {k: v for k, v in results[key].items() if k in COLUMNS}, flush=True)
    print(markdown(results))
    if args.out == HERE:
        fill(HERE / "README.md", MARKS, markdown(results))


def cut(setting: Setting, seed: int, name: str) -> dict[str, Any]:
    """Test accuracy after one cut and each kind of recovery, and after what held-out images say to keep."""
    dense = trained(setting, seed)
    graph = slim.trace(dense, INPUTS)
    options = dict(RANKINGS[name])
    strategy = options.pop("strategy", "global")
    if slim.criteria.needs_data(name):
        options["loader"] = setting.train.part(0, 1024).batches(128)
    if name == "random":
        options["seed"] = seed
    plan = slim.select(graph, slim.score(graph, name, **options), **setting.limits, strategy=strategy)
    bare = slim.rebuild(dense, plan)
    found: dict[str, Any] = {"dense": accuracy(setting, dense, setting.test)}
    found["bare"] = accuracy(setting, bare, setting.test)
    found["absorbed"] = accuracy(setting, slim.rebuild(absorb(dense, plan, graph), plan), setting.test)
    found["recalibrated"] = accuracy(setting, renewed(setting, bare), setting.test)
    begun = time.perf_counter()
    fitted = copy.deepcopy(bare)
    layers = least_squares(fitted, dense, plan, setting.calibration(), FITTED)
    found["seconds"] = round(time.perf_counter() - begun, 1)
    found["least squares"] = accuracy(setting, fitted, setting.test)
    found["least squares, recalibrated"] = accuracy(setting, renewed(setting, fitted), setting.test)
    found["layers"] = {each.module: [round(each.before, 5), round(each.after, 5)] for each in layers}
    return found | evaluated(setting, dense, graph, plan)


def renewed(setting: Setting, thin: nn.Module) -> nn.Module:
    """A copy with BatchNorm statistics of one epoch."""
    again = copy.deepcopy(thin)
    recalibrate(again, setting.calibration())
    return again


def evaluated(setting: Setting, dense: nn.Module, graph: Any, plan: Plan) -> dict[str, Any]:
    """All steps, each kept where 2,000 held-out training images gain by it."""
    result = recover(
        dense, plan, graph, least_squares=FITTED, batches=setting.calibration, count=RECALIBRATED,
        evaluate=lambda net: accuracy(setting, net, setting.held_out),
    )  # fmt: skip
    return {
        "each step evaluated": accuracy(setting, result.network, setting.test),
        "kept": [step.name for step in result.steps if step.kept],
        "macs": count_macs(result.network, INPUTS) / count_macs(dense, INPUTS),
    }


def markdown(results: dict[str, Any]) -> str:
    """Mean and deviation over seeds, a row per ranking."""
    lines = ["| ranking | " + " | ".join(COLUMNS) + " | MACs |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for name in RANKINGS:
        rows = [value for key, value in results.items() if key.startswith("seed") and key.partition("/")[2] == name]
        if rows:
            cells = [spread([row[column] for row in rows]) for column in COLUMNS]
            lines.append(f"| {name} | {' | '.join(cells)} | {statistics.mean(row['macs'] for row in rows):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
