"""`python -m experiments.sparsity --data FOLDER`: run what is not in results.json yet, then table and figures.

FOLDER is an ImageFolder tree, ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, of 32x32 images in ten classes.
``--measure`` times the networks of results.json again and trains nothing: it needs neither images nor weights.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from experiments.nocliff.data import load
from experiments.sparsity import figure, jobs, measure, table
from experiments.sparsity.training import Setting

IMAGES = 5_000


def main() -> None:
    """Run the jobs whose names contain one of ``--only``, or all."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sparsity", description=__doc__)
    parser.add_argument("--data", type=Path, help="ImageFolder tree with train/ and test/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/sparsity"), help="decoded images, trained networks")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of job names, e.g. dense /s0")
    parser.add_argument("--list", action="store_true", help="print the job names and stop")
    parser.add_argument("--measure", action="store_true", help="time the networks again, train nothing")
    parser.add_argument("--turns", type=int, default=15, help="of the timing")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = {name: job for name, job in jobs.every_job().items() if any(part in name for part in args.only)}
    if args.list:
        done = jobs.RESULTS.read()
        print("\n".join(f"{'done' if name in done else '    '} {name}" for name in chosen))
        return
    if args.data is not None:
        train, test = load(args.data, args.cache)
        setting = Setting(train[:IMAGES], test, args.cache)
        for name, job in chosen.items():
            jobs.RESULTS.run(name, partial(job, setting))
    elif not args.measure:
        parser.error("--data is needed to train. Got none. Give an ImageFolder tree, or --measure.")
    if args.measure or (args.only == [""] and measure.missing(jobs.RESULTS.read())):
        jobs.RESULTS.write({"latency": measure.latency(jobs.RESULTS.read(), args.turns, args.threads)})
    found = jobs.RESULTS.read()
    table.write(found)
    if "latency" in found:
        figure.draw(found, table.HERE)


if __name__ == "__main__":
    main()
