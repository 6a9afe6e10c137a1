"""`python -m experiments.deploy --data FOLDER`: the ladder from dense fp32 to thin int8, for every network.

Trains and cuts what is missing, resumable, then measures; `--measure` only measures what is trained. FOLDER is an
ImageFolder tree, ``train/<class>/*`` and ``test/<class>/*``, of 32x32 images. Measuring takes about a minute per
network, training all of them two to three hours, on one free core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from experiments.deploy import table
from experiments.deploy.measuring import measure
from experiments.deploy.networks import NETWORKS, finished, train
from slim.errors import SlimError
from slim.files import write_json

HERE = Path(__file__).parent


def main() -> None:
    """Train, measure, and write the table and the picture."""
    parser = argparse.ArgumentParser(prog="python -m experiments.deploy", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ImageFolder tree with train/ and test/")
    parser.add_argument("--cache", type=Path, default=Path("outputs/deploy"), help="trained networks")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and deploy.png")
    parser.add_argument("--measure", action="store_true", help="train nothing")
    parser.add_argument("--seconds", type=float, default=2.0, help="per rung and batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except SlimError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def run(args: argparse.Namespace) -> None:
    """The networks of ``args``."""
    path = args.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    for name in args.only:
        if not args.measure:
            train(name, args.data, args.cache)
        if not finished(name, args.cache):
            print(f"{name}: not trained yet, left out", flush=True)
            continue
        results["networks"][name] = measure(name, args.data, args.cache, args.seconds)
        results["machine"] = machine(args.threads)
        write_json(path, results)
        print(table.markdown({**results, "networks": {name: results["networks"][name]}}), flush=True)
    if results["networks"]:
        table.draw(results, args.out / "deploy.png")
        print(table.verdict(results))


def machine(threads: int) -> str:
    """Processor, and what it has for bytes."""
    import onnxruntime

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if flag in text]
    return (
        f"{named[0] if named else platform.machine()} ({', '.join(flags) or 'no known flags'}), {threads} threads, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )


if __name__ == "__main__":
    main()
