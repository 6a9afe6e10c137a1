"""Every file of the config group `criterion` names a criterion and options it has."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from slim.criteria import CRITERIA, NORMALIZATIONS, names

FILES = sorted((Path(__file__).parents[2] / "conf" / "criterion").glob("*.yaml"))


def test_every_criterion_has_a_file():
    assert {f.stem for f in FILES} == set(names())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_options_exist(file):
    options = yaml.safe_load(file.read_text())
    assert options.pop("name") == file.stem
    assert options.pop("normalize", "none") in NORMALIZATIONS
    options.pop("reduce", None)
    parameters = inspect.signature(CRITERIA[file.stem].rank).parameters
    assert set(options) <= set(parameters)
    for key, value in options.items():
        if file.stem != "combination" or key != "parts":
            assert value == parameters[key].default, f"{key}: conf and code disagree"
