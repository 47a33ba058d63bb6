"""A study's record, in memory for whoever reads it and in the database for good.

Optuna's database takes some twenty queries to hand out a trial and to hear of its end, most of them to read again what
this process wrote itself. Only one process of this program writes to a study (its driver, which holds the lock).

Plain Optuna in another process asks for no lock. What it puts into a study is left as it is and shows here as a failed
trial of no configuration, so that numbers stay the database's; a trial of ours that it ends is one that was cut off.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.ledger.trials import DEFINITION, HASH, INTERRUPTED, REASON, ended_elsewhere, is_ours, self_contradiction
from trainables.errors import OtherVersionError, StoppedError
from trainables.host.collection import no_collection
from trainables.records import sqlite_uri

optuna.logging.set_verbosity(optuna.logging.ERROR)  # it announces every study and trial


def open_storage(database: Path) -> optuna.storages.RDBStorage:
    """The Optuna database, made if need be.

    Raises:
        OtherVersionError: it is of another version of Optuna.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock")):  # initialised by one process at a time
        if not database.exists():  # whole or not at all: one that was cut off half made could never be opened again
            scratch = database.with_name(f".{database.name}.new")
            for left_behind in database.parent.glob(f"{scratch.name}*"):
                left_behind.unlink()
            optuna.storages.RDBStorage(sqlite_uri(scratch.resolve())).engine.dispose()
            scratch.rename(database)
        url = sqlite_uri(database.resolve())
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        except RuntimeError as error:  # of no class of its own
            if "compatible with the table schema" not in str(error):
                raise
            upgrade = "optuna storage upgrade --storage" if "storage upgrade" in str(error) else ""
            raise OtherVersionError(url, "optuna", upgrade) from error


def _as_read(value: Any) -> Any:
    """An attribute as the database gives it back."""
    return json.loads(json.dumps(value))


def _as_seen(trial: FrozenTrial, ours: bool) -> FrozenTrial:
    """A trial as it stands here: another program's has no content, one of ours that it ended was cut off."""
    if not ours:
        return optuna.trial.create_trial(state=TrialState.FAIL)
    if not ended_elsewhere(trial):
        return trial
    seen = copy.copy(trial)
    seen.state, seen.values, seen.user_attrs = TrialState.FAIL, None, trial.user_attrs | {REASON: INTERRUPTED}
    return seen


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
        self.foreign = 0  # trials that another program put into the study, or changed
        self.contradicting: dict[int, tuple[str, str]] = {}  # those among them that contradict themselves: hash, how
        self.ended_elsewhere: set[int] = set()  # numbers of our trials that another process ended
        self._study = study = super().create_new_study(database.get_study_directions(self._stored), name)
        for key, value in database.get_study_user_attrs(self._stored).items():
            super().set_study_user_attr(study, key, value)
        for key, value in database.get_study_system_attrs(self._stored).items():
            super().set_study_system_attr(study, key, value)
        with no_collection():
            for trial in database.get_all_trials(self._stored, deepcopy=False):
                self._take_in(trial)

    def _take_in(self, trial: FrozenTrial) -> None:
        """Remember a trial of the database."""
        self._trial_ids.append(trial._trial_id)
        definition = super().get_study_user_attrs(self._study).get(DEFINITION)
        ours = is_ours(trial, definition)
        if not ours:
            self.foreign += 1
            if what := self_contradiction(trial, definition):
                self.contradicting[trial.number] = trial.user_attrs[HASH], what
        elif ended_elsewhere(trial):
            self.ended_elsewhere.add(trial.number)
        super().create_new_trial(self._study, _as_seen(trial, ours))

    def _take_in_foreign(self) -> None:
        """Remember what another program has put into the study meanwhile."""
        with suppress(KeyError):  # there is no further trial
            while True:
                found = self.database.get_trial_id_from_study_id_trial_number(self._stored, len(self._trial_ids))
                self._take_in(self.database.get_trial(found))

    def _write(self, trial: FrozenTrial | None) -> None:
        """Put a new trial into the database."""
        number = len(self._trial_ids)
        self._trial_ids.append(self.database.create_new_trial(self._stored, trial))
        if self.database.get_trial_number_from_id(self._trial_ids[-1]) != number:
            raise StoppedError("another process wrote into this study at the same moment")

    def take_end(self, number: int) -> None:
        """Another process has ended a trial that ran here: it was cut off."""
        self.ended_elsewhere.add(number)
        super().set_trial_user_attr(number, REASON, INTERRUPTED)
        super().set_trial_state_values(number, TrialState.FAIL)

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
                self._write(trial)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if self._begun is None:
            self._take_in_foreign()
        if not self._at_once:
            self._write(template_trial)
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
