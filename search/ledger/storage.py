"""A study's trials as they count here, over Optuna's own database.

Only one process of this program writes to a study (its driver, which holds the lock). Plain Optuna in another process
asks for no lock. What it puts into a study is left as it is and counts here as a failed trial of no configuration, so
that numbers stay the database's; a trial of ours that it ends is one that was cut off.
"""

import copy
import math
from collections.abc import Container
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from search.ledger.trials import DEFINITION, HASH, INTERRUPTED, REASON, ended_elsewhere, is_ours, self_contradiction
from trainables.errors import OtherVersionError
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


class RecordedStudy(optuna.Study):
    """A study on record. Its trials are as of when this process last wrote or looked (`refresh`)."""

    def __init__(self, name: str, storage: RDBStorage) -> None:
        """Open the study `name`.

        Raises:
            KeyError: there is none.
        """
        super().__init__(name, storage)
        self._attrs = super().user_attrs
        self._stored: list[FrozenTrial] = []  # by number, as the database has them
        self._counted: list[FrozenTrial] = []  # and as they count
        self._begun: set[int] = set()  # numbers of trials that this process began and has not ended
        self.foreign: set[int] = set()  # numbers of trials that another program put into the study, or changed
        self.contradicting: dict[int, tuple[str, str]] = {}  # those among them that contradict themselves: hash, how
        self.ended_elsewhere: set[int] = set()  # numbers of our trials that another process ended
        with no_collection():
            self.refresh()

    @property
    def user_attrs(self) -> dict[str, Any]:
        """As of when this process last set one: nobody else does."""
        return dict(self._attrs)

    def set_user_attr(self, key: str, value: Any) -> None:
        super().set_user_attr(key, value)
        self._attrs = super().user_attrs

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        found = [trial for trial in self._counted if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def refresh(self) -> None:
        """Look at what has changed in the database."""
        stored = super().get_trials(deepcopy=False)
        for trial in stored[len(self._stored) :]:
            self._meet(trial)
        for number, trial in enumerate(stored):
            if number >= len(self._stored):
                self._counted.append(self._as_it_counts(trial))
            elif trial is not self._stored[number]:  # a trial that has ended stays the same object
                self._counted[number] = self._as_it_counts(trial)
        self._stored = stored

    def _meet(self, trial: FrozenTrial) -> None:
        """Decide whether a trial that is seen for the first time is ours."""
        definition = self._attrs.get(DEFINITION)
        if is_ours(trial, definition):
            return
        self.foreign.add(trial.number)
        if what := self_contradiction(trial, definition):
            self.contradicting[trial.number] = trial.user_attrs[HASH], what

    def _as_it_counts(self, trial: FrozenTrial) -> FrozenTrial:
        """Another program's has no content, one of ours that it ended was cut off: once it is known to who runs it."""
        number = trial.number
        if number in self.foreign:
            empty = optuna.trial.create_trial(state=TrialState.FAIL)
            empty.number, empty._trial_id = number, trial._trial_id
            return empty
        if number not in self.ended_elsewhere and not ended_elsewhere(trial):
            return trial
        if number in self._begun:
            return self._counted[number]
        self.ended_elsewhere.add(number)
        cut_off = copy.copy(trial)
        cut_off.state, cut_off.values = TrialState.FAIL, None
        cut_off.user_attrs = trial.user_attrs | {REASON: INTERRUPTED}
        return cut_off

    def begin(self, trial: FrozenTrial) -> int:
        """Put in a trial that runs, whole or not at all; its number."""
        trial_id = self._storage.create_new_trial(self._study_id, trial)
        self.refresh()
        number = next(t.number for t in reversed(self._counted) if t._trial_id == trial_id)
        self._begun.add(number)
        return number

    def set_trial_attr(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._counted[number]._trial_id, key, value)
        self.refresh()

    def report(self, number: int, step: int, value: float) -> bool:
        """A trial's value after a step; whether the trial still runs: another process may have ended it."""
        try:
            self._storage.set_trial_intermediate_value(self._counted[number]._trial_id, step, value)
        except UpdateFinishedTrialError:
            self._let_go(number)
            return False
        self.refresh()
        return True

    def end(self, number: int, state: TrialState, value: float | None, attrs: dict[str, Any]) -> None:
        """A trial's end, after its attributes; where another process has ended it already, it was cut off.

        Raises:
            ValueError: it has ended here already.
        """
        trial = self._counted[number]
        if state == TrialState.PRUNED and trial.last_step is not None:  # as Optuna's own `tell`
            last = trial.intermediate_values[trial.last_step]
            value = None if math.isnan(last) else last
        try:
            for key, attr in attrs.items():
                self._storage.set_trial_user_attr(trial._trial_id, key, attr)
            self._storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])
        except UpdateFinishedTrialError:
            self._let_go(number)
            return
        self._begun.discard(number)
        self.refresh()

    def _let_go(self, number: int) -> None:
        """The database refuses what is told of a trial."""
        if number in self.ended_elsewhere:
            return
        if self._counted[number].state.is_finished():
            raise ValueError(f"trial {number} has ended already")
        self._begun.discard(number)
        self.ended_elsewhere.add(number)
        self.refresh()
        self._counted[number] = self._as_it_counts(self._stored[number])
