"""What the phases of a run work with: configuration, hardware, data, and an example of the network's input."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from torch import nn

import slim
from slim.channels import ChannelGraph, Plan, plan_of
from slim.lightning import find_network
from slim.lightning.followers import followers
from slim.lightning.traced import TracedNetwork
from slim.runs import builders, processes
from slim.runs.construct import target
from slim.runs.hardware import Choice
from slim.runs.schema import Config
from slim.runs.watch import Watch

if TYPE_CHECKING:
    from slim.deploy import Rounding


@dataclass(frozen=True)
class Components:
    """Configuration, hardware, data, and an example of the network's input.

    Attributes:
        config: What the user wants.
        hardware: What the machine offers.
        data: LightningDataModule, set up.
        example: The network's input: one image of zeros ``(1, C, H, W)`` where the data say its size, else recorded
            from a batch. MACs are counted on it.
        watch: Is shown the metric of every epoch, and may end the run.
    """

    config: Config
    hardware: Choice
    data: Any
    example: Any
    watch: Watch | None = None

    def module(self, kind: str | None = None, *, plan: Plan | None = None, draw: int = 0) -> pl.LightningModule:
        """The untrained LightningModule for a phase, its network thinned by ``plan``.

        Args:
            kind: Phase, or ``None`` to evaluate only.
            plan: From the dense network.
            draw: Of the random weights.
        """
        options = {"channels_last": self.hardware.channels_last, "compile": self.config.trainer.compile}
        module: pl.LightningModule = builders.lightning_module(self.config, self.data, kind, draw, **options)
        self.thin(module, plan)
        return module

    def thin(self, module: pl.LightningModule, plan: Plan | None, *, masked: bool = False) -> None:
        """Rebuild the network of a module in place, or mask it, with the averages of it that the module keeps."""
        if plan is None:
            return
        for part in self.followed(module):
            (slim.mask if masked else slim.rebuild)(part, plan, in_place=True)

    def followed(self, module: pl.LightningModule) -> list[nn.Module]:
        """The network of a module, and what is cut with it."""
        network = self.network(module)
        return [network, *followers(None, module, network, ())]

    def network(self, module: pl.LightningModule) -> nn.Module:
        """The network of a module: what is traced, ranked and cut."""
        return find_network(module, self.config.network)

    def dense(self, draw: int = 0) -> nn.Module:
        """The untrained dense network."""
        return self.network(self.module(draw=draw))

    def trace(self, network: nn.Module) -> ChannelGraph:
        """The channel graph of a network of this run."""
        return slim.trace(network, self.example, **self.config.prune.tracing)

    @cached_property
    def dense_graph(self) -> ChannelGraph:
        """The channel graph of the untrained dense network, which holds no memory (meta): traced once for a run."""
        graph = self.trace(self.dense())
        graph.model.to("meta")
        return graph

    @cached_property
    def rounding(self) -> Rounding | None:
        """What ``prune.round_to=auto`` comes to on this machine, measured once; ``None`` where it is a number."""
        if self.config.prune.round_to != "auto" or not {"sparse", "prune"} & set(self.config.phases):
            return None
        from slim import deploy

        found: Rounding = processes.shared(deploy.measure_rounding(self.dense(), self.example))
        return found

    def go_on_with(self, rounding: Rounding | None) -> None:
        """A run that goes on has the widths of its beginning, whatever this machine likes."""
        if rounding is not None:
            self.__dict__["rounding"] = rounding

    @property
    def limits(self) -> dict[str, Any]:
        """The arguments of :func:`slim.select`, but for the budget."""
        return self._rounded(self.config.prune.limits)

    @property
    def penalty(self) -> dict[str, Any]:
        """The options of the law; those of what it selects (``target``) round as the cut does."""
        options = dict(self.config.penalty)
        return options | ({"select": self._rounded(options["select"])} if options.get("select") else {})

    def _rounded(self, limits: Mapping[str, Any]) -> dict[str, Any]:
        if limits.get("round_to") != "auto" or self.rounding is None:
            return dict(limits)
        return {**limits, "round_to": self.rounding.multiple}

    def traced(self, network: nn.Module) -> TracedNetwork:
        """A network for callbacks to share: its example, and the dense network that budgets refer to."""
        found = TracedNetwork(network)
        found.example, found.options = self.example, dict(self.config.prune.tracing)
        if plan_of(network) is not None:
            found.remember_dense(self.dense())
        return found

    @property
    def data_name(self) -> str:
        """Of the data set; the class of a data module that has no name (Lightning's own is None)."""
        return str(getattr(self.data, "name", None) or type(self.data).__name__)

    @property
    def takes_network(self) -> bool:
        """Whether the module is given its network, built from ``config.model``; others build their own."""
        return "network" in inspect.signature(target(self.config.module["_target_"], "module")).parameters

    @property
    def input_shape(self) -> str:
        """As printed beside MACs, such as ``1x3x32x32``."""
        return self.dense_graph.input_shapes
