"""Every configuration composes; every experiment runs."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser

from slim.artifact import normalization_in, read_header
from slim.command.compose import compose, register
from slim.errors import SlimError
from slim.runs.config import read
from slim.runs.hardware import choose
from slim.runs.schema import Hardware
from tests.runs.tiny import run

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "own_slim")
"""What needs a module of the user's is run with those of examples/, in tests/examples."""
GROUPS = (
    "data",
    "model",
    "module",
    "criterion",
    "penalty",
    "recovery",
    "schedule",
    "optimizer",
    "scheduler",
    "trainer",
)
OPTIONS = [
    [f"{group}={path.stem}" for path in sorted((CONF / group).glob("*.yaml")) if not path.stem.startswith("_")]
    for group in GROUPS
]
ROWS = [[option for option in row if option] for row in zip_longest(*OPTIONS)]
"""Every option of every group once, one of each group at a time."""
NEEDED = {
    "data=image_folder": ["data.dir=/images"],
    "model=custom": ["model._target_=torch.nn.Identity"],
    "module=own": ["module._target_=pytorch_lightning.LightningModule"],
    "penalty=own": ["penalty.name=tests.sparsity.own.Ridge"],
    "data=own": ["data._target_=pytorch_lightning.LightningDataModule"],
    "data=segmentation_folder": ["data.dir=/scenes", "data.num_classes=3"],
}
TASKS = {
    "segmentation_slim": ("segmentation_digits", "segmentation_folder", "oxford_pet", "voc_segmentation"),
    "detection_slim": ("detection_digits", "coco_detection", "voc_detection"),
}
"""Experiments that are no classification, and the data sets of their task."""
OF_A_TASK = {name for names in TASKS.values() for name in names}
SMALL = {
    "preresnet_slim": ["model.depth=11"],
    "densenet_slim": ["model.depth=7"],
    "resnet_slim": ["model.depth=8"],
    "mlp_slim": ["model.hidden=[16,8]"],
    "segmentation_slim": ["model.name=lraspp_resnet8", "data.scenes=16", "data.val_scenes=2", "data.test_scenes=2"],
    "detection_slim": ["model.name=ssdlite_resnet8", "data.scenes=16", "data.val_scenes=2", "data.test_scenes=2"],
}


def composed(*overrides: str) -> dict[str, Any]:
    register("id")
    return compose(list(overrides), get_args_parser().parse_args([]))[0]


@pytest.mark.parametrize("options", ROWS, ids=", ".join)
def test_every_option_composes(options: list[str]) -> None:
    needed = [item for option in options for item in NEEDED.get(option, [])]
    assert read(composed(*options, *needed)).task in ("train", "evaluate", "sensitivity")


CLASSIFICATION = [path.stem for path in sorted((CONF / "data").glob("[a-z]*.yaml"))]
PAIRS = [
    (experiment, data)
    for experiment in EXPERIMENTS
    for data in TASKS.get(experiment, [name for name in CLASSIFICATION if name not in {*OF_A_TASK, "own"}])
]


@pytest.mark.parametrize(("experiment", "data"), PAIRS)
def test_every_experiment_composes_with_every_data_set_of_its_task(experiment: str, data: str) -> None:
    settings = read(composed(f"+experiment={experiment}", f"data={data}", *NEEDED.get(f"data={data}", [])))
    assert settings.name == experiment


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, tmp_path: Path) -> None:
    model = SMALL.get(experiment, ["model.widths=[8,M,16]"])
    epochs = ["sparse.epochs=3"] if experiment == "vgg_slim_early" else ["sparse.epochs=1"]
    few = ["data.image_size=16", "data.limit_train=128", "data.limit_test=64"]
    if experiment in TASKS:
        few = ["data.image_size=64"]
    report = run(
        tmp_path / "run", f"+experiment={experiment}", "finetune.epochs=1", "baseline.epochs=1",
        "trainer.limit_batches=1", *few, *epochs, *model,
    )  # fmt: skip
    assert report["status"] == "finished"
    assert report["experiment"] == experiment
    normalized = normalization_in(read_header(tmp_path / "run" / "model.safetensors").metadata)
    assert bool(normalized) == (experiment != "detection_slim"), "torchvision's detectors do that themselves"


def test_cifar10_gives_the_papers_setting() -> None:
    settings = read(composed("+experiment=vgg_slim", "data=cifar10"))
    assert settings.model["depth"] == 19
    assert settings.model["widths"] is None
    assert (settings.sparse.epochs, settings.finetune.epochs, settings.sparse.lr) == (160, 160, 0.1)
    assert (settings.penalty["lam"], settings.sparse.shrink, settings.prune.ratio) == (1e-4, None, 0.7)
    assert settings.data["batch_size"] == 64


def test_mnist_gives_the_papers_perceptron() -> None:
    """Section 4.3 for the training; section 4.4: 80% of the neurons in each of the two hidden layers."""
    settings = read(composed("+experiment=mlp_slim", "data=mnist"))
    assert settings.model["hidden"] == [500, 300]
    assert (settings.sparse.epochs, settings.finetune.epochs, settings.sparse.lr) == (30, 30, 0.1)
    assert (settings.prune.ratio, settings.prune.strategy, settings.data["batch_size"]) == (0.8, "layer", 256)
    assert (settings.scheduler["milestones"], settings.scheduler["gamma"]) == (["33.3%", "66.7%"], 0.1)


@pytest.mark.parametrize("experiment", ["nocliff", "nocliff_taught"])
def test_without_a_cliff_all_epochs_go_before_the_cut(experiment: str) -> None:
    settings = read(composed(f"+experiment={experiment}", "data=cifar10"))
    assert settings.phases[-2:] == ["sparse", "prune"]
    assert (settings.sparse.epochs, settings.sparse.lr) == (settings.baseline.epochs, 0.1)
    assert read(composed(f"+experiment={experiment}", "sparse.epochs=7")).sparse.epochs == 7


def test_dense_has_the_same_number_of_epochs() -> None:
    for data in ("digits", "cifar10", "cifar100", "svhn", "mnist"):
        slim = read(composed("+experiment=vgg_slim", f"data={data}"))
        dense = read(composed("+experiment=vgg_dense", f"data={data}"))
        assert dense.baseline.epochs == slim.sparse.epochs + slim.finetune.epochs
        assert dense.model == slim.model


def test_fp16_is_refused_wherever_it_comes_to_a_cpu() -> None:
    """No machine has so many GPUs: the run would be on its CPU."""
    with pytest.raises(SlimError, match=r"Got precision=fp16\. Set trainer\.precision=bf16\."):
        choose(Hardware(precision="fp16", devices=512))
