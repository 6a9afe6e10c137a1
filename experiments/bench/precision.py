"""Images per second of training, fp32 against bf16 autocast with channels-last memory."""

from __future__ import annotations

from experiments.bench.row import Row
from experiments.bench.steps import BATCH, Step, chosen, images, network
from experiments.bench.turns import take_turns

SMALL_VGG = [64, "M", 128, "M", 256, 256, "M", 256, 256]


def run(quick: bool) -> list[Row]:
    """At least 1.8 times fp32's images/s where the processor (or GPU) is good at bf16; elsewhere for information."""
    machine = chosen()
    x, y = images(16 if quick else BATCH)
    rows = []
    for name, build in {
        "resnet-20": lambda: network("resnet", depth=20),
        "small vgg": lambda: network("vgg", widths=SMALL_VGG),
    }.items():
        slow = Step(build(), device=machine.device.type)
        fast = Step(build(), bf16=True, channels_last=True, device=machine.device.type)
        turns = take_turns(
            {"fp32": lambda step=slow: step(x, y), "bf16": lambda step=fast: step(x, y)}, 3 if quick else 15, warmup=2
        )
        rates = {key: len(x) / turns.median(key) for key in ("fp32", "bf16")}
        aim = (">=", 1.8) if machine.precision == "bf16-mixed" else None
        told = f"bf16 channels_last over fp32, {name} ({rates['fp32']:.0f} to {rates['bf16']:.0f} images/s)"
        rows.append(Row("precision", told, turns.ratio("fp32", "bf16"), "x", aim, rates))
    return rows
