"""What a run changed of its experiment."""

from __future__ import annotations

import argparse

import pytest

from slim.command.changed import changed
from slim.command.compose import compose, register

ARGS = argparse.Namespace(config_dir=None, config_name=None)
USUAL = ["+experiment=vgg_slim", "data=digits", "seed=0", "prune.ratio=0.7", "phases=[sparse,prune,finetune]"]


@pytest.mark.parametrize(
    ("given", "keep", "stays"),
    [
        (["finetune.epochs=40"], ["seed"], ["seed=0", "finetune.epochs=40"]),
        # Other data bring other defaults: 160 epochs are theirs, 20 are not.
        (["data=cifar10", "finetune.epochs=160", "sparse.epochs=20"], [], ["data=cifar10", "sparse.epochs=20"]),
        # A value that the data leave to the user.
        (["data=image_folder", "data.dir=photos"], [], ["data=image_folder", "data.dir=photos"]),
        (
            ["penalty=prox", "logger=[csv]", "+trainer.options.x=1"],
            [],
            ["penalty=prox", "logger=[csv]", "+trainer.options.x=1"],
        ),
    ],
)
def test_only_what_differs_from_the_experiment_stays(given: list[str], keep: list[str], stays: list[str]) -> None:
    register("id")
    keys = {item.partition("=")[0] for item in given}
    overrides = [*(item for item in USUAL if item.partition("=")[0] not in keys), *given]
    config, whole = compose(overrides, ARGS)
    found = changed(overrides, config, whole.hydra.runtime.choices, ARGS, keep)
    assert found == ["+experiment=vgg_slim", *stays]


def test_of_an_experiment_that_is_not_there_everything_stays() -> None:
    assert changed(["+experiment=mine", "seed=0"], {}, {}, ARGS) == ["+experiment=mine", "seed=0"]
