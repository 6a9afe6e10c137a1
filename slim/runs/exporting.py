"""The export phase: the network as files that run without this package, and the ladder of the report."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim import deploy
from slim.channels import plan_of
from slim.data.segmentation import MaskData
from slim.lightning.example import eager, inputs_of, named_inputs
from slim.runs import weights
from slim.runs.components import Components
from slim.runs.evaluation import evaluate, lookup, metrics, validation_batches
from slim.runs.loaders import seed_all
from slim.runs.pruning import ranking_batches
from slim.runs.state import State
from slim.runs.weights import NETWORK
from slim.tasks import AllBoxes, for_runtimes

FOLDER = "export"


def export_network(parts: Components, folder: Path, before: Path | None) -> tuple[deploy.Exported, float]:
    """Write the network in ``before`` (``None``: the untrained one) into ``folder``, as the configuration says.

    Returns:
        What was written, and the metric of the network on the held-out images that files were compared on.

    Raises:
        SlimError: A format is unknown, or a package for it is missing.
        RunFailed: A file is too far from the network; none stays.
    """
    module = parts.module() if before is None else weights.load(parts, before)
    comparison = _Comparison(parts, module)
    found = _export(parts, module, folder, options(parts), comparison)
    return found, comparison.reference


def check(parts: Components, module: pl.LightningModule) -> None:
    """Refuse before the training what cannot be exported after it.

    Raises:
        SlimError: A detector that cannot be written; a format is unknown, or a package for it is missing; an option has
            no effect; the exporter does not write the network in the opset.
    """
    network = for_runtimes(parts.network(module), parts.example)
    deploy.check(options(parts))
    deploy.check_opset(network, parts.example, options(parts))
    if parts.config.phases != ["export"]:  # what `slim export` does not take comes from the run, of use or not
        deploy.check_effect(options(parts))


def options(parts: Components) -> deploy.Options:
    """The export section of the configuration."""
    config, metric = parts.config.export, parts.config.metric
    names = ("formats", "opset", "calibration", "reduce_range", "qat", "qat_lr", "max_difference", "max_loss")
    taken = {name: getattr(config, name) for name in names}
    return deploy.Options(**taken, better=1 if metric.mode == "max" else -1, percent=metric.percent)


def _export(
    parts: Components, module: pl.LightningModule, folder: Path, wanted: deploy.Options, comparison: _Comparison
) -> deploy.Exported:
    config = parts.config.export
    return deploy.export(
        comparison.written,
        parts.example,
        folder,
        wanted,
        compare=comparison,
        calibration=lambda: _inputs(parts, module, _calibration(parts), config.calibration_images),
        training=lambda: _inputs(parts, module, _training(parts, config.qat_steps), None),
        metadata=_metadata(parts, module, comparison.written),
    )


class _Comparison:
    """Compares a file with ``written``, what of a module's network becomes one: outputs, and the module's metric."""

    def __init__(self, parts: Components, module: pl.LightningModule) -> None:
        self.parts, self.module = parts, module
        self.network = parts.network(module.cpu())
        self.written = for_runtimes(self.network, parts.example)
        size = _samples(next(iter(validation_batches(parts.data))))
        self.batches = max(1, parts.config.export.images // max(1, size))
        self.reference = self._metric()

    def __call__(self, runner: nn.Module) -> deploy.Parity:
        """Both networks on held-out images."""
        inputs = _inputs(self.parts, self.module, validation_batches(self.parts.data), self.parts.config.export.images)
        found = deploy.compare(self.written.eval(), runner, inputs)
        found.reference = self.reference
        with instead(self.network, runner, self.parts.example):
            found.metric = self._metric()
        return found

    def _metric(self) -> float:
        return lookup(self.parts.config.metric, metrics(self.parts, self.module, "val", limit=self.batches), "val")


@contextmanager
def instead(network: nn.Module, runner: nn.Module, example: Any) -> Iterator[None]:
    """Whoever calls ``network`` inside gets the answers of ``runner``, which takes inputs like ``example``."""
    written = for_runtimes(network, example)

    @wraps(network.forward)
    def answer(*args: Any, **kwargs: Any) -> Any:
        given = _like(example, network, args, kwargs)
        found = deploy.call(runner, given)
        if not isinstance(written, AllBoxes):
            return found
        scores, boxes = found
        return written.detections(scores, boxes, given.shape[-2:])

    with eager(network):
        network.forward = answer
        try:
            yield
        finally:
            del network.forward


# Images


def _inputs(parts: Components, module: pl.LightningModule, batches: Iterable[Any], images: int | None) -> Iterator[Any]:
    """What the module's step gives its network for every batch, on the CPU; of at most so many images."""
    network = parts.network(module.cpu())
    left = images
    for batch in batches:
        if left is not None and left <= 0:
            return
        args, kwargs = inputs_of(module, network, tree_map_only(Tensor, lambda tensor: tensor.cpu(), batch))
        given = _like(parts.example, network, args, kwargs)
        if left is not None:
            given = _first(given, left)
            left -= _samples(given)
        yield given


def _like(example: Any, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call in the form and order of ``example``, which is what files take, however a step calls."""
    if isinstance(example, dict):
        return named_inputs(network, args, kwargs)
    args = inspect.signature(network.forward).bind(*args, **kwargs).args if kwargs else args
    if isinstance(example, Tensor) and isinstance(args[0], list):  # images of a detector; its targets are no input
        return torch.stack(args[0])
    return args if len(args) != 1 else args[0]


def _first(given: Any, count: int) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor[:count], given)


def _calibration(parts: Components) -> Iterable[Any]:
    """Training images without augmentation, where the data module knows how."""
    images = parts.config.export.calibration_images
    first = next(iter(ranking_batches(parts, 1)))
    return ranking_batches(parts, -(-images // max(1, _samples(first))))


def _training(parts: Components, count: int) -> Iterable[Any]:
    """``count`` training batches as trained on, over as many epochs as it takes."""
    if hasattr(parts.data, "calibration_batches"):
        found: Iterable[Any] = parts.data.calibration_batches(count)
        return found
    with isolate_rng():
        seed_all(parts.config.seed)
        return list(islice(chain.from_iterable(parts.data.train_dataloader() for _ in repeat(None)), count))


def _samples(batch: Any) -> int:
    sizes = [len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return sizes[0] if sizes else 1


def _metadata(parts: Components, module: pl.LightningModule, network: nn.Module) -> dict[str, Any]:
    """What travels in the ONNX file: how images are prepared, what the classes are called, where it comes from.

    ``network`` is what is written: of a detector the file says how its boxes are chosen, too.
    """
    data, plan = parts.data, plan_of(parts.network(module))
    told: dict[str, Any] = {"experiment": parts.config.name, "plan": None if plan is None else plan.hash}
    if isinstance(network, AllBoxes):
        told |= network.metadata
    elif all(hasattr(data, attribute) for attribute in ("mean", "std", "image_size")):
        told |= {"mean": list(data.mean), "std": list(data.std), "size": int(data.image_size)}
    if hasattr(data, "class_names") and "size" in told and not isinstance(data, MaskData):  # whose pixels have classes
        told["classes"] = list(data.class_names)
    return told


# The ladder


def ladder(parts: Components, directory: Path, state: State) -> list[dict[str, Any]]:
    """Rows of the report: the network before the cut and the thin one, in PyTorch, in ONNX Runtime and in int8.

    The metric is that of the test data; latencies are measured in turns, on the CPU.

    Returns:
        ``{name, metric, bytes, latency_ms_b1, latency_ms_b64}`` each; empty where no ONNX file was exported.
    """
    wanted = [name for name in ("onnx", "int8") if name in parts.config.export.formats]
    if not wanted:
        return []
    dense, thin = _before_cut(parts, directory, state), _last(directory, state)
    module = parts.module() if dense is None else weights.load(parts, dense)
    network = for_runtimes(parts.network(module).cpu(), parts.example).eval()
    outputs = deploy.capture(network, parts.example).call_spec.out_spec
    first = "dense" if plan_of(parts.network(module)) is None else "thin"
    rungs: dict[str, nn.Module] = {f"{first} fp32 eager": network}
    size = {f"{first} fp32 eager": 0 if dense is None else dense.stat().st_size}
    with tempfile.TemporaryDirectory() as place:
        folders = {"thin": directory / FOLDER}
        if dense != thin:
            # However much the dense network loses in int8: that is a row, not a reason to stop. It is not fine-tuned.
            free = replace(
                options(parts), formats=wanted, qat="never", max_difference=float("inf"), max_loss=float("inf")
            )
            _export(parts, module, Path(place), free, _Comparison(parts, module))
            folders = {first: Path(place), **folders}
        else:
            folders = {first: directory / FOLDER}
        for kind, folder in folders.items():
            for form in wanted:
                path = folder / deploy.FORMATS[form].file
                name = f"{kind} {'int8' if form == 'int8' else 'fp32'}"
                rungs[name], size[name] = deploy.FORMATS[form].load(path, outputs, None), deploy.size(path)
        times = deploy.latencies(rungs, parts.example, seconds=parts.config.latency_seconds)
        rows = []
        for name, runner in rungs.items():
            value = tested(parts, module, None if runner is network else runner)
            millis = {f"latency_ms_b{batch}": value for batch, value in times[name].items()}
            rows.append({"name": name, "metric": value, "bytes": size[name], **millis})
    return rows


def tested(parts: Components, module: pl.LightningModule, runner: nn.Module | None) -> float:
    """The metric on the test data of a module, or of a file in place of its network."""
    with nullcontext() if runner is None else instead(parts.network(module), runner, parts.example):
        return evaluate(parts, module, "test")


def _before_cut(parts: Components, directory: Path, state: State) -> Path | None:
    """The dense network: the baseline's, or what the first cut began from; without a cut there is one network."""
    if not any(name.partition("-")[0] == "prune" for name in state.phases):
        return _last(directory, state)
    kept = (phase for phase in ("baseline", parts.config.first, "start") if phase in state.phases)
    return next((directory / phase / NETWORK for phase in kept if phase is not None), None)


def _last(directory: Path, state: State) -> Path | None:
    """What was exported."""
    kept = [name for name in state.phases if name != "export"]
    return directory / kept[-1] / NETWORK if kept else None


def figures(found: deploy.Exported, reference: float, seconds: float) -> Mapping[str, Any]:
    """Of the finished phase, for state.json."""
    return {"val": reference, "seconds": seconds, "files": found.described(), "notes": list(found.notes)}
