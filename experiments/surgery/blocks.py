"""Milliseconds of a forward at batch 1, before a cut, without whole blocks, and without as many channels."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import slim
from slim.channels import count_macs


def milliseconds(networks: list[nn.Module], x: Tensor, repeats: int) -> list[float]:
    """The median of ``repeats`` forwards of every network, which take turns."""
    times: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for turn in range(repeats + 3):
            for network, mine in zip(networks, times, strict=True):
                start = time.perf_counter()
                network(x)
                if turn >= 3:
                    mine.append(1000 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def main() -> None:
    """Measure and print one network."""
    from torchvision import models

    parser = argparse.ArgumentParser(prog="python -m experiments.surgery.blocks", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=32, help="height and width of the image")
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    dense = models.get_model(args.model).eval()
    x = torch.randn(1, 3, args.size, args.size)
    graph = slim.trace(dense, x)
    scores = slim.score(graph, criterion="l1")
    blocks = slim.select_groups(graph, scores, ratio=0.5, granularity="layer")
    kept = blocks.achieved["macs"]
    channels = slim.select_groups(graph, scores, macs=kept)
    rows = {"dense": dense}
    rows["half of the blocks"] = slim.rebuild(dense, graph.plan(blocks.removed))
    rows["as few MACs by channels"] = slim.rebuild(dense, graph.plan(channels.removed))
    depths = (graph.depth(), graph.depth(blocks.removed), graph.depth(channels.removed))
    for name, network, took, depth in zip(
        rows, rows.values(), milliseconds(list(rows.values()), x, args.repeats), depths, strict=True
    ):
        print(f"{name:26s} {depth:4d} layers {count_macs(network, x) / 1e6:9.1f} M MACs {took:8.2f} ms")


if __name__ == "__main__":
    main()
