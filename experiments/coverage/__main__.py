"""Mask and rebuild every network of torchvision, and timm's families, at 50%: one line each, and a count."""

from __future__ import annotations

import argparse
import json
import queue
import select
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from experiments.coverage.trial import ENOUGH, RATIO, lost

HERE = Path(__file__).parent
SOURCES = ("torchvision", "timm", "transformers")
KINDS = ("classifier", "segmentation", "detection", "video", "flow")
TIMEOUT = 1800  # seconds for one network, building included


class Worker:
    """A process that tries networks; started again after a crash or a timeout."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str) -> dict[str, Any]:
        """The row of one network; ``lost`` when the process died or took too long."""
        if self._process is None:
            command = [sys.executable, "-m", "experiments.coverage.worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, text=True, cwd=HERE.parents[1], **pipes)  # type: ignore[call-overload]
        process = self._process
        process.stdin.write(name + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
        answer = process.stdout.readline() if ready else ""
        if answer:
            return dict(json.loads(answer))
        why = "the process died (memory?)" if ready else f"more than {TIMEOUT} s"
        self.close()
        return {"model": name, "verdict": "lost", "why": why}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def line(row: dict[str, Any]) -> str:
    """One printed line."""
    name = row["model"].removeprefix("torchvision/")
    name += f" ({row['help']})" if "help" in row else ""
    head = f"{row['verdict']:8s}{name:52s}"
    if "macs" not in row:
        return f"{head} {row.get('why', '')}"
    before, after = row["macs"]
    error = max(row["error"].values())
    text = f"{head} {row['groups']:6d} groups  {row['requested']:.0%} -> {row['achieved']:6.1%}  "
    text += (
        f"{before / 1e6:9.1f} -> {after / 1e6:9.1f} M MACs  {1 - row['params'][1] / row['params'][0]:4.0%} of params  "
    )
    text += f"error {error:.0e} {row['dtype'][5:]}  {row['seconds']:6.2f} s"
    return text + (f"  {row['why']}" if row["why"] else "")


def run(names: list[str], workers: int, done: Path) -> list[dict[str, Any]]:
    """Try all ``names`` in ``workers`` processes; prints as they come. Rows in ``done`` (JSON lines) stay."""
    rows = [json.loads(text) for text in done.read_text().splitlines()] if done.exists() else []
    rows = [row for row in rows if row["model"] in names]
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in sorted(set(names) - {row["model"] for row in rows}, key=names.index):
        waiting.put(name)

    def serve() -> None:
        worker = Worker()
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return worker.close()
            row = worker.ask(name)
            rows.append(row)
            with done.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(line(row), flush=True)

    threads = [threading.Thread(target=serve) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(rows, key=lambda row: names.index(row["model"]))


def goal(rows: list[dict[str, Any]]) -> str:
    """How many networks obey the law, and how many lose at least 40% of what was asked."""
    tried = [row for row in rows if row["verdict"] not in ("unbuilt", "lost")]
    lawful = sum(row["verdict"] in ("ok", "short", "nothing") for row in tried)
    enough = sum(lost(row) >= ENOUGH * RATIO for row in tried)
    alone = sum(row.get("alone", {"lost": lost(row)})["lost"] >= ENOUGH * RATIO for row in tried)
    helped = Counter(row["help"] for row in tried if "help" in row and lost(row) >= ENOUGH * RATIO)
    n = max(1, len(tried))
    return (
        f"{len(rows)} networks, {len(tried)} tried: the law held or nothing went for {lawful}; at least {ENOUGH:.0%} of"
        f" what was asked went, in MACs or in parameters, from {enough} ({enough / n:.1%}): {alone} as they come,"
        f" {helped['fold']} folded, {helped['blocks']} by whole blocks; median"
        f" {statistics.median([r['seconds'] for r in tried if 'seconds' in r] or [0]):.2f} s"
    )


def main() -> None:
    """Try, print, count, write results.json beside this file."""
    parser = argparse.ArgumentParser(prog="python -m experiments.coverage", description=__doc__)
    parser.add_argument("--source", choices=SOURCES, help="only the networks of one library")
    parser.add_argument("--done", type=Path, default=HERE / "rows.jsonl", help="rows so far, to go on after a stop")
    parser.add_argument("--only", default="", help="only the networks whose path contains this, e.g. timm/ or /resnet")
    parser.add_argument("--every", action="store_true", help="every network of timm, not one per family (hours)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    args = parser.parse_args()

    from experiments.coverage.catalog import timm_names, torchvision_names, transformers_names

    names = list(torchvision_names()) if args.source in (None, "torchvision") else []
    names += transformers_names() if args.source in (None, "transformers") else []
    names += timm_names(args.every) if args.source in (None, "timm") else []
    names = [name for name in names if args.only in name]
    began = time.time()
    rows = run(names, args.workers, args.done)
    for source in (*(f"torchvision/{kind}" for kind in KINDS), "transformers", "timm"):
        counts = Counter(row["verdict"] for row in rows if row["model"].startswith(source))
        if counts:
            print(
                f"{source}: {sum(counts.values())} networks: " + ", ".join(f"{n} {v}" for v, n in counts.most_common())
            )
    print(goal(rows))
    print(f"{time.time() - began:.0f} s")
    if not (args.only or args.source) or args.results != HERE / "results.json":
        args.results.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
