"""Optuna's samplers, made for one proposal each, and asked in a study in memory."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.spaces import SAMPLERS, Point, Space


def make_sampler(kind: str, seed: int, number: int) -> BaseSampler:
    """The sampler that proposes trial `number`.

    It is made anew for each proposal from (seed, number) and the trials on record, so a study that was
    interrupted goes on as if it had not been (with one trial at a time).
    """
    digest = hashlib.sha256(f"{seed}:sampler:{number}".encode()).digest()
    own = int.from_bytes(digest[:4], "little")
    kinds: dict[str, Callable[..., BaseSampler]] = {"gp": GPSampler, "tpe": TPESampler, "random": RandomSampler}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kinds[kind](seed=own, **SAMPLERS[kind])


class _Shared(FrozenTrial):
    """A trial that a study in memory takes over without a copy of all in it: nothing there changes it."""

    def __init__(self, trial: FrozenTrial) -> None:
        self.__dict__.update(trial.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return _Shared(self)


def propose(space: Space, sampler: BaseSampler, trials: Iterable[FrozenTrial]) -> tuple[FrozenTrial, Point]:
    """What `sampler` proposes next, having seen `trials`: as a trial that runs, and as a point of `space`."""
    storage = InMemoryStorage()
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "rebuilt")
    for trial in trials:
        storage.create_new_trial(study_id, _Shared(trial))
    return _ask(optuna.load_study(study_name="rebuilt", storage=storage, sampler=sampler), space)


def given(space: Space, params: dict[str, Any]) -> tuple[FrozenTrial, Point]:
    """As `propose`, of parameters that are known."""
    study = optuna.create_study(sampler=RandomSampler(seed=0))  # which nothing is left to
    study.enqueue_trial(params)
    return _ask(study, space)


def _ask(study: optuna.Study, space: Space) -> tuple[FrozenTrial, Point]:
    point = space.suggest(study.ask())
    return study.get_trials(deepcopy=False)[-1], point
