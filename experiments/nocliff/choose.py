"""`python -m experiments.nocliff.choose --data FOLDER`: variants of `target` on validation images, never on the test's.

Variants share their first epochs, in which nothing is removed yet: network and optimizer after ``BRANCH`` epochs are
kept, and every variant goes on from there, so that a difference between two of them is the law's.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.nocliff import jobs, store
from experiments.nocliff.data import held_out, load
from experiments.nocliff.loop import accuracy, train
from slim.sparsity import build

BRANCH = 3
RESULTS = Path(__file__).parent / "choices.json"
SIXTY, HALF = {"ratio": 0.6}, {"macs": 0.5}
LATE = {"start": 0.28, "end": 0.7}
GLOBAL = {"select": {"strategy": "global"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "ratio 0.6, cubic .28-.9": SIXTY | {"start": 0.28, "end": 0.9},
    "ratio 0.6, linear .28-.9": SIXTY | {"start": 0.28, "end": 0.9, "power": 1.0},
    "ratio 0.6, cubic .28-.7": SIXTY | LATE,
    "ratio 0.6, gamma": SIXTY | LATE | {"criterion": "gamma", "balance": 1.0, "max_layer_ratio": 0.85},
    "ratio 0.6, window .25": SIXTY | LATE | {"window": 0.25},
    "macs 0.5, global": HALF | GLOBAL | LATE,
    "macs 0.5, global, .5-.9": HALF | GLOBAL | {"start": 0.5, "end": 0.9},
    "macs 0.5, global, balance 1, .5-.9": HALF | GLOBAL | {"start": 0.5, "end": 0.9, "balance": 1.0},
    "macs 0.5, global, balance 1": HALF | GLOBAL | LATE | {"balance": 1.0},
    "macs 0.5, global, taught": HALF | GLOBAL | LATE | {"taught_from": 0},
    "macs 0.5, global, taught for 4 epochs": HALF | GLOBAL | LATE | {"taught_from": 8},
    "ratio 0.6, taught": SIXTY | LATE | {"taught_from": 0},
}


def variant(setting: jobs.Setting, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """From the kept epoch to the end under one variant of the law; validation accuracy without fine-tuning."""
    stored = setting.cache / f"vgg-branch-s{seed}.pt"
    if not stored.exists():
        model = jobs.started("vgg", seed)
        kept = train(model, setting.train, epochs=setting.epochs, seed=seed, until=BRANCH)
        torch.save({"weights": model.state_dict(), "kept": kept}, stored)
    saved = torch.load(stored)
    model = jobs.started("vgg", seed)
    model.load_state_dict(saved["weights"])
    more: dict[str, Any] = {"kept": saved["kept"]}
    if "taught_from" in options:
        more |= {"teacher": dense(setting, seed), "taught_from": options["taught_from"]}
    penalty = build("target", **{key: value for key, value in options.items() if key != "taught_from"})
    return jobs.under_target(setting, "vgg", seed, model, penalty, **more)


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
    store.run(f"dense/s{args.seed}", lambda: {"accuracy": accuracy(dense(setting, args.seed), setting.test)}, RESULTS)
    for name, options in VARIANTS.items():
        if any(part in name for part in args.only):
            store.run(f"{name}/s{args.seed}", partial(variant, setting, args.seed, options), RESULTS)


def dense(setting: jobs.Setting, seed: int) -> nn.Module:
    """The dense network that `python -m experiments.nocliff --only vgg/dense` stored, in eval mode."""
    model = jobs.started("vgg", seed)
    model.load_state_dict(torch.load(setting.cache / f"vgg-dense-s{seed}.pt")["weights"])
    return model.eval()


if __name__ == "__main__":
    main()
