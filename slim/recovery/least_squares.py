"""New weights for what reads removed channels: those that best say what the layer said before, in least squares.

He et al. 2017 (arXiv:1707.06168), section 3.1, equation 3, and its asymmetric version (section 3.3): layer after layer
the outputs of the dense network are fitted from what arrives in the network that is already cut and fitted above, so
errors do not add up. Departures: a constant is fitted, too, where it can be stored (a bias, or the running mean of the
BatchNorm that reads the layer); only the change of the weights is fitted, with a ridge, so that what the samples do not
determine stays as it was; and of every four samples one is held out: a layer that gains nothing there keeps its
weights. Every other BatchNorm behind a cut gets a constant alone, in its running mean.

The cost is two forwards, up to the layer, for each layer and batch. Memory: the batches, and two Gram matrices of the
inputs of one layer; of an image few positions are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slim.channels import unwrap
from slim.channels.calls import after_call
from slim.criteria.isolated import isolated
from slim.errors import SlimError, expect_whole
from slim.recovery.normal_equations import NormalEquations
from slim.recovery.readers import Reader, readers
from slim.recovery.recalibrate import arguments, in_position

if TYPE_CHECKING:
    from slim.channels import Plan

MOST_INPUTS = 8192
"""Inputs of one block of a layer beyond which its Gram matrix (8 bytes times their square) is not made."""
NEGLIGIBLE = 1e-12
"""Held-out error, relative to the outputs, that is rounding."""

Run = Callable[[nn.Module, Any], None]


@dataclass(frozen=True)
class Refit:
    """What became of one layer: squared error of its outputs, relative to their squares, on held-out samples."""

    module: str
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the layer has new values."""
        return self.after < self.before


def least_squares(
    thin: nn.Module,
    dense: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    n: int = 20,
    *,
    positions: int = 10,
    seed: int = 0,
    inputs: Callable[[Any], tuple[Any, ...]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> list[Refit]:
    """Refit ``thin`` in place, layer after layer, to what ``dense`` computes.

    Refitted are the convolutions and linear layers that lost inputs. Left as they are: transposed convolutions, layers
    whose weight is shared or computed, and those of more than 8,192 inputs. Modes and generators are as before when
    this returns; same batches and seed, same bits.

    Args:
        thin: ``slim.rebuild(dense, plan)``, whose weights, biases and running means are changed.
        dense: the network before the cut; not changed.
        plan: from the one to the other. Where it removes nothing, nothing changes.
        batches: any iterable of ``x``, ``(x, ...)`` or ``{name: tensor}``. They are kept while this runs.
        n: batches used; a shorter iterable gives what it has. 0 leaves everything alone.
        positions: sampled of each image and layer, the same of all images of a batch.
        seed: of the positions, and of the generators while batches are read.
        inputs: turns a batch into positional arguments, instead of the rule above.
        forward: runs a network on a batch as the loader gave it, instead of all of the above.

    Returns:
        One entry per layer that was looked at, in the order of the forward.

    Raises:
        SlimError: ``n`` is negative, or there is no batch.
    """
    expect_whole("n", n, 0, "Set recovery.least_squares_batches.")
    thin, dense = unwrap(thin), unwrap(dense)
    if n == 0 or plan.is_identity:
        return []
    with isolated(thin, seed), isolated(dense, seed), torch.no_grad():
        with in_position(batches):
            kept = list(islice(iter(batches), n))
        if not kept:
            raise SlimError(
                "least squares needs a batch. Got none. Give a loader with data, or set"
                " recovery.least_squares_batches=0."
            )
        thin.eval(), dense.eval()
        run = _runner(inputs, forward)
        return [
            _refit(reader, thin, dense, kept, run, positions, seed + number)
            for number, reader in enumerate(readers(thin, dense, plan, lambda: run(thin, kept[0]), MOST_INPUTS))
        ]


def _runner(inputs: Callable[[Any], tuple[Any, ...]] | None, forward: Callable[[nn.Module, Any], Any] | None) -> Run:
    def run(network: nn.Module, batch: Any) -> None:
        if forward is not None:
            forward(network, batch)
            return
        device = next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))
        args, kwargs = arguments(batch, device, inputs)
        network(*args, **kwargs)

    return run


def _refit(
    reader: Reader, thin: nn.Module, dense: nn.Module, batches: list[Any], run: Run, positions: int, seed: int
) -> Refit:
    """Fit one layer and store what was found, if it helps."""
    equations, energy = None, 0.0
    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        # Seeded alike: a forward that draws random numbers draws the same ones in both networks.
        with isolated(dense, seed + number):
            whole = _calls_on(batch, dense, reader, run)
        places = [reader.places(output, positions, generator) for _, output in whole]
        wanted = [reader.wanted(x, output, where) for (x, output), where in zip(whole, places, strict=True)]
        del whole
        with isolated(thin, seed + number):
            cut = _calls_on(batch, thin, reader, run)
        for (x, output), where, y in zip(cut, places, wanted, strict=False):
            if equations is None:
                device = "cpu" if x.device.type == "mps" else x.device
                equations = NormalEquations(*reader.sizes, constant=reader.constant, device=device)
            lack = y - reader.made(x, output, where)
            equations.add(reader.reads(x, output, where), lack.reshape(*lack.shape[:2], reader.sizes[0], -1))
            energy += float(y.double().square().sum()) / 4
    if equations is None or not equations.before > NEGLIGIBLE * energy:
        return Refit(reader.name, 0.0, 0.0)
    change, constant, after = equations.solve()
    if after < equations.before:
        reader.store(change, constant)
    return Refit(reader.name, equations.before / energy, after / energy)


class _Enough(Exception):
    """Ends a forward behind the last layer that was to be seen."""


def _calls_on(batch: Any, network: nn.Module, reader: Reader, run: Run) -> list[tuple[Tensor, Tensor]]:
    """Input and output of every call of the reader's module; the forward ends behind the last one."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0]
        # What follows may change them in place; the last call's are not followed by anything.
        seen.append((x, output) if len(seen) + 1 == reader.calls else (x.clone(), output.clone()))
        if len(seen) == reader.calls:
            raise _Enough

    handle = after_call(network.get_submodule(reader.name), hook)
    try:
        run(network, batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen
