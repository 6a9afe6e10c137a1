"""``python -m experiments.paper``: run what is not finished, resume what was killed, fill table and figure.

Data sets are downloaded to datasets/; CIFAR-10 may be a folder of images: ``--data FOLDER`` (train/<class>/*.jpg,
test/<class>/*.jpg).
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.paper import figure, table
from experiments.paper.jobs import CIFAR10, SCALES, Job, jobs
from experiments.paper.results import RESULTS, collect
from slim.command.compose import quoted

ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if a job failed; the others go on."""
    parser = argparse.ArgumentParser(prog="python -m experiments.paper", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as a folder of images")
    parser.add_argument("--output", type=Path, default=Path("outputs/paper"), help="one run directory per job")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of job names, e.g. resnet20 /s0")
    parser.add_argument("--parallel", type=int, default=1, help="jobs at a time: small networks fill no GPU alone")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    args = parser.parse_args(argv)
    place = args.output / args.scale
    everything = {job.name: job for job in jobs(SCALES[args.scale])}
    chosen = [job for job in everything.values() if any(part in job.name for part in args.only)]
    chosen = [job for job in everything.values() if job in chosen or any(job.name == one.needs for one in chosen)]
    if args.list:
        print(
            "\n".join(
                f"{state(job, place):9} {job.name}: {shlex.join(command(job, place, args.data))}" for job in chosen
            )
        )
        return 0
    failed = 0
    for teaching in (True, False):  # teachers first, so that parallel jobs need not wait for one another
        batch = [job for job in chosen if (job.needs is None) == teaching]
        with ThreadPoolExecutor(args.parallel) as pool:
            failed += sum(pool.map(lambda job: execute(job, place, args.data), batch))
    if args.scale != "smoke":
        RESULTS.write(collect(args.output, args.scale))
        finished = RESULTS.read()
        table.write(finished)
        figure.draw(finished, figure.PICTURE)
    return 1 if failed else 0


def state(job: Job, place: Path) -> str:
    """finished, begun or nothing."""
    directory = place / job.name
    return "finished" if (directory / "report.json").is_file() else "begun" if directory.is_dir() else ""


def execute(job: Job, place: Path, data: Path | None) -> bool:
    """Run or resume a job in a process of its own; whether it failed."""
    if state(job, place) == "finished":
        return False
    print(f"── {job.name}", file=sys.stderr, flush=True)
    return subprocess.run(command(job, place, data), cwd=ROOT, stdout=subprocess.DEVNULL).returncode != 0


def command(job: Job, place: Path, data: Path | None) -> list[str]:
    """The command line of a job as it stands: from the start, or going on."""
    directory = (place / job.name).absolute()
    teacher = "" if job.needs is None else str((place / job.needs / "model.safetensors").absolute())
    given, images = list(job.overrides), []
    if data is not None and CIFAR10 in given:
        given.remove(CIFAR10)
        images = ["data=image_folder", f"data.dir={quoted(data.absolute())}"]
    given = [item.format(teacher=quoted(Path(teacher))) if item.endswith("{teacher}") else item for item in given]
    if job.rival:
        given = [item for item in given if ".teacher=" not in item]
        return [sys.executable, "-m", "experiments.paper.rival", str(directory), teacher or "-", *images, *given]
    if (directory / "state.json").is_file():
        return [sys.executable, "train.py", f"resume={quoted(directory)}"]
    return [sys.executable, "train.py", *images, *given, f"hydra.run.dir={quoted(directory)}"]


if __name__ == "__main__":
    sys.exit(main())
