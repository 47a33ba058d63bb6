"""A study's record, in memory for whoever reads it and in the database for good.

Optuna's database takes some twenty queries to hand out a trial and to hear of its end, most of them to read again what
this process wrote itself. Only one process writes to a study (its driver, which holds the lock), so what it has read
and written is all there is.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def _as_read(value: Any) -> Any:
    """An attribute as the database gives it back."""
    return json.loads(json.dumps(value))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python looks for garbage while much is made; where all of it stays, that takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class WriteThrough(InMemoryStorage):
    """One study, read from memory. Each change is in the database before it is in memory, so that a kill loses none."""

    def __init__(self, database: RDBStorage, name: str) -> None:
        """Read the study `name`, or begin it; what it minimises is one value."""
        super().__init__()
        self.database = database
        try:
            self._stored = database.get_study_id_from_name(name)
        except KeyError:
            self._stored = database.create_new_study([StudyDirection.MINIMIZE], name)
        self._trial_ids: list[int] = []  # in the database, by number; in memory a trial's id is its number
        self._at_once = False
        self._begun: int | None = None  # a trial that is not in the database yet
        study = super().create_new_study(database.get_study_directions(self._stored), name)
        for key, value in database.get_study_user_attrs(self._stored).items():
            super().set_study_user_attr(study, key, value)
        for key, value in database.get_study_system_attrs(self._stored).items():
            super().set_study_system_attr(study, key, value)
        with _no_collection():
            for trial in database.get_all_trials(self._stored, deepcopy=False):
                self._trial_ids.append(trial._trial_id)
                super().create_new_trial(study, trial)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Write a trial that is begun inside, with all that is known of it at the end, in one transaction."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
            if self._begun is not None:
                trial, self._begun = self.get_trial(self._begun), None
                self._trial_ids.append(self.database.create_new_trial(self._stored, trial))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if not self._at_once:
            self._trial_ids.append(self.database.create_new_trial(self._stored, template_trial))
            return super().create_new_trial(study_id, template_trial)
        assert self._begun is None, "one trial at a time"
        self._begun = super().create_new_trial(study_id, template_trial)
        return self._begun

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.database.set_study_user_attr(self._stored, key, value)
        super().set_study_user_attr(study_id, key, _as_read(value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.database.set_study_system_attr(self._stored, key, value)
        super().set_study_system_attr(study_id, key, _as_read(value))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if trial_id != self._begun:
            self.database.set_trial_param(self._trial_ids[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if trial_id != self._begun:
            self.database.set_trial_state_values(self._trial_ids[trial_id], state, values)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        if trial_id != self._begun:
            self.database.set_trial_intermediate_value(self._trial_ids[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != self._begun:
            self.database.set_trial_user_attr(self._trial_ids[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, _as_read(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id != self._begun:
            self.database.set_trial_system_attr(self._trial_ids[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, _as_read(value))
