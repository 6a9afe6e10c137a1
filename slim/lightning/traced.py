"""State that callbacks of one network share: example inputs, channel graph, and the dense network it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from slim.channels import ChannelGraph, plan_of, rebuild, trace
from slim.channels.branches import Pass, Zero
from slim.channels.duplicate import deep_copy
from slim.channels.plan import Plan
from slim.channels.surgery import assign
from slim.errors import SlimError
from slim.lightning.example import as_example, eager, inputs_of, usable
from slim.lightning.network import Network, find_network, path_of, same_module
from slim.lightning.random_state import preserved

DENSE = "_slim_dense"
"""Attribute of a module with thin networks: their dense structures by path, on meta."""


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Callbacks of a Trainer, in their order."""
    found: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def suffix_of(trainer: pl.Trainer, callback: Any) -> str:
    """The end of a callback's tags in the loggers: ``/<network>`` where others of its kind serve other networks."""
    module = trainer.lightning_module
    alike: list[Any] = [each for each in callbacks_of(trainer) if type(each) is type(callback)]
    networks = {id(found): found for found in (find_network(module, each._network) for each in alike)}
    return f"/{path_of(module, find_network(module, callback._network))}" if len(networks) > 1 else ""


def log_points(trainer: pl.Trainer, points: Mapping[str, float], suffix: str) -> None:
    """Give ``points`` to all loggers, at the step of now, under their tags with ``suffix``; see :func:`suffix_of`."""
    named = {f"{tag}{suffix}": float(value) for tag, value in points.items()}
    for logger in trainer.loggers:
        logger.log_metrics(named, step=trainer.global_step)


class TracedNetwork:
    """One network, shared by the callbacks that work on it.

    Attributes:
        network: The network itself, without wrappers; surgery keeps its identity.
        example: Inputs to trace it with; ``None`` until they are given or captured.
        options: Of :func:`slim.trace`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.example: Any = None
        self.options: dict[str, Any] = {}
        self._graph: ChannelGraph | None = None
        self._dense: nn.Module | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        network: Network = None,
        *,
        callbacks: Iterable[Any] = (),
        example: Any = None,
        trace: Mapping[str, Any] | None = None,
    ) -> TracedNetwork:
        """The instance that ``callbacks`` share for a network; ``example`` and ``trace`` given here hold for all.

        Args:
            module: The LightningModule.
            network: See :func:`find_network`.
            callbacks: Of the Trainer; each may have its own as an attribute ``traced``.
            example: Inputs to trace with.
            trace: Options of :func:`slim.trace`.

        Raises:
            SlimError: See :func:`find_network`; or two callbacks want the network traced differently.
        """
        found = find_network(module, network)
        path = path_of(module, found)
        known = [getattr(callback, "traced", None) for callback in callbacks]
        this = next((each for each in known if isinstance(each, cls) and same_module(each.network, found)), None)
        if this is None:
            this = cls(found)
            this._dense = _dense_of(found, vars(module).get(DENSE, {}).get(path))
        if example is not None and this.example is None:
            this.example = example
        if trace is not None and dict(trace) != this.options:
            if this.options:
                raise SlimError(
                    f"A network is traced in one way. Got trace={dict(trace)} and {this.options}. "
                    "Give all callbacks of a network the same trace options."
                )
            this.options, this._graph = dict(trace), None
        return this

    def belongs_to(self, module: nn.Module) -> bool:
        """Whether the network is a part of ``module``."""
        return any(same_module(part, self.network) for part in module.modules())

    @property
    def ready(self) -> bool:
        """Whether there is an example to trace with."""
        return self.example is not None or self._graph is not None

    @property
    def graph(self) -> ChannelGraph:
        """Of the network as it is now; traced when somebody asks."""
        if self._graph is None:
            if self.example is None:
                raise SlimError(
                    "A network must be called before it can be traced. Got no call and no example. Give example=."
                )
            with eager(self.network):
                self._graph = trace(self.network, self.example, **self.options)
        return self._graph

    @graph.setter
    def graph(self, graph: ChannelGraph | None) -> None:
        self._graph = graph

    def learn_example(self, module: pl.LightningModule, batch: Any) -> None:
        """Take what the module's step gives the network for ``batch`` as the example, if there is none."""
        if not self.ready:
            with preserved():
                args, kwargs = inputs_of(module, self.network, batch)
            self.example = usable(self.network, as_example(self.network, args, kwargs), **self.options)

    def remember_dense(self, dense: nn.Module | None = None) -> None:
        """Keep the structure of the dense network, on meta: of this one before its first cut, or of ``dense``."""
        if dense is not None:
            self._dense = on_meta(dense)
        elif self._dense is None and plan_of(self.network) is None:
            self._dense = on_meta(self.network)

    def dense_graph(self, *, real: bool = False) -> ChannelGraph:
        """Graph of the network before any cut.

        Args:
            real: With weights on the network's device (zeros), for measuring time.

        Raises:
            SlimError: The network was thin when the callbacks met it first.
        """
        if plan_of(self.network) is None:
            return self.graph
        if self._dense is None:
            raise SlimError(
                "A further cut needs the dense network. Got a network that was thin from the start. "
                "Build the dense one, and load the thin one from its checkpoint (ckpt_path, or slim.lightning.load)."
            )
        dense = self._dense
        kinds = {parameter.dtype for parameter in self.network.parameters() if parameter.is_floating_point()}
        if len(kinds) == 1:
            dense.to(kinds.pop())  # a Trainer of another precision converts the network after it is loaded
        if real:
            device = next(self.network.parameters()).device
            dense = on_meta(dense).to_empty(device=device)
            for tensor in (*dense.parameters(), *dense.buffers()):
                tensor.detach().zero_()
        with eager(dense):
            return trace(dense, self.example, **self.options)

    def dense_of_thin(self) -> ChannelGraph | None:
        """Graph of the dense network of one that is thin already; ``None`` where it is not, or it is not known."""
        return None if self._dense is None or plan_of(self.network) is None else self.dense_graph()

    def keep_dense(self, module: nn.Module, copies: Iterable[nn.Module] = ()) -> None:
        """Leave the dense structure with the module, for callbacks that meet it later, and for copies."""
        if self._dense is not None:
            alike = [self.network, *copies]
            paths = [name for name, part in module.named_modules() if any(same_module(part, each) for each in alike)]
            vars(module).setdefault(DENSE, {}).update(dict.fromkeys(paths, self._dense))

    def twin(self, network: nn.Module) -> TracedNetwork:
        """A copy of the network, of which the same dense structure is known."""
        twin = TracedNetwork(network)
        twin._dense = self._dense
        return twin

    def become(self, plan: Plan | None) -> None:
        """Give the network the structure of ``plan``, from the dense one (``None``); its weights are then to be loaded.

        Raises:
            SlimError: It is thinner already, in another way, and the dense one is not known.
        """
        now = plan_of(self.network)
        if now == plan or (plan is not None and plan.is_identity and now is None):
            return
        if now is not None:
            if self._dense is None:
                raise SlimError(
                    "A checkpoint's plan is applied to the dense network. Got a network that another plan made. "
                    "Build the module anew before loading."
                )
            restore(self.network, self._dense)
        self.remember_dense()
        if plan is not None:
            rebuild(self.network, plan, in_place=True)
        self._graph = None


def _dense_of(network: nn.Module, dense: nn.Module | None) -> nn.Module | None:
    """``dense``, unless ``network`` is another one by now: not what its plan makes of ``dense``."""
    plan = plan_of(network)
    if dense is None or plan is None:
        return None
    wide = dict(dense.named_parameters())
    for name, parameter in network.named_parameters():
        if name not in plan.grouped and name in wide:
            keeps = [plan.axes.get((name, axis)) for axis in range(parameter.dim())]
            made = [
                size if keep is None else len(keep.kept) for size, keep in zip(wide[name].shape, keeps, strict=False)
            ]
            if made != list(parameter.shape):
                return None
    return dense


def on_meta(network: nn.Module) -> nn.Module:
    """A copy whose float tensors are on meta; integer buffers, which may be indices, keep their values."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        floating = tensor.is_floating_point() or tensor.is_complex()
        other = torch.empty_like(tensor, device="meta") if floating else tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    twin = deep_copy(network, memo)
    for part in twin.modules():
        part._compiled_call_impl = None
    return twin


def restore(network: nn.Module, dense: nn.Module) -> None:
    """Give a thin network the structure of the dense one, in place; parameters keep their identity, their values go."""
    wide = dict(dense.named_modules())
    _put_back_branches(network, dense)
    for name, part in list(network.named_modules()):
        if name not in wide:
            continue  # an index layer that a cut put in; it goes with its owner's attributes
        other = wide[name]
        part.__class__ = type(other)
        for key, value in other.__dict__.items():
            if isinstance(value, bool | int | float | str | tuple) and key != "training":
                part.__dict__[key] = value
        for child in [child for child in part._modules if child not in other._modules]:
            del part._modules[child]
        for key, tensor in other._parameters.items():
            mine = part._parameters[key]
            if mine is not None and tensor is not None and mine.shape != tensor.shape:
                assign(mine, torch.zeros(tensor.shape, dtype=mine.dtype, device=mine.device))
        for key, tensor in other._buffers.items():
            mine = part._buffers.get(key)
            if mine is not None and tensor is not None and mine.shape != tensor.shape:
                part._buffers[key] = torch.zeros(tensor.shape, dtype=mine.dtype, device=mine.device)
    network.__dict__.pop("_slim_plan", None)


def _put_back_branches(network: nn.Module, dense: nn.Module) -> None:
    """Restore the modules of residual branches that a cut removed whole, with zeros for weights."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    for name, part in list(network.named_modules()):
        if isinstance(part, Pass | Zero):
            owner, _, leaf = name.rpartition(".")
            whole = on_meta(dense.get_submodule(name)).to_empty(device=device).train(part.training)
            for tensor in (*whole.parameters(), *whole.buffers()):
                tensor.detach().zero_()
            network.get_submodule(owner)._modules[leaf] = whole
