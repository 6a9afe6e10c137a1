"""Everything a run works with, built and checked before anything is written."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

import slim
from slim import criteria, models, sparsity
from slim.channels import ChannelGraph, Plan, plan_of
from slim.errors import SlimError
from slim.pipeline import cut, teacher
from slim.pipeline.construct import check, construct, target
from slim.pipeline.failures import out_of_memory
from slim.pipeline.feed import seed_all
from slim.pipeline.hardware import choose
from slim.pipeline.reading import read
from slim.pipeline.source import load_network


class Workspace:
    """Settings, data, hardware, and builders for the rest.

    Attributes:
        settings: What the user wants.
        hardware: What the machine offers.
        data: LightningDataModule, set up.
        example: One image of zeros ``(1, C, H, W)``; MACs are counted on it.
        start: The network in ``checkpoint``, if the run begins with one.
        teachers: The networks that phases learn from, where they come from a file, by the kind of phase.
    """

    def __init__(self, config: Mapping[str, Any], *, begun: bool = False) -> None:
        """Build and check; ``begun`` says that a run goes on, which has its own copy of ``checkpoint``.

        Raises:
            SlimError: One line per kind of mistake, before anything touches the disk.
        """
        self.settings = read(config)
        self.hardware = choose(self.settings.trainer)
        self._check_parts()
        self.data = construct(self.settings.data, "data")
        try:
            self.data.prepare_data()
            self.data.setup("fit")
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size = self.settings.data.get("image_size")
            raise SlimError(
                f"Images must fit in memory. Got data.image_size={size} (out of memory). Lower data.image_size."
            ) from error
        size = self.data.image_size
        self.example = torch.zeros(1, self.data.in_channels, size, size)
        dense = self.dense()
        models.check(dense, self.data.num_classes, self.data.in_channels, size)
        graph = self.trace(dense)
        if self.settings.task == "train":
            self._check_graph(graph)
            self._check_batches()
            if "prune" in self.settings.phases and not begun:
                cut.check(self, graph)
        checkpoint = self.settings.checkpoint
        begun = begun and self.settings.task == "train"
        self.start = None if checkpoint is None or begun else load_network(self, Path(checkpoint))
        self.teachers = {} if begun else teacher.from_files(self)

    # Builders

    def dense(self, draw: int = 0) -> nn.Module:
        """The untrained dense network; the same weights every time, others for every ``draw``.

        Drawn beside the run's generators, not from them: it may be built between two steps.
        """
        with isolate_rng():
            seed_all(self.settings.seed, draw)
            return self._built()

    def _built(self) -> nn.Module:
        options = dict(self.settings.model)
        path = options.pop("_target_", None)
        if not isinstance(path, str):
            raise SlimError(
                f"model._target_ must be a dotted path. Got {path!r}. Set model=<family> or model._target_."
            )
        return models.build(
            path,
            self.data.num_classes,
            self.data.in_channels,
            **({"image_size": self.data.image_size} | options),
        )

    def with_plan(self, plan: str | None) -> nn.Module:
        """A network of the shape that ``plan`` (JSON, from the dense network) gives; its weights mean nothing yet."""
        dense = self.dense()
        return dense if plan is None else slim.rebuild(dense, Plan.from_json(plan))

    def trace(self, network: nn.Module) -> ChannelGraph:
        """The channel graph of a network of this run."""
        prune = self.settings.prune
        return slim.trace(network, self.example, residual=prune.residual, grouped=prune.grouped)

    def penalty(self, lam: float | None = None, **told: float) -> sparsity.Penalty:
        """The sparsity law of the configuration; ``lam`` replaces its strength, ``told`` other options."""
        options = {**self.settings.penalty, **told}
        if lam is not None:
            options["lam"] = lam
        return sparsity.build(options.pop("name"), **options)

    def optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The optimizer of the configuration, at learning rate ``lr``."""
        made: torch.optim.Optimizer = construct(self.settings.optimizer, "optimizer", parameters, lr=lr)
        return made

    def input_shape(self) -> str:
        """As printed beside MACs, such as ``1x3x32x32``."""
        return "x".join(map(str, self.example.shape))

    def validation(self) -> Iterable[Any]:
        """Validation batches; a few of training, without augmentation, where nothing is held out."""
        found: Iterable[Any] = self.data.val_dataloader() or self.data.plain_batches(8)
        return found

    def batch(self, loader: Iterable[Any]) -> Tensor:
        """The images of a loader's first batch, on the CPU."""
        images: Tensor = next(iter(loader))[0]
        return images.cpu()

    # Checks

    def _check_parts(self) -> None:
        settings = self.settings
        for key in ("criterion", "penalty"):
            if not isinstance(getattr(settings, key).get("name"), str):
                raise SlimError(
                    f"{key}.name must be text. Got {getattr(settings, key).get('name')!r}. Set {key}=<name>."
                )
        if "sparse" in settings.phases:
            self.penalty()
        if "prune" in settings.phases:
            found = criteria.find(settings.criterion["name"])
            known = {"name", "normalize", "reduce", *list(inspect.signature(found.rank).parameters)[1:]}
            for option in settings.criterion:
                if option not in known:
                    raise SlimError(
                        f"criterion.{option} must be an option of {found.name}. "
                        f"Got {option}={settings.criterion[option]}. {slim.errors.nearest(option, known)}"
                    )
        # A parameter of its own: the point is that the options fit, before data and model take their time.
        self.optimizer(
            [nn.Parameter(torch.zeros(1))],
            0.1 if self.settings.optimizer.get("lr") is None else self.settings.optimizer["lr"],
        )
        check(
            target(settings.data.get("_target_"), "data"),
            {k: v for k, v in settings.data.items() if k != "_target_"},
            "data",
        )

    def _check_graph(self, graph: ChannelGraph) -> None:
        phases = self.settings.phases
        if any(scale.weight is not None for scale in graph.scales):
            return
        by_gamma = "prune" in phases and self.settings.criterion["name"] == "gamma"
        if "sparse" in phases or by_gamma:
            raise SlimError(
                "Sparse training needs normalization layers with a scale. "
                f"Got none in model={self.settings.model.get('_target_')}. "
                "Choose a model with BatchNorm, or phases=[prune,finetune] with criterion=l1."
            )

    def _check_batches(self) -> None:
        train = self.data.train_dataloader()
        if len(train) == 0:
            size = self.settings.data.get("batch_size")
            raise SlimError(
                f"The batch size must not exceed the training images. Got batch_size={size}. Lower data.batch_size."
            )


def check_writable(directory: Path) -> None:
    """Refuse a run directory that cannot be made, without making it.

    Raises:
        SlimError: Its nearest existing parent is no folder, or not writable.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise SlimError(
            f"The output directory must be writable. Got output={directory} ({place} is not). Set output=<dir>."
        )


def make(directory: Path) -> None:
    """Make a directory and its parents.

    Raises:
        SlimError: That is not possible.
    """
    check_writable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimError(
            f"The output directory must be writable. Got output={directory} ({error.strerror}). Set output=<dir>."
        ) from error


def plan_json(network: nn.Module) -> str | None:
    """The plan that made ``network`` from the dense one, as JSON."""
    plan = plan_of(network)
    return None if plan is None else plan.to_json()
