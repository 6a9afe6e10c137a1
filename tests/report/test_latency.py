"""The roofline counts what an independent sum counts; timing leaves the networks alone."""

from __future__ import annotations

import torch
from torch import nn

from slim.report import latency
from slim.report.latency import Machine

SLOW_STARTS = Machine(launch=1.0, bandwidth=1e30, macs=1e30)
SLOW_MEMORY = Machine(launch=0.0, bandwidth=1.0, macs=1e30)
SLOW_SUMS = Machine(launch=0.0, bandwidth=1e30, macs=1.0)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def test_the_roofline_counts_work_bytes_and_operators() -> None:
    x = torch.zeros(2, 3, 8, 8)
    model = net().eval()
    macs = 2 * (8 * 36 * 27 + 288 * 4)
    assert latency.roofline(model, x, SLOW_SUMS).compute == macs
    # convolution, norm, ReLU, linear; flatten and the transpose of a weight move nothing
    starts = latency.roofline(model, x, SLOW_STARTS)
    assert starts.operators == 4 and starts.launch == 4.0
    read_and_written = latency.roofline(nn.ReLU(), x, SLOW_MEMORY).bandwidth
    assert read_and_written == 2 * 4 * x.numel()


def test_shares_are_a_whole() -> None:
    line = latency.roofline(net().eval(), torch.zeros(1, 3, 8, 8), Machine(1e-6, 1e9, 1e9))
    assert abs(sum(line.shares.values()) - 1) < 1e-12


def test_comparison_names_the_bound_and_leaves_the_networks_alone() -> None:
    dense, thin = net().train(), net().eval()
    dense[1].eval()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    found = latency.compare({"dense": dense, "thin": thin}, torch.zeros(1, 3, 8, 8), batches=(1, 4), seconds=0.01)
    assert set(found.millis) == {"dense", "thin"} and set(found.statements) == {1, 4}
    assert all(value > 0 for timed in found.millis.values() for value in timed.values())
    assert all(any(f"{kind}-bound" in line for kind in latency.KINDS) for line in found.statements.values())
    assert dense.training and not dense[1].training and not thin.training
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert not torch.is_inference_mode_enabled()


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    latency.alternate(calls, torch.device("cpu"), seconds=0.0, repetitions=3, warmup=0)
    assert "".join(order) == "ababab"


def test_a_batch_repeats_the_first_sample_in_its_layout() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    batch = latency.repeat({"x": x, "flag": True}, 5)
    assert batch["flag"] is True and batch["x"].shape == (5, 3, 4, 4)
    assert batch["x"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(row, x[0]) for row in batch["x"])
