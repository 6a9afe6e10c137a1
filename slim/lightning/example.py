"""Example inputs of a network, recorded from the module's own training or validation step."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.channels import trace
from slim.channels.duplicate import deep_copy
from slim.errors import SlimError
from slim.lightning.effects import without_effects
from slim.lightning.network import Network, find_network
from slim.lightning.random_state import preserved

QUIET = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")


class Captured(BaseException):
    """Raised by a hook to end a step where it calls the network; carries the arguments of the call.

    A BaseException, so that no ``except Exception`` in the step catches it.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("the network was called")
        self.args_of_call, self.kwargs_of_call = args, kwargs


def capture_example(module: pl.LightningModule, data: Any, network: Network = None) -> Any:
    """Example inputs of a network, from one batch through the module's own validation or training step.

    A copy of the module runs in a Trainer of its own, and stops where its network is called. The module and the global
    random generators stay as they are.

    Args:
        module: Any LightningModule.
        data: A LightningDataModule, or a loader of the batches of ``validation_step`` (or ``training_step``).
        network: See :func:`find_network`.

    Returns:
        What :func:`slim.trace` takes: zeros in the shapes of the inputs, with one sample where that can be traced.

    Raises:
        SlimError: No step calls the network.
    """
    find_network(module, network)
    twin: Any = deep_copy(module)
    part = find_network(twin, network)
    handle = part.register_forward_pre_hook(_stop, with_kwargs=True)
    before = getattr(data, "trainer", None)
    call: Captured | None = None
    with preserved(), quiet():
        try:
            _run_one_batch(twin, data)
        except Captured as caught:
            call = caught
    handle.remove()
    if isinstance(data, pl.LightningDataModule):
        data.trainer = before
    if call is not None:
        return usable(part, as_example(part, call.args_of_call, call.kwargs_of_call))
    raise SlimError(
        f"A step must call the network. Got none of {type(module).__name__}'s that does, in one batch. "
        "Set network to the part that the step calls, or give example=."
    )


def _run_one_batch(module: pl.LightningModule, data: Any) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    datamodule = data if isinstance(data, pl.LightningDataModule) else None
    loader = None if datamodule is data else data
    validates = is_overridden("validation_step", module, pl.LightningModule)
    if datamodule is not None:
        validates = validates and is_overridden("val_dataloader", datamodule, pl.LightningDataModule)
    if validates:
        trainer.validate(module, dataloaders=loader, datamodule=datamodule, verbose=False)
    trainer.fit(module, train_dataloaders=loader, datamodule=datamodule)


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise Captured(args, kwargs)


def inputs_of(module: pl.LightningModule, network: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that the module's own step would call ``network`` with, for one batch on its device.

    The step is ended where it calls the network, and what it did to the module before is undone.

    Raises:
        SlimError: No step calls the network.
    """
    handle = network.register_forward_pre_hook(_stop, with_kwargs=True)
    modes = [(part, part.training) for part in module.modules()]
    try:
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            eager(network),
            without_effects(module, network),
        ):
            module.eval()
            for step in ("training_step", "validation_step", "forward"):
                try:
                    call_step(getattr(module, step), step, batch)
                except Captured as call:
                    return call.args_of_call, call.kwargs_of_call
                except Exception:
                    continue
    finally:
        handle.remove()
        for part, training in modes:
            part.training = training
    raise SlimError(
        f"The network's inputs must be known. Got no step of {type(module).__name__} that calls it. "
        "Give example=, or set network to the part that the step calls."
    )


def call_step(step: Any, name: str, batch: Any) -> None:
    """Call a module's ``training_step``, ``validation_step`` or ``forward`` as a Trainer would."""
    if name == "forward":
        batch = batch[0] if isinstance(batch, list | tuple) else batch
        step(batch)
    elif len(inspect.signature(step).parameters) > 1:
        step(batch, 0)
    else:
        step(batch)


def as_example(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Convert a recorded call to example inputs: zeros of the same shapes, in the precision of the network.

    Returns:
        A tensor, a tuple of positional or a dict of keyword arguments.
    """
    example: Any = named_inputs(network, args, kwargs) if kwargs else args[0] if len(args) == 1 else tuple(args)
    floating = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=floating if tensor.is_floating_point() else tensor.dtype)

    return tree_map_only(Tensor, zeros, example)


def named_inputs(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call as keyword arguments.

    Raises:
        SlimError: Some of them have no name.

    >>> named_inputs(nn.Bilinear(2, 3, 1), ("one",), {"input2": "two"})
    {'input1': 'one', 'input2': 'two'}
    """
    signature = inspect.signature(network.forward)
    named = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL) and name in named:
            raise SlimError(
                f"A network of several inputs must have a name for each. Got forward{signature} of a "
                f"{type(network).__name__}. Give its forward named parameters."
            )
    return named


def usable(network: nn.Module, example: Any, **options: Any) -> Any:
    """``example`` with one sample, where all its tensors have as many and the network can be traced so; else as it is.

    Args:
        network: The network, or what can be traced in its place.
        example: From :func:`as_example`.
        options: Of :func:`slim.trace`.
    """
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1 or sizes == {0} or sizes == {1}:
        return example
    single = tree_map_only(Tensor, lambda tensor: tensor[:1].clone(), example)
    try:
        with eager(network):
            trace(network, single, **options)
    except SlimError:
        return example
    return single


@contextmanager
def eager(network: nn.Module) -> Iterator[None]:
    """Inside, modules compiled in place (``module.compile()``) run uncompiled, without autocast and gradients."""
    compiled = [(part, part._compiled_call_impl) for part in network.modules() if part._compiled_call_impl is not None]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for part, _ in compiled:
        part._compiled_call_impl = None
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast(devices[0], enabled=False):
            warnings.simplefilter("ignore")
            if len(devices) > 1:
                with torch.autocast(devices[1], enabled=False):
                    yield
            else:
                yield
    finally:
        for part, call in compiled:
            part._compiled_call_impl = call


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Lightning logs errors only, and warnings are ignored."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def in_precision_of(network: nn.Module, inputs: Any) -> Any:
    """``inputs`` without their history, what floats in the precision of the network's weights."""
    floating = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    def as_weights(tensor: Tensor) -> Tensor:
        return tensor.detach().to(floating) if tensor.is_floating_point() else tensor

    return tree_map_only(Tensor, as_weights, inputs)


def packed(example: Any) -> Any:
    """An example as something small for checkpoints; ``None`` where it is more than tensors and plain data."""
    plain = (Tensor, bool, int, float, str, type(None))
    if example is None or not all(isinstance(leaf, plain) for leaf in tree_leaves(example)):
        return None
    # One element each, repeated by strides of zero: that is what gets written.
    return tree_map_only(Tensor, lambda tensor: tensor.new_zeros(()).expand(tensor.shape), example)


def unpacked(example: Any) -> Any:
    """The inverse of :func:`packed`, for examples of zeros."""
    return tree_map_only(Tensor, lambda tensor: tensor.contiguous(), example)
