"""A job's curve on its way to the study, which may find the trial hopeless."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from slim.runs.watch import Pruned
from slim.sweeps import seeds
from slim.sweeps.storage import close, connect, optuna


class TrialWatch:
    """Reports every epoch's metric on held-out data to a trial, from whichever process or machine runs it.

    Args:
        trial: ``storage``, ``study``, ``trial`` (its number) and ``pruner`` (``_target_`` and options).
    """

    def __init__(self, trial: Mapping[str, Any]) -> None:
        found = optuna()
        self.storage = connect(trial["storage"])
        study = found.load_study(
            study_name=trial["study"],
            storage=self.storage,
            sampler=found.samplers.RandomSampler(),  # draws nothing here
            pruner=seeds.pruner(trial["pruner"]),
        )
        frozen = study.get_trials(deepcopy=False)[trial["trial"]]
        self.trial = found.trial.Trial(study, frozen._trial_id)
        self.known = set(frozen.intermediate_values)

    def __call__(self, epoch: int, value: float) -> None:
        """Take the metric of an epoch, counted over all training phases from 0.

        Raises:
            Pruned: Its curve is hopeless.
        """
        if epoch not in self.known:  # a resumed run repeats epochs, with the same values
            self.known.add(epoch)
            self.trial.report(value, epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
            hopeless = self.trial.should_prune()
        close(self.storage)  # epochs are long, and a job may end in any way
        if hopeless:
            raise Pruned(f"Pruned by the study after epoch {epoch + 1}, at {value:.4g}.")
