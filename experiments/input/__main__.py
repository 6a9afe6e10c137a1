"""Images per second of our training batches against torchvision's transforms in a DataLoader, and the wait for input.

    python -m experiments.input [--dir <folder with train/<class>/*.jpg>] [--repetitions 7] [--device cpu]

Every contender reads the same images with the same augmentation (shift by up to 4 pixels, mirror, normalize) at batch
128, in turns, so that whatever else the machine does hits all of them; the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from slim.data.augment import Normalize
from slim.data.loader import BatchLoader, Preprocessing
from slim.data.memory import MemorySource
from slim.models import resnet
from slim.report.environment import describe

MEAN, STD, BATCH, WORKERS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 128, 2


class Arrays(Dataset[Any]):
    """Images in memory, one at a time through ``transform``: what torchvision's CIFAR10 class does."""

    def __init__(self, images: torch.Tensor, transform: Callable[[Any], Any], pil: bool) -> None:
        self.images, self.transform, self.pil = images, transform, pil
        self.arrays = images.permute(0, 2, 3, 1).numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> Any:
        from PIL import Image

        return self.transform(Image.fromarray(self.arrays[at]) if self.pil else self.images[at]), 0


def contenders(images: torch.Tensor, folder: Path | None, device: str) -> dict[str, Iterable[Any]]:
    old = v1.Compose([v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    new = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )
    shared: dict[str, Any] = {
        "batch_size": BATCH,
        "shuffle": True,
        "drop_last": True,
        "num_workers": WORKERS,
        "persistent_workers": True,
    }
    source = MemorySource(images, torch.zeros(len(images), dtype=torch.int64))
    preprocessing = Preprocessing(MEAN, STD, 32, padding=4, mirror=True, augment=True)
    found: dict[str, Iterable[Any]] = {
        "slim": BatchLoader(
            source, torch.arange(len(images)), preprocessing, batch_size=BATCH, seed=0, train=True, device=device
        ),
        "transforms (PIL), 2 workers": DataLoader(Arrays(images, old, pil=True), **shared),
        "transforms.v2 (tensors), 2 workers": DataLoader(Arrays(images, new, pil=False), **shared),
    }
    if folder is not None:
        from torchvision.datasets import ImageFolder

        from slim.data.listing import class_folders, listing
        from slim.data.stream import StreamSource

        files = listing(folder / "train", class_folders(folder / "train"))
        found["slim, streamed (JPEG), 2 workers"] = BatchLoader(
            StreamSource(files, 32, 3, WORKERS),
            torch.arange(len(files.files)),
            preprocessing,
            batch_size=BATCH,
            seed=0,
            train=True,
            device=device,
        )
        found["ImageFolder + transforms (JPEG), 2 workers"] = DataLoader(ImageFolder(folder / "train", old), **shared)
    return found


def rate(batches: Iterable[Any], seconds: float) -> float:
    """Images per second from a running start: the first batch, which starts workers and crops, does not count."""
    iterator = iter(batches)
    next(iterator)
    start, images = time.perf_counter(), 0
    for x, _ in iterator:
        images += len(x)
        if time.perf_counter() - start > seconds:
            break
    if x.is_cuda:
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def whole_epoch(loader: BatchLoader) -> float:
    """Images per second over one epoch, its order and crops included."""
    start = time.perf_counter()
    for _ in loader:
        pass
    if loader.device.type == "cuda":
        torch.cuda.synchronize()
    return len(loader) * BATCH / (time.perf_counter() - start)


def wait(loader: BatchLoader, half: bool, steps: int) -> tuple[float, float]:
    """Share of a ResNet-20 training step spent in the loader, and the step's images per second."""
    device = loader.device
    network = resnet(20).to(device)
    if half:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True)

    def synchronized() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    shares, rates = [], []
    iterator = iter(loader)
    for step in range(steps + 3):
        begin = synchronized()
        x, y = next(iterator)
        got = synchronized()
        if half:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        end = synchronized()
        # The first steps allocate and choose kernels.
        if step >= 3:
            shares.append((got - begin) / (end - begin))
            rates.append(len(x) / (end - begin))
    return statistics.median(shares), statistics.median(rates)


def stages(images: torch.Tensor, device: str) -> dict[str, float]:
    """Milliseconds of each part of one batch of 128: what there is to gain."""
    from slim.data.augment import crop_flip
    from slim.data.sampling import CropParams, epoch_order, sample_crops

    images = images.to(device)
    at = epoch_order(len(images), 0, 0)[:BATCH].to(device)
    crops = CropParams(*(part[:BATCH].to(device) for part in sample_crops(len(images), 0, 0, padding=4, mirror=True)))
    normalize = Normalize(MEAN, STD, torch.device(device))
    batch = images[at]
    parts: dict[str, Callable[[], Any]] = {
        "gather": lambda: images[at],
        "crop and flip": lambda: crop_flip(batch, crops, 4),
        "normalize": lambda: normalize(batch),
        "order and crops of an epoch": lambda: (
            epoch_order(len(images), 0, 0),
            sample_crops(len(images), 0, 0, padding=4, mirror=True),
        ),
    }
    found = {}
    for name, part in parts.items():
        times = []
        for _ in range(30):
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            part()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = statistics.median(times)
    return found


def decoding(folder: Path) -> dict[str, float]:
    """Seconds to decode all training images, to decode and cache them, and to read the cache."""
    from slim.data.cache import load_or_decode
    from slim.data.decode import decode_all
    from slim.data.listing import class_folders, listing

    found = {}
    root = folder / "train"
    start = time.perf_counter()
    files = listing(root, class_folders(root))
    found["list"] = time.perf_counter() - start
    start, worked = time.perf_counter(), time.process_time()
    decode_all(root, files.files, 32, 3, "images")
    found["decode"] = time.perf_counter() - start
    found["decode, processor time"] = time.process_time() - worked
    load_or_decode(files, 32, 3, "images")
    start = time.perf_counter()
    load_or_decode(files, 32, 3, "images")
    found["read the cache"] = time.perf_counter() - start
    return {"images": len(files.files), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="folder of JPEGs in ImageFolder layout; adds decoding")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=30, help="training steps for the wait")
    parser.add_argument("--threads", type=int, default=None, help="threads of the main process; default PyTorch's")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.json")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    runners = contenders(images, asked.dir, asked.device)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for repetition in range(asked.repetitions):
        for name, batches in runners.items():
            rates[name].append(rate(batches, asked.seconds))
        print(f"repetition {repetition + 1}/{asked.repetitions}", file=sys.stderr)
    ours = runners["slim"]
    assert isinstance(ours, BatchLoader)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    # Ratios within one repetition: both sides saw the same neighbours on the machine.
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["slim"], values, strict=True))
        for name, values in rates.items()
    }
    result = {
        "command": "python -m experiments.input "
        + " ".join("<dir>" if str(asked.dir) == a else a for a in sys.argv[1:]),
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "device": asked.device,
        "images_per_second": medians,
        "ours_over": ratios,
        "whole_epoch_images_per_second": statistics.median(whole_epoch(ours) for _ in range(5)),
        "milliseconds": stages(images, asked.device),
        "wait": {
            name: dict(zip(("share_of_step", "images_per_second"), wait(ours, half, asked.steps), strict=True))
            for name, half in (("fp32", False), ("bf16 channels_last", True))
        },
        "decoding_seconds": decoding(asked.dir) if asked.dir else None,
        "all_rates": rates,
    }
    asked.output.write_text(json.dumps(result, indent=2) + "\n")
    print("| reader | images/s | ours / it |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:,.0f} | {ratios[name]:.1f} |")
    print(f"whole epoch: {result['whole_epoch_images_per_second']:,.0f} images/s")
    for key in ("milliseconds", "wait", "decoding_seconds"):
        print(key, json.dumps(result[key]))


if __name__ == "__main__":
    main()
