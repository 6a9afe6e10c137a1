"""`python -m experiments.nocliff.choose --data FOLDER`: variants of `target` on validation images, never on the test's.

Variants share their first epochs, in which nothing is removed yet: network and optimizer after ``jobs.BRANCH`` are
kept, and every variant goes on from there, so that a difference between two of them is the law's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.nocliff import jobs, network
from experiments.nocliff.data import held_out, load
from experiments.nocliff.loop import accuracy, train
from experiments.store import Store
from slim.recovery import Distillation
from slim.sparsity import build

CHOICES = Store(Path(__file__).parent / "choices.json")
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
    "macs 0.5, global, taught": HALF | LATE | {"taught": (4.0, 0.5)},
    "ratio 0.6, taught": SIXTY | LATE | {"taught": (4.0, 0.5)},
    "ratio 0.6, taught, T 4, weight 0.9": SIXTY | LATE | {"taught": (4.0, 0.9)},
    "ratio 0.6, taught throughout": SIXTY | LATE | {"taught": (4.0, 0.5), "throughout": True},
    "ratio 0.6, taught throughout, .5-.8": SIXTY | {"start": 0.5, "end": 0.8, "taught": (4.0, 0.5), "throughout": True},
    "ratio 0.6, taught throughout, T 2": SIXTY | LATE | {"taught": (2.0, 0.5), "throughout": True},
    "ratio 0.6, taught throughout, T 4, weight 0.7": SIXTY | LATE | {"taught": (4.0, 0.7), "throughout": True},
    "ratio 0.6, window 0.2": SIXTY | LATE | {"window": 0.2},
    "macs 0.5, balance 1, .5-.8, taught throughout": HALF
    | {"start": 0.5, "end": 0.8, "balance": 1.0, "taught": (4.0, 0.5), "throughout": True},
    "resnet20, macs 0.5, balance 0": HALF | LATE | {"network": "resnet20"},
    "resnet20, macs 0.5, balance 1": HALF | LATE | {"balance": 1.0, "network": "resnet20"},
}
# Of 486 channels, what is left of 1,216 at 60%: does it matter which?
SHAPES = (
    (54, 82, 94, 82, 64, 110),
    (64, 128, 100, 80, 50, 64),
    (32, 64, 96, 96, 96, 102),
    (26, 51, 102, 102, 102, 103),
    (44, 90, 110, 110, 66, 66),
    (30, 70, 75, 75, 75, 161),
)


def shape(setting: jobs.Setting, seed: int, widths: Sequence[int]) -> dict[str, Any]:
    """A thin network from fresh weights: what its shape alone is worth in as many epochs."""
    a, b, *rest = widths
    torch.manual_seed(seed)
    model = network.vgg((a, "M", b, "M", *rest[:2], "M", *rest[2:]))
    train(model, setting.train, epochs=setting.epochs, seed=seed)
    found = {"accuracy": accuracy(model, setting.test), "training_accuracy": accuracy(model, setting.train)}
    return found | jobs.sizes(model, "vgg")


def variant(setting: jobs.Setting, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """From the kept epoch to the end under one variant of the law; validation accuracy without fine-tuning.

    ``throughout``: from fresh weights instead, the teacher there from the first epoch on.
    """
    law = {key: value for key, value in options.items() if key not in ("taught", "throughout", "network")}
    name = options.get("network", "vgg")
    model, kept = (jobs.started(name, seed), None) if "throughout" in options else jobs.branch(setting, name, seed)
    more: dict[str, Any] = {"kept": kept}
    if "taught" in options:
        more["distillation"] = Distillation(jobs.trained(setting, name, seed), *options["taught"])
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
    for label, name in (("dense", "vgg"), ("resnet20, dense", "resnet20")):
        model = jobs.trained(setting, name, args.seed)
        CHOICES.run(f"{label}/s{args.seed}", lambda model=model: {"accuracy": accuracy(model, setting.test)})
    for widths in SHAPES:
        name = f"scratch, {' '.join(map(str, widths))}"
        if any(part in name for part in args.only):
            CHOICES.run(f"{name}/s{args.seed}", partial(shape, setting, args.seed, widths))
    for name, options in VARIANTS.items():
        if any(part in f"{name}/s{args.seed}" for part in args.only):
            CHOICES.run(f"{name}/s{args.seed}", partial(variant, setting, args.seed, options))


if __name__ == "__main__":
    main()
