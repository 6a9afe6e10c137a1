"""Every file of conf/data and conf/model names something that takes its keys."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

import slim.data
import slim.models
from slim.data.image_data import ImageData
from slim.data.task_data import TaskData
from slim.models import build, check

CONF = Path(__file__).parents[2] / "conf"
DATA = sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml") if path.stem != "own")
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "none")


def read(group: str, name: str) -> dict[str, Any]:
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    for parent in content.pop("defaults", []):
        content = read(group, parent) | content
    return content


@pytest.mark.parametrize("name", DATA)
def test_data(name: str) -> None:
    options = read("data", name)
    kind = getattr(slim.data, options.pop("_target_").removeprefix("slim.data."))
    assert options.pop("seed") == "${seed}"
    base = TaskData if issubclass(kind, TaskData) else ImageData
    own = set(inspect.signature(kind.__init__).parameters) | set(inspect.signature(kind.__mro__[1].__init__).parameters)
    common = set(inspect.signature(base.__init__).parameters) | {"num_workers", "memory_budget_gb"}
    assert set(options) <= own | common
    if "???" in options.values():
        assert options["dir"] == "???"
    else:
        assert kind(**options).image_size == options["image_size"]


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    options = read("model", name)
    target = options.pop("_target_")
    if name == "custom":
        assert target == "???"
        return
    if "image_size" in options:
        assert options["image_size"] == "${data.image_size}"
        options["image_size"] = 32
    if target in ("slim.models.segmentation_model", "slim.models.detection_model"):
        # Large, and no classifiers: tests/models builds the smallest of them.
        parameters = inspect.signature(getattr(slim.models, target.rpartition(".")[2])).parameters
        known = slim.models.segmentation_names() + slim.models.detection_names()
        assert set(options) <= set(parameters) and (options["name"] in known or options["name"] == name)
        return
    check(build(target, 7, 1, **options), 7, 1, 32)
