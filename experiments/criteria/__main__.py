"""`python -m experiments.criteria --data FOLDER`: every criterion and schedule at equal MACs and equal epochs.

FOLDER is an ImageFolder tree, ``train/<class>/*`` and ``test/<class>/*``, of 32x32 images. Jobs that are in
results.json are not run again. About 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments.criteria import table
from experiments.criteria.images import load
from experiments.criteria.jobs import every_job
from experiments.criteria.training import Setting
from slim.errors import SlimError
from slim.files import write_atomic

HERE = Path(__file__).parent
# Cost of a job in epochs of the dense network; only the estimate of the time left depends on it.
COST = {"sparse": 12.0, "dense": 17.0, "leave one out": 6.0, "schedule/soft": 15.0, "schedule/rewind": 9.0}
COST["schedule/scratch"] = COST["schedule/rewind"]


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(prog="python -m experiments.criteria", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ImageFolder tree with train/ and test/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/criteria"), help="decoded images, trained networks")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and criteria.png")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--sparse-epochs", type=int, default=12)
    parser.add_argument("--finetune-epochs", type=int, default=5)
    parser.add_argument("--macs", type=float, default=0.4, help="fraction kept")
    parser.add_argument("--max-layer-ratio", type=float, default=0.8, help="no layer loses more")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of job names")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except SlimError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def run(args: argparse.Namespace) -> None:
    """The jobs of ``args``."""
    images = load(args.data, args.cache, args.images, 2000, args.test)
    setting = Setting(
        *images, args.sparse_epochs, args.finetune_epochs, args.macs, args.max_layer_ratio, args.precision == "bf16",
        args.cache,
    )  # fmt: skip
    told = {k: v for k, v in vars(args).items() if k not in ("data", "cache", "out", "seeds", "only", "threads")}
    path = args.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"setting": told}
    if results["setting"] != told:
        raise SlimError(
            f"results.json holds one setting. Got {told}, the file has {results['setting']}. Give another --out folder."
        )
    jobs = [(f"seed{s}/{name}", job, s) for s in range(args.seeds) for name, job in every_job().items()]
    todo = [(key, job, s) for key, job, s in jobs if key not in results and any(part in key for part in args.only)]
    spent = done = 0.0
    left = sum(COST.get(key.partition("/")[2], 3.5) for key, _, _ in todo)
    for i, (key, job, seed) in enumerate(todo):
        begun = time.perf_counter()
        results[key] = job(setting, seed) | {"seconds": round(time.perf_counter() - begun, 1)}
        cost = COST.get(key.partition("/")[2], 3.5)
        spent, done = spent + time.perf_counter() - begun, done + cost
        results["machine"] = f"{platform.machine()}, {args.threads} thread, torch {torch.__version__}"
        write_atomic(path, json.dumps(results, indent=1))
        shown = {k: round(v, 2) for k, v in results[key].items() if isinstance(v, float)}
        print(f"[{i + 1}/{len(todo)}] {key}: {shown}; {spent / done * (left - done) / 60:.1f} minutes left", flush=True)
    table.draw(results, args.out / "criteria.png")
    print(table.markdown(results))
    if args.out == HERE:
        table.write_readme(HERE / "README.md", results)


if __name__ == "__main__":
    main()
