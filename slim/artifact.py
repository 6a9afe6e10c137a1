"""One file for a thin network: its weights, and the plan that thins a dense network to their shapes.

The file is safetensors (it cannot hold code) with a JSON header: the plan, a checksum over all bytes of the weights,
how the dense network is built (:mod:`slim.recipe`), and the caller's metadata. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from slim import recipe
from slim.channels import Plan, plan_of, rebuild, unwrap
from slim.channels.duplicate import deep_copy
from slim.errors import SlimError, expect, shown
from slim.files import write_atomic

FORMAT = "slim-artifact-1"
NORMALIZATION = ("mean", "std")
"""Of the images, per channel: what a run adds to its artifact's metadata."""
MAX_HEADER = 16 * 2**20  # bytes; ResNet-152's plan takes well under one MB


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of an artifact, read without its weights."""

    plan: Plan | None
    metadata: Mapping[str, str]
    checksum: str
    aliases: Mapping[str, str]
    builder: Mapping[str, Any] | None = None


def save(
    path: str | Path,
    model: nn.Module,
    plan: Plan | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    builder: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network and the plan that made it, atomically.

    Args:
        path: Where to write, usually ``*.safetensors``.
        model: The thin network.
        plan: From the dense network to ``model``; by default, and where it is the last of several cuts alone, the plan
            attached to ``model``, which is of all of them.
        metadata: Text stored beside the weights (names of classes, accuracy, ...).
        builder: How the dense network is built, so that :func:`load` needs no network:
            ``{"_target_": "slim.models.vgg", "num_classes": 10}``.

    Raises:
        SlimError: a weight is NaN or infinite, a state entry is no tensor that a file can hold, the metadata are no
            text, ``model`` is not what the plan makes, or the place is not writable.
    """
    model = unwrap(model)
    attached = plan_of(model)
    plan = attached if plan is None else plan
    if plan is not None:
        _check_thin(path, model, plan)
        plan = attached if attached is not None and _begins_thin(plan, attached) else plan
    return write(path, model, plan, metadata=metadata, builder=builder)


def _begins_thin(plan: Plan, attached: Plan) -> bool:
    """Whether ``plan`` begins at a network that an earlier cut made thin, as ``attached``, of all cuts, knows."""
    sizes = {axis: keep.size for axis, keep in plan.axes.items()}
    return any(sizes.get(axis) != keep.size for axis, keep in attached.axes.items())


def write(
    path: str | Path,
    model: nn.Module,
    plan: Plan | None,
    *,
    metadata: Mapping[str, str] | None = None,
    builder: Mapping[str, Any] | None = None,
) -> Path:
    """:func:`save` whatever the plan: it may be that of a part of ``model``, which has other weights beside it."""
    from safetensors.torch import save as to_bytes

    _check_metadata(metadata)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in unwrap(model).state_dict().items():
        _check_storable(name, value)
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        _check_finite(name, value, path)
        tensors[name] = value.detach().cpu().contiguous().clone()
    header = {
        "format": FORMAT,
        "checksum": _checksum(tensors),
        "plan": plan.to_json() if plan is not None else "",
        "aliases": aliases,
        "metadata": dict(metadata or {}),
    }
    if builder is not None:
        header["builder"] = recipe.describe(builder, str(path))
    # One key: safetensors orders several by hash, and two saves of a network must give the same bytes.
    return write_atomic(path, to_bytes(tensors, {"slim": json.dumps(header, sort_keys=True)}))


def normalization_in(metadata: Mapping[str, str]) -> dict[str, list[float]]:
    """Mean and deviation per channel, as the artifact of a run says them; empty where it does not."""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return {name: [float(value) for value in json.loads(metadata[name])] for name in NORMALIZATION}
    return {}


def classes_in(metadata: Mapping[str, str]) -> list[str]:
    """Names of the classes, as the artifact of a run says them; empty where it does not."""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return [str(name) for name in json.loads(metadata["classes"])]
    return []


def is_artifact(path: Path) -> bool:
    """Whether a file that exists is of :func:`save`, or claims to be; else it may be anybody's safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return "slim" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return True  # and is told what is wrong with it when it is read


def read_header(path: str | Path) -> Header:
    """Read the plan and the metadata of an artifact.

    Raises:
        SlimError: the file is missing, truncated, not written by slim, or its header is larger than 16 MB.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= MAX_HEADER:
                raise _invalid(path, f"a header of {length} bytes")
            text = file.read(length)
    except OSError as error:
        raise SlimError(
            f"An artifact must be readable. Got {path} ({error.strerror}). Give the path of a model.safetensors."
        ) from None
    try:
        if len(text) != length:
            raise ValueError("it is truncated")
        meta = json.loads(json.loads(text).get("__metadata__", {}).get("slim", "{}"))
        if meta.get("format") != FORMAT:
            raise ValueError("it was not written by slim.save")
        aliases, metadata = meta["aliases"], meta["metadata"]
        for texts in (aliases, metadata):
            if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
                raise ValueError("its header is malformed")
        plan_text, checksum, builder = str(meta["plan"]), str(meta["checksum"]), meta.get("builder")
        if builder is not None and not isinstance(builder, dict):
            raise ValueError("its header is malformed")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _invalid(path, str(error)) from None
    return Header(Plan.from_json(plan_text) if plan_text else None, metadata, checksum, aliases, builder)


def read(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and all weights of an artifact, checked, on the CPU.

    Raises:
        SlimError: the file is truncated, corrupted or foreign, or holds NaN.
    """
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _invalid(Path(path), str(error)) from None
    if _checksum(tensors) != header.checksum:
        raise _invalid(Path(path), "its weights do not match their checksum")
    for name, tensor in tensors.items():
        _check_finite(name, tensor, path)
    for name, source in header.aliases.items():
        if source not in tensors:
            raise _invalid(Path(path), f"{name} is said to share {source}")
        tensors[name] = tensors[source]
    return header, tensors


def load(path: str | Path, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """The network of an artifact: a copy of the dense ``model``, thinned by the plan, with the artifact's weights.

    Args:
        path: Written by :func:`save`.
        model: A freshly built dense network of the architecture the artifact was made from; not changed. ``None``: it
            is built as the artifact says.
        trust: Also let the artifact name a builder that is not in :data:`slim.recipe.TRUSTED`: that runs what it names.

    Raises:
        SlimError: the file is truncated, corrupted, not written by slim, holds NaN, is of another architecture, or does
            not say (or must not say) how its dense network is built.
    """
    header, tensors = read(path)
    model = dense(path, header, trust=trust) if model is None else model
    thin = rebuild(model, header.plan) if header.plan is not None else deep_copy(unwrap(model))
    own = thin.state_dict()
    _check_shapes(path, {k: tuple(v.shape) for k, v in tensors.items()}, {k: tuple(v.shape) for k, v in own.items()})
    own.update(tensors)  # it knows the versions of its layers, which a file does not hold
    thin.load_state_dict(own)
    return thin


def dense(path: str | Path, header: Header, *, trust: bool = False) -> nn.Module:
    """The untrained dense network that an artifact was made from, built as its header says.

    Raises:
        SlimError: It does not say, or names a builder that is not trusted.
    """
    if header.builder is None:
        raise SlimError(
            f"An artifact without a builder needs its dense network. Got none for {path}. "
            "Give it to slim.load (--builder package.module:function), or save with builder=."
        )
    return recipe.build(header.builder, trust=trust, where=str(path))


def _check_shapes(path: str | Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    for name in dict.fromkeys((*expected, *found)):
        if found.get(name) != expected.get(name):
            holds = "nothing" if name not in found else f"shape {found[name]}"
            expects = "nothing" if name not in expected else f"shape {expected[name]}"
            raise SlimError(
                f"An artifact must match its network. Got {holds} for {name!r}, expected {expects} ({path}). "
                "Build the dense network it was made from."
            )


def _check_thin(path: str | Path, model: nn.Module, plan: Plan) -> None:
    """Raise where the weights are not as wide as the plan leaves them."""
    expect("plan", plan, Plan, "Use slim.select, or leave it out.")
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for (name, dim), keep in plan.axes.items():
        if dim == 1 and name in plan.grouped:  # stored per group; axis 0 tells as much
            continue
        width = tensors[name].shape[dim] if name in tensors and dim < tensors[name].ndim else 0
        if width != len(keep.kept):
            raise SlimError(
                f"A plan must be the one that made the model. Got {name} of width {width} along axis {dim} where it "
                f"keeps {len(keep.kept)} ({path}). Save slim.rebuild(model, plan), or leave the plan out."
            )


def _check_metadata(metadata: Any) -> None:
    """Raise where metadata are not what a header is read back with."""
    expect("metadata", {} if metadata is None else metadata, Mapping, "Give texts by name.")
    for name, text in dict(metadata or {}).items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise SlimError(f"metadata must be texts by name. Got {shown(str(name), text)}. Give str(value).")


def _check_storable(name: str, value: Any) -> None:
    """Raise where a file cannot hold an entry of a state dict."""
    if not isinstance(value, Tensor):
        raise SlimError(f"An artifact holds tensors only. Got {name}={type(value).__name__}. Drop its extra state.")
    if nn.parameter.is_lazy(value) or is_traceable_wrapper_subclass(value):
        raise SlimError(
            f"An artifact holds plain tensors. Got {name} ({type(value).__name__}). Save the network before it is "
            "quantized or sharded, and where a lazy module makes its weights, after it has run."
        )
    plain = value.layout is torch.strided and not value.is_meta and not value.is_quantized
    if not plain or value.dtype is torch.complex128:
        raise SlimError(
            f"An artifact holds plain tensors. Got {name} ({value.dtype}, {value.layout}, on {value.device}). Give it "
            "values of another dtype, or register it with persistent=False."
        )


def _check_finite(name: str, tensor: Tensor, path: str | Path) -> None:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite
    finite = torch.isfinite(values)
    # Nothing but zeros and infinities are no weights but a mask, as attention adds it.
    if not bool(finite.all()) and bool(values.isnan().any() or values[finite].any()):
        raise SlimError(
            f"Weights must be finite. Got NaN or infinity in {name} ({path}). Use the last good checkpoint."
        )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # Bytes through a view: numpy knows no bfloat16.
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _invalid(path: Path, what: str) -> SlimError:
    return SlimError(f"An artifact must be whole and written by slim.save. Got {what} ({path}). Copy or save it again.")
