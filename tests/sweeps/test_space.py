"""The syntax of sweeps means the same to Optuna as to Hydra's own sweeper."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from slim.command import space
from slim.command.compose import config_loader
from slim.command.grid import combinations, params
from slim.errors import SlimError
from slim.sweeps import seeds

FINITE = [
    "model=vgg,resnet",
    "lr=choice(0.1,0.01)",
    "w=choice([8,M],[16])",
    "q=choice('a b','c,d','1')",
    "flag=true,false",
    "lr=null,0.1",
    "seed=range(0,5)",
    "seed=range(5,1,-2)",
    "r=range(0.3,0.75,0.1)",
    "r=range(0.7,0.1,-0.2)",
    "r=range(0.3,0.9,0.2)",
    "r=range(-0.3,0.05,0.1)",
    "s=shuffle(range(1,5))",
    "g=shuffle(choice(a,b,c))",
    "z=sort(3,1,2)",
    "+x.y=1,2",
]


@pytest.mark.parametrize("override", FINITE)
def test_a_finite_space_holds_exactly_what_a_basic_sweep_would_run(override: str) -> None:
    found, _ = space.parse([override])
    ((key, distribution),) = found.items()
    values = [space.line(key, value) for value in seeds._grid(distribution)]
    basic = [job[0] for job in combinations([override])]
    assert sorted(map(_canonical, values)) == sorted(map(_canonical, basic))
    # What Optuna stores of a value is what comes back.
    for value in seeds._grid(distribution):
        assert create_trial(value=0, params={key: value}, distributions={key: distribution}).params == {key: value}


def _canonical(line: str) -> str:
    key, _, value = line.partition("=")
    try:
        return f"{key}={round(float(value), 9) + 0:.9g}"
    except ValueError:
        return line.lower()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lam=interval(0,1)", FloatDistribution(0, 1)),
        ("lr=tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1, log=True)),
        ("n=int(interval(1,9))", IntDistribution(1, 9)),
        ("n=tag(log,int(interval(1,100)))", IntDistribution(1, 100, log=True)),
        ("n=tag(log,range(1,100))", IntDistribution(1, 99, log=True)),
        ("f=float(interval(1,3))", FloatDistribution(1, 3)),
        ("m=1,2", CategoricalDistribution((1, 2))),
    ],
)
def test_intervals(override: str, expected: object) -> None:
    assert list(space.parse([override])[0].values()) == [expected]


def test_a_pattern_stands_for_the_names_of_its_group(tmp_path: Path) -> None:
    """Those of ``--config-dir``, too."""
    (tmp_path / "penalty").mkdir()
    (tmp_path / "penalty" / "tame.yaml").touch()
    loader = config_loader(Namespace(config_dir=str(tmp_path)))
    assert combinations(["penalty=glob(ta*)"], loader) == [["penalty=tame"], ["penalty=target"]]
    (found,) = space.parse(["penalty=glob(ta*)"], loader)[0].values()
    assert found == CategoricalDistribution(["tame", "target"])
    (line,) = params({"params": {"finetune.lr": None}})
    assert line == "finetune.lr=null"


def test_what_is_fixed_stays_as_it_was_written_and_the_last_of_a_key_counts() -> None:
    found, fixed = space.parse(["a=1,2", "+experiment=vgg_slim", "widths=[8,M]", "a=3", "b=interval(0,1)", "~c"])
    assert list(found) == ["b"]
    assert fixed == ["+experiment=vgg_slim", "widths=[8,M]", "a=3", "~c"]


def test_probes_hold_every_choice_and_both_ends() -> None:
    found, _ = space.parse(["a=x,y,z", "b=interval(0,1)"])
    assert {item for point in space.probes(found) for item in point} == {"a=x", "a=y", "a=z", "b=0.0", "b=1.0"}


@pytest.mark.parametrize("override", ["lam=tag(log,interval(0,1))", "n=tag(log,int(interval(0,9)))"])
def test_a_logarithm_of_nothing_is_refused(override: str) -> None:
    with pytest.raises(SlimError, match="above 0"):
        space.parse([override])


def test_a_range_that_cannot_be_logarithmic_is_refused() -> None:
    with pytest.raises(SlimError, match="Write tag"):
        space.parse(["n=tag(log,range(1,9,2))"])
