"""`python -m experiments.nocliff.choose --data FOLDER`: variants of `target` on validation images, never on the test's.

Variants share their first epochs, in which nothing is removed yet: network and optimizer after ``jobs.BRANCH`` are
kept, and every variant goes on from there, so that a difference between two of them is the law's.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from experiments.nocliff import jobs, store
from experiments.nocliff.data import held_out, load
from experiments.nocliff.loop import accuracy
from slim.sparsity import build

RESULTS = Path(__file__).parent / "choices.json"
SIXTY, HALF = {"ratio": 0.6}, {"macs": 0.5, "balance": 0.0}
LATE = {"start": 0.28, "end": 0.7}
VARIANTS: dict[str, dict[str, Any]] = {
    "ratio 0.6, cubic .28-.9": SIXTY | {"start": 0.28, "end": 0.9},
    "ratio 0.6, linear .28-.9": SIXTY | {"start": 0.28, "end": 0.9, "power": 1.0},
    "ratio 0.6, cubic .28-.7": SIXTY | LATE,
    "ratio 0.6, .5-.8": SIXTY | {"start": 0.5, "end": 0.8},
    "macs 0.5, global": HALF | LATE,
    "macs 0.5, global, .5-.9": HALF | {"start": 0.5, "end": 0.9},
    "macs 0.5, global, balance 1": HALF | LATE | {"balance": 1.0},
    "macs 0.5, global, balance 1, .5-.8": HALF | {"start": 0.5, "end": 0.8, "balance": 1.0},
    "macs 0.5, global, taught": HALF | LATE | {"taught_from": 0},
    "ratio 0.6, taught": SIXTY | LATE | {"taught_from": 0},
    "resnet20, macs 0.5, balance 0": HALF | LATE | {"network": "resnet20"},
    "resnet20, macs 0.5, balance 1": HALF | LATE | {"balance": 1.0, "network": "resnet20"},
}


def variant(setting: jobs.Setting, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """From the kept epoch to the end under one variant of the law; validation accuracy without fine-tuning."""
    law = {key: value for key, value in options.items() if key not in ("taught_from", "network")}
    name = options.get("network", "vgg")
    model, kept = jobs.branch(setting, name, seed)
    more: dict[str, Any] = {"kept": kept}
    if "taught_from" in options:
        more |= {"teacher": jobs.trained(setting, name, seed), "taught_from": options["taught_from"]}
    return jobs.under_target(setting, name, seed, model, build("target", **law), **more)


def main() -> None:
    """Run the variants whose names contain one of ``--only``, or all."""
    parser = argparse.ArgumentParser(prog="python -m experiments.nocliff.choose", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ImageFolder tree with train/ and test/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/nocliff"))
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train_images, _ = load(args.data, args.cache)
    setting = jobs.Setting(train_images, held_out(args.data, args.cache), args.cache)
    for label, network in (("dense", "vgg"), ("resnet20, dense", "resnet20")):
        model = jobs.trained(setting, network, args.seed)
        store.run(f"{label}/s{args.seed}", lambda model=model: {"accuracy": accuracy(model, setting.test)}, RESULTS)
    for name, options in VARIANTS.items():
        if any(part in f"{name}/s{args.seed}" for part in args.only):
            store.run(f"{name}/s{args.seed}", partial(variant, setting, args.seed, options), RESULTS)


if __name__ == "__main__":
    main()
