"""A study that several processes and machines share, and that goes on after any of them was killed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from slim.errors import SlimError
from slim.sweeps import seeds
from slim.sweeps.owners import Owner
from slim.sweeps.storage import close, connect, optuna

OWNER, LOST, ATTEMPT, FOLDER, ERROR = "owner", "lost", "attempt", "folder", "error"
"""Attributes of trials."""
FIXED, OBJECTIVES = "fixed", "objectives"
"""Attributes of the study."""


@dataclass(frozen=True)
class Settings:
    """What a study is told.

    Attributes:
        storage: URL.
        name: Of the study in the storage.
        directions: One per objective.
        sampler, pruner: ``_target_`` and options.
        space: Name of a parameter -> distribution.
        objectives: Their names.
        fixed: Overrides that all trials share.
        n_trials: In all, over all processes and restarts.
        attempts: How often a trial is begun, when whoever runs it dies.
        heartbeat: Seconds between two signs of life.
        grace: Seconds without one after which a process of another machine counts as dead.
    """

    storage: str
    name: str
    directions: Sequence[str]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any] | None
    space: Mapping[str, Any]
    objectives: Sequence[str] = ()
    fixed: Sequence[str] = ()
    n_trials: int = 20
    attempts: int = 3
    heartbeat: float = 30.0
    grace: float = 300.0


def check(settings: Settings) -> None:
    """Refuse a sampler or a pruner that cannot be made, before anything is written.

    Raises:
        SlimError: It is not known, does not take its options, or does not fit the objectives or the space.
    """
    pruner = (settings.pruner or {}).get("_target_")
    if pruner and len(settings.directions) > 1:
        raise SlimError(
            f"A pruner compares curves of one objective. Got {len(settings.directions)} objectives and "
            f"hydra.sweeper.pruner={pruner}. Set hydra/sweeper/pruner=none, or one objective."
        )
    seeds.pruner(settings.pruner)
    seeds.sampler(settings.sampler, lambda study, trial: 0, settings.space)


@dataclass
class Study:
    """Trials to run and what became of them.

    A trial that is being run has an owner. Where that process is gone (of this machine: it is not there; of another: no
    sign of life for a while), whoever sees it first marks the trial as lost, which only one process can, and puts a
    copy in line: same values, same folder, same curve so far. A lost trial does not count; its copy does.
    """

    settings: Settings
    owner: Owner = field(default_factory=Owner.me)

    def __post_init__(self) -> None:
        found, wanted = optuna(), self.settings
        self._exhausted = False
        check(wanted)
        self.storage = connect(wanted.storage)
        try:
            self.study = found.create_study(
                storage=self.storage,
                study_name=wanted.name,
                directions=list(wanted.directions),
                sampler=seeds.sampler(wanted.sampler, self._ordinal, wanted.space),
                pruner=seeds.pruner(wanted.pruner),
                load_if_exists=True,
            )
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """Refuse to mix trials that cannot be compared."""
        found = self.study
        ways = [direction.name.lower() for direction in found.directions]
        wanted = list(self.settings.objectives)
        known = found.user_attrs.get(OBJECTIVES, wanted)
        if known != wanted or ways != list(self.settings.directions):
            raise SlimError(
                f"A study keeps its objectives. Got {wanted}, directions {list(self.settings.directions)}, and "
                f"{self.settings.name} has {known}, {ways}. Set hydra.sweeper.study_name, or a new hydra.sweep.dir."
            )
        if OBJECTIVES not in found.user_attrs:
            found.set_user_attr(OBJECTIVES, wanted)
        shared = sorted(self.settings.fixed)
        if FIXED not in found.user_attrs:
            found.set_user_attr(FIXED, shared)
        elif differs := sorted(set(found.user_attrs[FIXED]) ^ set(shared)):
            raise SlimError(
                f"Trials of a study share all overrides but those that are searched. Got other values for "
                f"{', '.join(differs)}. Set hydra.sweeper.study_name, or a new hydra.sweep.dir."
            )
        for trial in found.get_trials(deepcopy=False):
            if trial.distributions and not _compatible(trial.distributions, self.settings.space):
                raise SlimError(
                    f"A study keeps its search space. Got {_shown(self.settings.space)}, and {self.settings.name} has "
                    f"{_shown(trial.distributions)}. Set hydra.sweeper.study_name, or a new hydra.sweep.dir."
                )

    # Asking

    def ask(self, count: int) -> list[Any]:
        """Up to ``count`` trials for this process to run; none when the study has all of them."""
        trials: list[Any] = []
        while len(trials) < count and (self._waiting() or self._more()):
            trial = self.study.ask()
            # Before the values are drawn, which may take a while.
            trial.set_user_attr(OWNER, self.owner.plain())
            if self._ordinal(self.study, trial) >= self.settings.n_trials:
                # Another process drew at the same moment, and was first.
                self._lose(trial.number)
                break
            for name, distribution in self.settings.space.items():
                _suggest(trial, name, distribution)
            trials.append(trial)
        return trials

    def _more(self) -> bool:
        return not self._exhausted and self.counted() < self.settings.n_trials

    def counted(self) -> int:
        """Trials that are done, running or in line."""
        return sum(map(_counts, self.study.get_trials(deepcopy=False)))

    def running(self) -> dict[int, Owner | None]:
        """Trials that are being run -> by whom."""
        state = optuna().trial.TrialState.RUNNING
        trials = self.study.get_trials(deepcopy=False, states=(state,))
        return {trial.number: Owner.read(trial.user_attrs.get(OWNER)) for trial in trials}

    def _waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(optuna().trial.TrialState.WAITING,)))

    def _ordinal(self, study: Any, trial: Any) -> int:
        """How many trials count before ``trial``; the copy of a lost one stands where that stood."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(other.number < trial.number and _counts(other) for other in trials)

    # Telling

    def tell(self, number: int, values: Sequence[float], *, folder: str, status: str, error: str = "") -> None:
        """Record what became of a trial.

        Args:
            number: Of the trial.
            values: Of the objectives, of one that finished.
            folder: Of its run.
            status: ``finished``, ``failed`` or ``pruned``.
            error: Why it failed.
        """
        states = optuna().trial.TrialState
        bad = status == "finished" and not all(math.isfinite(value) for value in values)
        if bad:
            status, error = "failed", f"An objective must be a finite number. Got {list(values)}."
        with suppress(optuna().exceptions.UpdateFinishedTrialError, ValueError):  # it was taken for lost meanwhile
            trial = self._trial(number)
            self.study._storage.set_trial_user_attr(trial._trial_id, FOLDER, folder)
            if error:
                self.study._storage.set_trial_user_attr(trial._trial_id, ERROR, error)
            try:
                if status == "finished":
                    self.study.tell(number, list(values))
                else:
                    self.study.tell(number, state=states.PRUNED if status == "pruned" else states.FAIL)
            except RuntimeError as error:
                # How a sampler of a finite space says, after the trial is stored, that it has no other values.
                if "Study.stop" not in str(error):
                    raise
                self._exhausted = True

    def give_back(self, number: int, *, died: bool = True) -> bool:
        """Whoever ran the trial did not end it: put a copy in line.

        Args:
            number: Of the trial.
            died: Counts as an attempt; a process that was told to stop does not.

        Returns:
            Whether it will be run again; after ``attempts`` of them it counts as failed.
        """
        trial = self._trial(number)
        attempt = int(trial.user_attrs.get(ATTEMPT, 1))
        if died and attempt >= self.settings.attempts:
            error = f"Whoever ran it died, {attempt} times."
            self.tell(number, [], folder=str(trial.user_attrs.get(FOLDER, number)), status="failed", error=error)
            return False
        if not self._lose(number):
            return True
        if len(trial.params) == len(self.settings.space):
            found = optuna().trial
            again = found.create_trial(
                state=found.TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                # What a sampler remembers of it, and that it need not draw.
                system_attrs={**trial.system_attrs, "fixed_params": trial.params},
                user_attrs={
                    ATTEMPT: attempt + died,
                    FOLDER: trial.user_attrs.get(FOLDER, str(number)),
                    "copy_of": number,
                },
            )
            self.study.add_trial(again)
        return True

    def recover(self) -> list[int]:
        """Put every trial in line again whose owner is gone; returns their numbers."""
        found = []
        for number, owner in self.running().items():
            if owner != self.owner and self._gone(number, owner) and self.give_back(number):
                found.append(number)
        return found

    def _gone(self, number: int, owner: Owner | None) -> bool:
        lives = None if owner is None else owner.lives()
        if lives is not None:
            return not lives
        began = self._trial(number).datetime_start
        beat = self.study.user_attrs.get(_beat(owner), 0.0) if owner is not None else 0.0
        last = max(float(beat), began.timestamp() if began is not None else 0.0)
        return time.time() - last > self.settings.grace

    def _lose(self, number: int) -> bool:
        """Mark a trial as lost; ``False``: another process did."""
        storage, trial = self.study._storage, self._trial(number)
        try:
            storage.set_trial_user_attr(trial._trial_id, LOST, True)
            storage.set_trial_state_values(trial._trial_id, state=optuna().trial.TrialState.FAIL)
        except optuna().exceptions.UpdateFinishedTrialError:
            return False
        return True

    def _trial(self, number: int) -> Any:
        return self.study.get_trials(deepcopy=False)[number]

    # Signs of life

    def __enter__(self) -> Study:
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._beats.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._beats.join(timeout=10)
        self.close()

    def close(self) -> None:
        """Let go of the storage."""
        close(self.storage)

    def _beat(self) -> None:
        while True:
            with suppress(Exception):  # a storage that is away for a moment
                self.study.set_user_attr(_beat(self.owner), time.time())
            if self._stop.wait(self.settings.heartbeat):
                break
        if hasattr(self.storage, "remove_session"):
            self.storage.remove_session()  # each thread has its own


def _counts(trial: Any) -> bool:
    # One that ended although it was taken for lost did end.
    return not trial.user_attrs.get(LOST) or trial.state.name in ("COMPLETE", "PRUNED")


def _suggest(trial: Any, name: str, distribution: Any) -> None:
    found = optuna().distributions
    if isinstance(distribution, found.CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
        return
    suggest = trial.suggest_int if isinstance(distribution, found.IntDistribution) else trial.suggest_float
    suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _beat(owner: Owner) -> str:
    return f"beat of {owner.host}/{owner.pid}"


def _compatible(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Same parameters, same kind of values; ranges may move, choices may not (Optuna's own rule)."""
    if set(before) - set(now):
        return False
    for name, distribution in before.items():
        try:
            optuna().distributions.check_distribution_compatibility(distribution, now[name])
        except ValueError:
            return False
    return True


def _shown(space: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {distribution}" for name, distribution in space.items())[:200]
