"""Write a network for a runtime: ONNX, torch.export, int8, OpenVINO; every file is run and compared before it stays.

slim export outputs/vgg_slim/<id> --formats onnx int8
slim export resnet18 --pretrained --formats onnx int8 --images photos -o exported
A run directory is exported with its own data. Other networks are compared on --images, or else on random numbers; int8
needs images of the kind that the network will see.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slim.command import model
from slim.errors import SlimError

COUNT = 1000
"""Images read where ``--count`` is not given."""

OF_A_RUN = ("images", "count", "mean", "std", "input", "arg", "pretrained", "weights", "builder")
"""Options that a run decides itself."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from slim.deploy import FORMATS

    model.arguments(parser)
    parser.add_argument("--formats", nargs="+", default=["onnx"], help=f"of {', '.join(FORMATS)} (default: onnx)")
    parser.add_argument("--images", metavar="FOLDER", help="images like those that the network will see")
    parser.add_argument("--count", type=int, help="images read at most (default: 1000)")
    parser.add_argument("--mean", type=float, nargs="+", help="per channel, of pixels in [0, 1] (default: the model's)")
    parser.add_argument("--std", type=float, nargs="+", help="likewise")
    parser.add_argument("--calibration", help="minmax, entropy, percentile (default: the run's, or minmax)")
    parser.add_argument(
        "--max-loss", type=float, help="share of predictions int8 may change, of a run of the metric (default: the "
        "run's, or 0.02)",
    )  # fmt: skip
    parser.add_argument("--opset", type=int, help="of the ONNX operators (default: the run's, or the newest)")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write (default: export in the run, or here)")


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """Export; returns what was written and how near it is to the network."""
    if args.count is not None and args.count < 1:
        raise SlimError(f"--count must be at least 1. Got --count {args.count}. Leave it out for {COUNT} images.")
    home = Path(args.model)
    if (home / "state.json").is_file():
        folder = Path(args.output or home / "export")
        found = _of_run(home, folder, args)
    else:
        folder = Path(args.output or "export")
        found = _of_model(folder, args)
    return {"folder": str(folder), "files": found.described(), "notes": found.notes}


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name, row in found["files"].items():
        metric = "" if row["metric"] is None else f", metric {row['metric']:.4f} (network {row['reference']:.4f})"
        same = "" if row["agreement"] is None else f", {100 * row['agreement']:.2f} % of the predictions the same"
        lines.append(
            f"{name:<14}{found['folder']}/{row['file']}  {row['bytes']:,} bytes; largest difference "
            f"{row['difference']:.1e} of the largest output over {row['images']} images{same}{metric}"
        )
    return "\n".join([*lines, *found["notes"]])


def _of_run(home: Path, folder: Path, args: argparse.Namespace) -> Any:
    """The network of a finished run, with the run's data and the run's metric."""
    from slim.command.compose import compose, key_of, of_network, quoted, register, with_options
    from slim.runs.exporting import export_network
    from slim.runs.prepare import prepare
    from slim.runs.state import State

    given = [f"--{name}" for name in OF_A_RUN if getattr(args, name) not in (None, [], False)]
    if given:
        raise SlimError(
            f"A run is exported with its own network, images and normalization. Got {', '.join(given)}. "
            f"Leave it out, or export {home / model.ARTIFACT}."
        )
    register("export")
    new = {
        "phases": "[export]", "checkpoint": quoted(home / model.ARTIFACT),
        "export.formats": f"[{','.join(args.formats)}]",
        **{f"export.{name}": value for name, value in _given(args).items()},
    }  # fmt: skip
    state = State.load(home)
    kept = [item for item in of_network(state.overrides) if key_of(item) not in new]
    overrides = [*kept, *(f"{key}={value}" for key, value in new.items())]
    places = with_options(argparse.Namespace(config_dir=None, config_name=None), state.options)
    config, _ = compose(overrides, places)
    return export_network(prepare(config), folder, home / model.ARTIFACT)[0]


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Of the options that a run has, too, those that were given."""
    return {name: value for name in ("calibration", "max_loss", "opset") if (value := getattr(args, name)) is not None}


def _of_model(folder: Path, args: argparse.Namespace) -> Any:
    """Any other network, compared by its outputs."""
    from slim import deploy
    from slim.artifact import classes_in
    from slim.tasks import AllBoxes, for_runtimes

    found = model.find(args.model, args)
    network = for_runtimes(found.network, found.example)
    wanted = deploy.Options(formats=args.formats, **_given(args))
    deploy.check_effect(wanted)
    told: dict[str, Any] = {"model": found.name}
    if args.images:
        inputs, about = _images(found, network, args)
        told |= about
    else:
        inputs = _random(found.example)
    if isinstance(network, AllBoxes):
        names = classes_in(found.metadata)
        told |= network.metadata | ({"classes": names} if names else {})
    deploy.check(wanted, calibrated=bool(args.images))
    exported = deploy.export(
        network,
        found.example,
        folder,
        wanted,
        compare=lambda runner: deploy.compare(network, runner, inputs()),
        calibration=inputs if args.images else None,
        metadata=told,
    )
    if not args.images:
        exported.notes.append("Compared on random numbers: with --images, on what the network will see.")
    return exported


def _random(example: Any) -> Callable[[], Iterable[Any]]:
    def one(batch: int) -> Any:
        def drawn(tensor: Tensor) -> Tensor:
            size = (batch, *tensor.shape[1:])
            return torch.randn(size) if tensor.is_floating_point() else torch.zeros(size, dtype=tensor.dtype)

        return tree_map_only(Tensor, drawn, example)

    return lambda: [one(16), one(1)]


def _images(
    found: model.Model, network: nn.Module, args: argparse.Namespace
) -> tuple[Callable[[], Iterable[Tensor]], dict[str, Any]]:
    """Batches of the images below a folder, and what a program must know to prepare others like them."""
    from torchvision.transforms.v2.functional import resize

    from slim.artifact import classes_in
    from slim.data.decode import read_image, resize_center_crop, unreadable_error
    from slim.tasks import AllBoxes

    example, detects = found.example, isinstance(network, AllBoxes)
    if not isinstance(example, Tensor) or example.dim() != 4 or example.shape[2] != example.shape[3]:
        raise SlimError(f"--images needs a network of square images. Got {found.name}. Leave --images out.")
    channels, size = int(example.shape[1]), int(example.shape[2])
    mean, std = _normalization(found, channels, args, itself=detects)
    every = sorted(path for path in Path(args.images).rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not every:
        raise SlimError(f"--images must hold images. Got {args.images} without any. Check the path.")
    count = args.count or COUNT
    paths = every[:: max(1, len(every) // count)][:count]
    centre, scale = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def read(path: Path) -> Tensor:
        try:
            image = read_image(path, channels)
            return resize(image, [size, size], antialias=True) if detects else resize_center_crop(image, size)
        except SlimError as error:
            raise unreadable_error(path.parent, [(path.name, str(error))]) from error

    def batches() -> Iterable[Tensor]:
        for start in range(0, len(paths), 64):
            pixels = [read(path) for path in paths[start : start + 64]]
            yield (torch.stack(pixels) / 255 - centre) / scale

    names = classes_in(found.metadata) or sorted({path.parent.name for path in every})
    told: dict[str, Any] = {} if detects else {"mean": mean, "std": std, "size": size}
    with torch.no_grad():
        outputs = None if detects else network(example)
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] == len(names):
        told["classes"] = names
    return batches, told


def _normalization(
    found: model.Model, channels: int, args: argparse.Namespace, *, itself: bool
) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of what images are prepared with; none where the network does it ``itself``."""
    from slim.artifact import NORMALIZATION, normalization_in
    from slim.models import preprocessing

    if itself and (args.mean or args.std):
        raise SlimError(f"A detector normalizes by itself. Got --mean {args.mean} --std {args.std}. Leave both out.")
    if itself:
        return [0.0] * channels, [1.0] * channels
    # What the network was trained with last is in its artifact; timm's networks know how others trained them.
    known = {**preprocessing(found.network), **normalization_in(found.metadata)}
    mean, std = (getattr(args, name) or known.get(name) for name in NORMALIZATION)
    if mean is None or std is None or not len(mean) == len(std) == channels:
        raise SlimError(
            f"Images must be prepared as the network was trained on them. Got --mean {mean} --std {std} for {channels} "
            "channels. Give both, a number for each channel."
        )
    return list(mean), list(std)
