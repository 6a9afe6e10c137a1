"""`python -m experiments.nocliff --data FOLDER`: run what is not in results.json yet, then draw the figure.

FOLDER is an ImageFolder tree, ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, of 32x32 images in ten classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.nocliff import curves, jobs
from experiments.nocliff.data import load

Job = Callable[[jobs.Setting], dict[str, Any]]


def every_job() -> dict[str, Job]:
    """Name to job, the most telling first."""
    found: dict[str, Job] = {}
    for seed in range(3):
        vgg: dict[str, Job] = {
            "dense": partial(jobs.dense, name="vgg", seed=seed),
            "target 60%": partial(jobs.target, name="vgg", seed=seed, ratio=0.6),
            "target 70%": partial(jobs.target, name="vgg", seed=seed, ratio=0.7),
            "target half MACs": partial(jobs.target, name="vgg", seed=seed, macs=0.5),
            "target 60%, taught": partial(jobs.target, name="vgg", seed=seed, ratio=0.6, teacher_from=jobs.BRANCH),
            "target 70%, taught": partial(jobs.target, name="vgg", seed=seed, ratio=0.7, teacher_from=jobs.BRANCH),
            "target half MACs, taught": partial(jobs.target, name="vgg", seed=seed, macs=0.5, teacher_from=jobs.BRANCH),
            "target 60%, taught throughout": partial(jobs.target, name="vgg", seed=seed, ratio=0.6, teacher_from=0),
            "target 70%, taught throughout": partial(jobs.target, name="vgg", seed=seed, ratio=0.7, teacher_from=0),
            "l1 half MACs": partial(jobs.cut, name="vgg", seed=seed, law="l1", macs=0.5),
            "scratch half MACs": partial(jobs.scratch, name="vgg", seed=seed, macs=0.5),
            "uniform half MACs": partial(jobs.cut, name="vgg", seed=seed, law="uniform", macs=0.5),
            "Torch-Pruning half MACs": partial(jobs.cut, name="vgg", seed=seed, law="torch_pruning", macs=0.5),
        }
        resnet: dict[str, Job] = {
            "dense": partial(jobs.dense, name="resnet20", seed=seed),
            "target half MACs": partial(jobs.target, name="resnet20", seed=seed, macs=0.5),
            "target half MACs, taught throughout": partial(
                jobs.target, name="resnet20", seed=seed, macs=0.5, teacher_from=0
            ),
        }
        found[f"repair/vgg/uniform half MACs/s{seed}"] = partial(jobs.repair, name="vgg", seed=seed, macs=0.5)
        found |= {f"vgg/{k}/s{seed}": job for k, job in vgg.items()}
        found |= {f"resnet20/{k}/s{seed}": job for k, job in resnet.items()}
    for name in jobs.BUILDERS:
        found[f"{name}/dense, taught throughout/s0"] = partial(jobs.dense, name=name, seed=0, taught=True)
    for name, laws in {"vgg": ("l1", "prox", "polarization", "l0"), "resnet20": ("l1", "group")}.items():
        found |= {f"{name}/{law} whole/s0": partial(jobs.whole, name=name, seed=0, law=law) for law in laws}
    return found


def main() -> None:
    """Run the jobs whose names contain one of ``--only``, or all."""
    parser = argparse.ArgumentParser(prog="python -m experiments.nocliff", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ImageFolder tree with train/ and test/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/nocliff"), help="decoded images, trained networks")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of job names, e.g. 'vgg/dense' /s0")
    parser.add_argument("--curves", action="store_true", help="also the curves and the figure (always without --only)")
    parser.add_argument("--list", action="store_true", help="print the job names and stop")
    args = parser.parse_args()
    chosen = {name: job for name, job in every_job().items() if any(part in name for part in args.only)}
    if args.list:
        done = jobs.RESULTS.read()
        print("\n".join(f"{'done' if name in done else '    '} {name}" for name in chosen))
        return
    setting = jobs.Setting(*load(args.data, args.cache), args.cache)
    for name, job in chosen.items():
        jobs.RESULTS.run(name, partial(job, setting))
    if args.only == [""] or args.curves:
        curves.run(setting)


if __name__ == "__main__":
    main()
