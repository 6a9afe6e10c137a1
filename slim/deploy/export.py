"""One network into files of several formats, each run and compared with the network before it stays."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from slim.deploy import parity
from slim.deploy.capture import capture
from slim.deploy.extras import need, quiet_exporter
from slim.deploy.formats import FORMATS, size
from slim.deploy.onnx_file import write_onnx
from slim.deploy.openvino_file import write_openvino
from slim.deploy.parity import Parity
from slim.deploy.pt2e import finetuned, quantized
from slim.deploy.quantize import METHODS, write_int8
from slim.errors import SlimError, nearest
from slim.files import write_atomic, write_error

Compare = Callable[[nn.Module], Parity]
QAT_ABOVE = 0.005
"""Loss, as :func:`slim.deploy.parity.loss` counts it, from which ``qat=auto`` fine-tunes: half a point."""

ONNX = frozenset(name for name in FORMATS if not name.startswith("pt2"))
"""Formats that are ONNX files, or come from one."""

UNFINISHED = ".export-"
"""How the name of the folder begins in which files are made, beside those that they will replace."""


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        formats: Names of :data:`slim.deploy.formats.FORMATS`.
        opset: Of the ONNX operators; ``None``: the exporter's own.
        calibration: How the range of an activation follows from what was seen: minmax, entropy, percentile.
        reduce_range: Weights of 7 bits; ``None``: where this processor lacks VNNI.
        qat: never, always, or auto: fine-tune for int8 where it loses more than half a point.
        qat_lr: Learning rate of that.
        max_difference: Of a file in float: largest difference of outputs, as a share of the largest output.
        max_loss: Of a quantized file: how much of the metric it may lose.
        better: 1 where more of the metric is better, -1 where less is.
        percent: Whether the metric is a percentage.
    """

    formats: Sequence[str] = ("onnx",)
    opset: int | None = None
    calibration: str = "minmax"
    reduce_range: bool | None = None
    qat: str = "never"
    qat_lr: float = 1e-4
    max_difference: float = 1e-3
    max_loss: float = 0.02
    better: int = 1
    percent: bool = True


@dataclass
class Exported:
    """What an export leaves.

    Attributes:
        files: Format -> file.
        parity: Format -> how far it is from the network.
        notes: A line each.
    """

    files: dict[str, Path] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def described(self) -> dict[str, dict[str, Any]]:
        """Plain data for reports: file, bytes, images, difference (relative), agreement and metric of every format."""
        rows = {}
        for name, path in self.files.items():
            found = self.parity[name]
            rows[name] = {
                "file": path.name, "bytes": size(path), "images": found.images, "difference": found.relative,
                "agreement": found.agreement, "reference": found.reference, "metric": found.metric,
            }  # fmt: skip
        return rows


def export(
    network: nn.Module,
    example: Any,
    folder: Path,
    options: Options,
    *,
    compare: Compare,
    calibration: Callable[[], Iterable[Any]] | None = None,
    training: Callable[[], Iterable[Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write ``network`` in every format of ``options``; all files, or none.

    Args:
        network: In any mode, on any device; not changed.
        example: One input of it, as for :func:`slim.trace`.
        folder: Is made; files of these formats in it are replaced.
        options: What to write, and how near it must be.
        compare: Runs a network that stands for a file beside the original one, and says how far they are apart.
        calibration: Real inputs, batch by batch: quantized formats need them.
        training: Real training inputs for quantization-aware fine-tuning; each batch is a step.
        metadata: Goes into the ONNX file; with ``mean``, ``std``, ``size`` and ``classes``, of a detector with
            ``choice``, ``size`` and ``classes``, a ``predict.py`` is written.

    Raises:
        SlimError: An unknown format, a package that is not installed, no inputs to quantize with, an opset that the
            exporter does not write, or ``folder`` is not writable.
        RunFailed: The network cannot be written in a format, or a file does not compute what it does. No file stays.
    """
    check(options, calibrated=calibration is not None, trainable=training is not None)
    with _workplace(folder) as place:
        work = _Work(capture(network, example), Path(place), options, compare, calibration, training, metadata or {})
        found = Exported(notes=work.notes)
        for name in FORMATS:
            if name in options.formats:
                found.parity[name] = work.checked(name)
        # Only now, when every file has passed: a user finds all of them, or those of before.
        for name in found.parity:
            found.files[name] = folder / FORMATS[name].file
            for path in _parts(Path(place) / FORMATS[name].file):
                shutil.move(path, folder / path.name)
    _write_script(folder, found, metadata or {})
    return found


def _workplace(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder in ``folder``, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED)
    except OSError as error:
        raise write_error(error, folder) from error


def check(options: Options, *, calibrated: bool = True, trainable: bool = True) -> None:
    """Refuse options that cannot work here, before anything is computed.

    Raises:
        SlimError: An unknown format or method, a package that is not installed, or no inputs to quantize with.
    """
    for name in options.formats:
        if name not in FORMATS:
            raise SlimError(f"export.formats must be known. Got {name}. {nearest(name, FORMATS)}")
        for package in FORMATS[name].packages:
            need(package)
        if FORMATS[name].source is not None:
            need("onnxruntime", "onnx", "onnxscript")
        if FORMATS[name].quantized and not calibrated:
            raise SlimError(
                f"int8 needs real images to find ranges with. Got format={name} without. Give a folder of them."
            )
    if not options.formats:
        raise SlimError(f"export.formats must name a format. Got none. Known: {', '.join(FORMATS)}.")
    if options.calibration not in METHODS:
        known = nearest(options.calibration, METHODS)
        raise SlimError(f"export.calibration must be known. Got calibration={options.calibration}. {known}")
    if options.qat != "never" and any(FORMATS[name].quantized for name in options.formats):
        need("torchao.quantization.pt2e.quantize_pt2e")
        if not trainable:
            raise SlimError(f"qat needs training images. Got qat={options.qat} without. Set export.qat=never.")


def check_opset(network: nn.Module, example: Any, options: Options) -> None:
    """Write a network that is yet to be trained in the opset of ``options``: only that shows whether it has them all.

    Raises:
        SlimError: The exporter writes another opset.
        RunFailed: It cannot write the network.
    """
    if options.opset is None or not ONNX & set(options.formats):
        return
    with tempfile.TemporaryDirectory() as place:
        write_onnx(capture(network, example), Path(place) / FORMATS["onnx"].file, opset=options.opset)


def check_effect(options: Options) -> None:
    """Refuse options that no format asked for has a use for.

    Raises:
        SlimError: It names the first one.
    """
    int8 = {name for name, form in FORMATS.items() if form.quantized}
    for option, users in {"opset": ONNX, "calibration": int8 & ONNX, "reduce_range": int8, "qat": int8}.items():
        value = getattr(options, option)
        if value != getattr(Options(), option) and not users & set(options.formats):
            raise SlimError(
                f"export.{option} must be of use to a format. Got export.{option}={value} with "
                f"export.formats={list(options.formats)}. Leave it out, or add {' or '.join(sorted(users))}."
            )


@dataclass
class _Work:
    """Files of one export in a temporary folder, made when they are needed."""

    program: ExportedProgram
    place: Path
    options: Options
    compare: Compare
    calibration: Callable[[], Iterable[Any]] | None
    training: Callable[[], Iterable[Any]] | None
    metadata: Mapping[str, Any]
    tuned: ExportedProgram | None = None
    notes: list[str] = field(default_factory=list)
    tried: bool = False

    def checked(self, name: str) -> Parity:
        """Make the file of a format and compare it with the network.

        Raises:
            RunFailed: It is too far from it.
        """
        options = self.options
        if not FORMATS[name].quantized:
            found = self._compared(name)
            parity.check_exact(found, name, options.max_difference)
            return found
        if options.qat == "always" and not self.tried:
            self._tune()
        found = self._compared(name)
        if options.qat == "auto" and not self.tried and self._loss(found) > QAT_ABOVE:
            found = self._better(name, found)
        parity.check_quantized(found, name, options.max_loss, options.better, options.percent)
        return found

    def _compared(self, name: str) -> Parity:
        return self.compare(FORMATS[name].load(self._file(name), self.program.call_spec.out_spec, None))

    def _loss(self, found: Parity) -> float:
        lost = parity.loss(found, self.options.better, self.options.percent)
        return 1.0 - (found.agreement or 0.0) if lost is None else lost

    def _better(self, name: str, before: Parity) -> Parity:
        """Fine-tune for int8; what comes of it stays where it loses less than ``before``."""
        self._tune()
        after = self._compared(name)
        self.notes.append(
            f"{name} lost {self._loss(before):.4f}; fine-tuned for int8 it loses {self._loss(after):.4f}."
        )
        if self._loss(after) < self._loss(before):
            return after
        self.tuned = None
        self._forget()
        return self._compared(name)

    def _tune(self) -> None:
        assert self.training is not None
        self.tried = True
        options = self.options
        self.tuned = finetuned(self.program, self.training(), lr=options.qat_lr, reduce_range=options.reduce_range)
        self._forget()

    def _forget(self) -> None:
        """Drop quantized files: the network that they come from is another now."""
        for form in FORMATS.values():
            if form.quantized:
                for path in _parts(self.place / form.file):
                    path.unlink()

    def _file(self, name: str) -> Path:
        path = self.place / FORMATS[name].file
        if not path.is_file():
            self._write(name, path)
        return path

    def _write(self, name: str, path: Path) -> None:
        options = self.options
        program = self.tuned if FORMATS[name].quantized and self.tuned is not None else self.program
        if name == "onnx":
            write_onnx(program, path, metadata=self.metadata, opset=options.opset)
        elif name in ("openvino", "openvino_int8"):
            write_openvino(self._file(str(FORMATS[name].source)), path)
        elif name == "pt2":
            save_program(program, path)
        else:
            assert self.calibration is not None
            inputs = self.calibration()
            if name == "pt2_int8":
                save_program(quantized(program, inputs, reduce_range=options.reduce_range), path)
            else:
                source = self._file("onnx") if self.tuned is None else self._tuned_source()
                method = options.calibration
                write_int8(source, path, inputs, method=method, reduce_range=options.reduce_range)

    def _tuned_source(self) -> Path:
        assert self.tuned is not None
        return write_onnx(self.tuned, self.place / "tuned.onnx", metadata=self.metadata, opset=self.options.opset)


def save_program(program: ExportedProgram, path: Path) -> Path:
    """Write a captured network as ``.pt2``, which ``torch.export.load`` reads."""
    file = io.BytesIO()  # torch's own writer ends the process where the disk is full
    with quiet_exporter():
        torch.export.save(program, file)
    return write_atomic(path, file.getvalue())


def _parts(path: Path) -> list[Path]:
    """The files of a format: OpenVINO's has its weights beside it."""
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return [part for part in parts if part.is_file()]


def _write_script(folder: Path, found: Exported, metadata: Mapping[str, Any]) -> None:
    """Put ``predict.py`` beside the ONNX file of a classifier or detector, where everything that it needs is known."""
    best = next((found.files[name] for name in ("int8", "onnx") if name in found.files), None)
    scripts = {"predict.py": {"mean", "std", "size", "classes"}, "predict_boxes.py": {"choice", "size", "classes"}}
    script = next((name for name, needed in scripts.items() if needed <= metadata.keys()), None)
    if best is not None and script is not None:
        text = Path(__file__).with_name(script).read_text(encoding="utf-8")
        write_atomic(folder / "predict.py", text.replace("model.onnx", best.name))
