"""Every conf/penalty file builds its law, and names every option of it that a user may set."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from slim.sparsity import LAWS, build

CONF = Path(__file__).parents[2] / "conf"


def test_one_file_per_law():
    assert {p.stem for p in (CONF / "penalty").glob("*.yaml")} == {*LAWS, "own"}


@pytest.mark.parametrize("law", LAWS)
def test_the_file_says_what_the_law_takes(law):
    none = {"macs": None, "params": None, "overrides": None}
    prune = {
        "ratio": 0.5,
        "min_channels": 1,
        "max_layer_ratio": 1.0,
        "round_to": 1,
        "ignore": [],
        "strategy": "global",
        "inexact": False,
        **none,
    }
    config = OmegaConf.create({"prune": prune, "penalty": OmegaConf.load(CONF / "penalty" / f"{law}.yaml")})
    options = OmegaConf.to_container(config.penalty, resolve=True)
    assert options.pop("name") == law
    build(law, **options)
    parameters = inspect.signature(LAWS[law]).parameters
    hidden = {"self", "threshold", "memory"}
    assert set(options) == set(parameters) - hidden
    for name, value in options.items():
        if value is not None and name not in ("ratio", "select"):
            assert value == parameters[name].default, name
