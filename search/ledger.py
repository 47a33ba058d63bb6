"""The ledger: one Optuna study in a database is the truth about what was asked for and what came back.

Whatever else shows a study (MLflow, the leaderboard) is written from it. Running the same command again
continues from it: finished trials are kept, trials that were interrupted are asked for again, and a
configuration that is the same model as a finished one is answered with that one's value, not trained.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search.spaces import SAMPLERS, Point, Study
from trainables.config import RunConfig
from trainables.metrics import VAL_PPL

# User attributes of an Optuna trial.
CONFIG, HASH, METRICS, COMPUTE, REASON, REPEAT_OF, RETRY_OF = (
    "config", "config_hash", "metrics", "compute", "reason", "repeat_of", "retry_of",
)  # fmt: skip
DEFINITION = "definition"  # user attribute of the Optuna study
RUN_AGAIN = "run_again"  # as DEFINITION: numbers of failed trials that the next command runs again
INTERRUPTED = "interrupted"
LOST = "the worker process died"
MAX_LOSSES = 3  # a configuration whose worker died so often is failed
optuna.logging.set_verbosity(optuna.logging.ERROR)  # it announces every study and trial

MAX_REPEATS = 5  # repeated proposals answered in a row before an untried point is drawn


@dataclass(frozen=True)
class Assignment:
    """One configuration to train."""

    number: int  # of the Optuna trial
    config: RunConfig


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


def open_storage(database: Path) -> optuna.storages.RDBStorage:
    """The Optuna database, made if need be."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock")):  # initialised by one process at a time
        if not database.exists():  # whole or not at all: one that was cut off half made could never be opened again
            scratch = database.with_name(f".{database.name}.new")
            for left_behind in database.parent.glob(f"{scratch.name}*"):
                left_behind.unlink()
            optuna.storages.RDBStorage(f"sqlite:///{scratch.resolve()}").engine.dispose()
            scratch.rename(database)
        return optuna.storages.RDBStorage(
            f"sqlite:///{database.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}}
        )


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    return "; ".join(f"{n} is {wanted.get(n)!r}, was {stored.get(n)!r}" for n in names)


class Ledger:
    """One study on record. Only one process at a time may hold it (the caller keeps the lock)."""

    def __init__(self, study: Study, name: str, database: Path) -> None:
        """Open the study `name`, or begin it.

        Raises:
            ValueError: a study of that name has another definition; the differences are named.
        """
        self.study, self.name = study, name
        wanted = json.loads(json.dumps(study.definition()))
        self.storage = open_storage(database)
        self.optuna = optuna.create_study(
            storage=self.storage, study_name=name, direction="minimize", load_if_exists=True
        )
        stored = self.optuna.user_attrs.get(DEFINITION)
        if stored is None:
            self.optuna.set_user_attr(DEFINITION, wanted)
        elif stored != wanted:
            raise ValueError(
                f"study {name!r} exists with another definition ({_differences(stored, wanted)}): give another --name"
            )
        # read once: what `run_again` adds is for the next command
        self._again = frozenset(self.optuna.user_attrs.get(RUN_AGAIN, ()))
        self._parked: dict[str, list[int]] = {}  # config hash -> trials that wait for a running one's value
        self._recover()

    def _recover(self) -> None:
        """Trials that a killed driver left running are interrupted."""
        for trial in self._trials(TrialState.RUNNING):
            self.interrupt(trial.number)

    def interrupt(self, number: int, reason: str = INTERRUPTED) -> None:
        """A trial that was cut off, and those that wait for its value: failed; `_queue` asks for it again."""
        own_hash = self._trial(number).user_attrs.get(HASH, "")
        for cut_off in (number, *self._parked.pop(own_hash, [])):
            self._tell(cut_off, None, TrialState.FAIL, {REASON: reason})

    def lose(self, number: int) -> str | None:
        """A trial whose worker died: it is asked for again, or failed after `MAX_LOSSES` times; then, why."""
        own_hash = self._trial(number).user_attrs[HASH]
        lost = [t for t in self._trials(TrialState.FAIL) if t.user_attrs.get(REASON) == LOST]
        if 1 + sum(t.user_attrs.get(HASH) == own_hash for t in lost) < MAX_LOSSES:
            self.interrupt(number, LOST)
            return None
        reason = f"{LOST} {MAX_LOSSES} times"
        self.fail(number, reason)
        return reason

    def ended(self, number: int) -> bool:
        """Whether a trial's end is on record."""
        return self._trial(number).state.is_finished()

    def run_again(self, numbers: Iterable[int]) -> None:
        """Have the next command run these failed trials again."""
        self.optuna.set_user_attr(RUN_AGAIN, sorted(self._again.union(numbers)))

    def _cut_off(self, trial: FrozenTrial) -> bool:
        """Whether a trial is to be asked for again."""
        return trial.user_attrs.get(REASON) in (INTERRUPTED, LOST) or trial.number in self._again

    def _queue(self) -> bool:
        """Queue what comes before the sampler's proposals; whether anything is queued.

        That is interrupted trials, with their parameters, then fixed points. It is read from the record each
        time, so that they keep their order and a kill at any moment loses none.
        """
        if self._trials(TrialState.WAITING):
            return True
        made = {t.user_attrs.get(HASH) for t in self._made()}
        for trial in self._trials(TrialState.FAIL):
            own_hash = trial.user_attrs.get(HASH)  # none: it was cut off before it had parameters
            if self._cut_off(trial) and own_hash is not None and own_hash not in made:
                self.optuna.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
                return True
        for point in self.study.fixed_points:
            if self._config(point).config_hash() not in made:
                self.optuna.enqueue_trial(self.study.space.params(point))
                return True
        return False

    def _proposals(self) -> int:
        """How many configurations were asked for; interrupted ones do not count, so that seeds stay the same."""
        return sum(not self._cut_off(t) for t in self._trials())

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)  # none named: all

    def _made(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials that stand for a configuration of their own: no repeats, no interrupted ones."""
        return [t for t in self._trials(*states) if REPEAT_OF not in t.user_attrs and not self._cut_off(t)]

    def finished(self) -> list[FrozenTrial]:
        """Trials with a result."""
        return self._made(TrialState.COMPLETE)

    def failed(self) -> list[FrozenTrial]:
        """Trials that ended without one, and will not be tried again."""
        return self._made(TrialState.FAIL)

    def open_trials(self) -> int:
        """How many configurations are still to be asked for."""
        parked = {number for numbers in self._parked.values() for number in numbers}
        running = [t for t in self._made(TrialState.RUNNING) if t.number not in parked]
        used = len(self.finished()) + len(self.failed()) + len(running)
        return max(0, self.study.trials - used)

    def next(self) -> Assignment | None:
        """The next configuration to train, marked as running; None when there is none left."""
        if self.open_trials() == 0:
            return None
        for _ in range(MAX_REPEATS):
            if not self._queue() and self.study.sampler is None:
                return None  # an exact grid: all asked for
            assignment = self._ask()
            if assignment is not None:
                return assignment
        untried = self._untried()
        if not untried:
            return None
        rng = random.Random(f"{self.study.base.seed}:untried:{self._proposals()}")
        self.optuna.enqueue_trial(self.study.space.params(rng.choice(untried)))
        return self._ask()

    def _ask(self) -> Assignment | None:
        """Ask the sampler once; None where it proposed what is known already, which is answered on the spot."""
        if self.study.sampler is not None:
            self.optuna.sampler = make_sampler(self.study.sampler, self.study.base.seed, self._proposals())
        trial = self.optuna.ask()
        config = self._config(self.study.space.suggest(trial))
        own_hash = config.config_hash()
        trial.set_user_attr(HASH, own_hash)
        trial.set_user_attr(CONFIG, config.flat())
        for known in self._made(TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING):
            if known.number != trial.number and known.user_attrs.get(HASH) == own_hash:
                self._answer(trial.number, known)
                return None
        return Assignment(trial.number, config)

    def _config(self, point: Point) -> RunConfig:
        return self.study.base.replace(**point)

    def _answer(self, number: int, known: FrozenTrial) -> None:
        if known.state == TrialState.RUNNING:
            self._parked.setdefault(known.user_attrs[HASH], []).append(number)
            return
        self._tell(number, known.value, known.state, {REPEAT_OF: known.number})

    def _untried(self) -> list[Point]:
        tried = {t.user_attrs.get(HASH) for t in self._trials()}
        return [p for p in self.study.space.points() if self._config(p).config_hash() not in tried]

    def complete(self, number: int, figures: dict[str, float], compute: str = "") -> None:
        """A trial's result, and how it was computed."""
        self._tell(number, figures[VAL_PPL], TrialState.COMPLETE, {METRICS: figures, COMPUTE: compute})
        self._release(number)

    def fail(self, number: int, reason: str) -> None:
        """A trial that has no result, and why."""
        self._tell(number, None, TrialState.FAIL, {REASON: reason})
        self._release(number)

    def _release(self, number: int) -> None:
        known = self._trial(number)
        for parked in self._parked.pop(known.user_attrs[HASH], []):
            self._answer(parked, known)

    def _trial_id(self, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(self.name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _trial(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._trial_id(number))

    def _tell(self, number: int, value: float | None, state: TrialState, attrs: dict[str, Any]) -> None:
        for key, attr in attrs.items():
            self.storage.set_trial_user_attr(self._trial_id(number), key, attr)
        self.optuna.tell(number, value, state=state)

    def best(self) -> FrozenTrial | None:
        """The finished trial of the lowest validation perplexity."""
        return min(self.finished(), key=lambda t: t.value, default=None)  # type: ignore[arg-type, return-value]


def trial_config(trial: FrozenTrial) -> RunConfig:
    """The configuration of a trial on record."""
    return RunConfig.from_flat(trial.user_attrs[CONFIG])


def sorted_by_value(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Best first."""
    return sorted(trials, key=lambda t: (t.value, t.number))
