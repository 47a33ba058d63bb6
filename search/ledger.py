"""The ledger: one Optuna study in a database is the truth about what was asked for and what came back.

Whatever else shows a study (MLflow, the leaderboard) is written from it. Running the same command again
continues from it: finished trials are kept, trials that were interrupted are asked for again, and a
configuration that is the same model as a finished one is answered with that one's value, not trained.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search.budgets import UNLIMITED, Budgets
from search.pruning import Judge
from search.replicates import most_replicates, open_replicates
from search.results import (
    COMPUTE,
    CONFIG,
    DEFINITION,
    HASH,
    INTERRUPTED,
    LOST,
    METRICS,
    REASON,
    REPEAT_OF,
    REPLICATE_OF,
    RETRY_OF,
    RUN_AGAIN,
    SEED,
    SUMMARY,
    TOLD,
    Results,
    open_storage,
)
from search.samplers import make_sampler
from search.spaces import NO_SCHEDULER, Point, Study
from search.storage import WriteThrough
from trainables.config import RunConfig
from trainables.metrics import VAL_PPL

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
Ending = tuple[str, int | None]  # MLflow's parent run, and when it ended last
MAX_LOSSES = 3  # a configuration whose worker died so often is failed
MAX_REPEATS = 5  # repeated proposals answered in a row before an untried point is drawn


@dataclass(frozen=True)
class Assignment:
    """One configuration to train."""

    number: int  # of the Optuna trial
    config: RunConfig
    replicate_of: int | None = None  # the trial of which this is another seed


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    contents = {"data_fingerprint": "the data has changed", "embedding_fingerprint": "the embedding has changed"}
    return "; ".join(contents.get(n) or f"{n} is {wanted.get(n)!r}, was {stored.get(n)!r}" for n in names)


class Ledger(Results):
    """One study on record. Only one process at a time may hold it (the caller keeps the lock)."""

    def __init__(self, study: Study, name: str, database: Path, seeds: int = 1) -> None:
        """Open the study `name`, or begin it; its finalists are run with `seeds` seeds in all.

        Raises:
            ValueError: a study of that name has another definition; the differences are named.
        """
        self.study, self.seeds = study, seeds
        wanted = json.loads(json.dumps(study.definition()))
        self.storage = WriteThrough(open_storage(database), name)
        super().__init__(optuna.load_study(storage=self.storage, study_name=name))
        stored = self.optuna.user_attrs.get(DEFINITION)
        if stored is None:
            self.optuna.set_user_attr(DEFINITION, wanted)
        elif stored != wanted:
            raise ValueError(
                f"study {name!r} exists with another definition ({_differences(stored, wanted)}): "
                "begin a new one under another --name"
            )
        self._judge = (
            None if study.scheduler == NO_SCHEDULER else Judge(study.scheduler, name, self.storage, self._made)
        )
        self._parked: dict[str, list[int]] = {}  # config hash -> trials that wait for a running one's value
        self._fixed_hashes = {self._config(point).config_hash() for point in study.fixed_points}
        self._recover()

    def _recover(self) -> None:
        """Trials that a killed driver left running are interrupted."""
        for trial in self._trials(TrialState.RUNNING):
            self.interrupt(trial.number)

    def interrupt(self, number: int, reason: str = INTERRUPTED) -> None:
        """A trial that was cut off, and those that wait for its value: failed; `_queue` asks for it again."""
        own_hash = self._trial(number).user_attrs.get(HASH, "")
        self._tell(number, None, TrialState.FAIL, {REASON: reason})
        for waiting in self._parked.pop(own_hash, []):
            self._tell(waiting, None, TrialState.FAIL, {REASON: INTERRUPTED})

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

    def has_ended(self, number: int) -> bool:
        """Whether a trial's end is on record."""
        return self._trial(number).state.is_finished()

    def run_again(self, numbers: Iterable[int]) -> None:
        """Have the next command run these failed trials again."""
        known = self.optuna.user_attrs.get(RUN_AGAIN, ())
        self.optuna.set_user_attr(RUN_AGAIN, sorted({*known, *numbers}))

    def _queue(self) -> bool:
        """Queue what comes before the sampler's proposals; whether anything is queued.

        That is interrupted trials, with their parameters, then fixed points. It is read from the record each
        time, so that they keep their order and a kill at any moment loses none.
        """
        if self._trials(TrialState.WAITING):
            return True
        made = {t.user_attrs.get(HASH) for t in self._made()}
        for trial in self._trials(TrialState.FAIL):
            if REPLICATE_OF in trial.user_attrs:
                continue  # `_next_replicate` finds by itself what is missing
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
        return sum(not self._cut_off(t) for t in self._without_replicates())

    def _without_replicates(self) -> list[FrozenTrial]:
        return [t for t in self._trials() if REPLICATE_OF not in t.user_attrs]

    def made(self) -> int:
        """How many configurations have ended."""
        return len(self._made(*ENDED))

    def made_with_replicates(self) -> list[FrozenTrial]:
        """All trials that have ended for good, further seeds included."""
        return self._made(*ENDED) + self.replicates(*ENDED)

    def ended(self) -> list[tuple[float | None, bool]]:
        """What `Budgets` looks at: of each trial with an outcome its value, if finished, and if it was proposed."""
        fixed = self._fixed_hashes
        return [
            (t.value if t.state == TrialState.COMPLETE else None, t.user_attrs[HASH] not in fixed)
            for t in self._made(TrialState.COMPLETE, TrialState.PRUNED)
        ]

    def enough(self, budgets: Budgets) -> str:
        """Why no trial of the study's own is to be asked for now; empty while one is."""
        if self.open_trials() == 0:
            return "all trials of this study are finished"
        return budgets.used_up(self.ended())

    def nothing_to_run(self, budgets: Budgets) -> str:
        """Why there is nothing to run at all: `enough`, and no replicate is to follow; empty while there is."""
        reason = self.enough(budgets)
        if not reason and self._exhausted():
            reason = "every model of this study's space has been tried: a wider space is a new study"
        return "" if reason and self.open_replicates() and not budgets.out_of_time() else reason

    def summary(self) -> dict[str, Any]:
        """What the study's inputs are, in figures; empty before they were made."""
        return dict(self.optuna.user_attrs.get(SUMMARY, {}))

    def keep_summary(self, summary: dict[str, Any]) -> None:
        """Keep it, for a run that has nothing to train and so makes no inputs."""
        self.optuna.set_user_attr(SUMMARY, summary)

    def all_told(self, ending: Ending) -> bool:
        """Whether MLflow's runs were complete when the parent run ended so, and no trial has ended since."""
        told: list[Any] = self.optuna.user_attrs.get(TOLD, [])
        return told == [*ending, self._all_ended()]

    def keep_told(self, ending: Ending) -> None:
        """They are complete now."""
        self.optuna.set_user_attr(TOLD, [*ending, self._all_ended()])

    def _all_ended(self) -> str:
        """A digest of which trials have ended; their number would not tell one from another that was run again."""
        numbers = sorted(t.number for t in self.made_with_replicates())
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]

    def open_trials(self) -> int:
        """How many configurations are still to be asked for."""
        parked = {number for numbers in self._parked.values() for number in numbers}
        running = [t for t in self._made(TrialState.RUNNING) if t.number not in parked]
        return max(0, self.study.trials - self.made() - len(running))

    def next(self, budgets: Budgets = UNLIMITED) -> Assignment | None:
        """The next configuration to train, marked as running; None when there is none left, or none `undecided`."""
        own = None if self.enough(budgets) else self._next_own()
        return own or (None if budgets.out_of_time() else self._next_replicate())

    def _next_own(self) -> Assignment | None:
        """The next configuration of the study's own seed."""
        for _ in range(MAX_REPEATS):
            with self.storage.at_once():
                if not self._queue() and self.study.sampler is None:
                    return None  # an exact grid: all asked for
                assignment = self._ask()
            if assignment is not None:
                return assignment
        untried = self._untried()
        if not untried:
            return None
        rng = random.Random(f"{self.study.base.seed}:untried:{self._proposals()}")
        with self.storage.at_once():
            self.optuna.enqueue_trial(self.study.space.params(rng.choice(untried)))
            return self._ask()

    def _ask(self) -> Assignment | None:
        """Ask the sampler once; None where it proposed what is known already, which is answered on the spot."""
        if self.study.sampler is not None:
            self._use_sampler(make_sampler(self.study.sampler, self.study.base.seed, self._proposals()))
        trial = self.optuna.ask()
        config = self._config(self.study.space.suggest(trial))
        replicate_of = trial.user_attrs.get(REPLICATE_OF)
        if replicate_of is not None:
            config = config.replace(seed=trial.user_attrs[SEED])
        own_hash = config.config_hash()
        trial.set_user_attr(HASH, own_hash)
        trial.set_user_attr(CONFIG, config.flat())
        if replicate_of is not None:
            return Assignment(trial.number, config, replicate_of)
        for known in self._made(*ENDED, TrialState.RUNNING):
            if known.number != trial.number and known.user_attrs.get(HASH) == own_hash:
                self._answer(trial.number, known)
                return None
        return Assignment(trial.number, config)

    def _use_sampler(self, sampler: BaseSampler) -> None:
        """Let `sampler` propose next, from the study's own trials: replicates would count its favourites twice."""
        if not self.replicates():
            self.optuna.sampler = sampler
            return
        self.optuna.sampler = RandomSampler(seed=0)  # what comes next is queued: it proposes nothing
        if not self._trials(TrialState.WAITING):
            shown = optuna.create_study(sampler=sampler, direction="minimize")
            shown.add_trials(self._without_replicates())
            self.optuna.enqueue_trial(self.study.space.params(self.study.space.suggest(shown.ask())))

    def open_replicates(self) -> list[tuple[FrozenTrial, int]]:
        """Finalists, as they stand now, with the seeds that are still to be asked for."""
        return open_replicates(self, self.study, self.seeds)

    def planned_replicates(self) -> int:
        """How many there are and will be; as long as trials of the study's own are open, at most."""
        if self.open_trials() == 0:
            return len(self.replicates()) + len(self.open_replicates())
        return max(most_replicates(self.study, self.seeds), len(self.replicates()))

    def undecided(self) -> bool:
        """Whether replicates may follow once the study's own running trials have ended."""
        return self.seeds > 1 and bool(self._made(TrialState.RUNNING))

    def _next_replicate(self) -> Assignment | None:
        if self.undecided() or not (missing := self.open_replicates()):
            return None
        with self.storage.at_once():
            if not self._trials(TrialState.WAITING):  # one may wait where a driver was killed
                trial, seed = missing[0]
                self.optuna.enqueue_trial(trial.params, user_attrs={REPLICATE_OF: trial.number, SEED: seed})
            return self._ask()

    def _config(self, point: Point) -> RunConfig:
        return self.study.base.replace(**point)

    def _answer(self, number: int, known: FrozenTrial) -> None:
        if known.state == TrialState.RUNNING:
            self._parked.setdefault(known.user_attrs[HASH], []).append(number)
            return
        if known.state == TrialState.PRUNED:  # its value is that of its last epoch, which Optuna looks up itself
            for epoch, ppl in known.intermediate_values.items():
                self.storage.set_trial_intermediate_value(number, epoch, ppl)
        value = known.value if known.state == TrialState.COMPLETE else None
        self._tell(number, value, known.state, {REPEAT_OF: known.number})

    def _untried(self) -> list[Point]:
        tried = {t.user_attrs.get(HASH) for t in self._trials()}
        return [p for p in self.study.space.points() if self._config(p).config_hash() not in tried]

    def _exhausted(self) -> bool:
        """Whether the space has no model left, however many trials are asked for."""
        ended = {t.user_attrs[HASH] for t in self._made(*ENDED)}
        return all(self._config(point).config_hash() in ended for point in self.study.space.points())

    def complete(self, number: int, figures: dict[str, float], compute: str = "") -> None:
        """A trial's result, and how it was computed."""
        self._tell(number, figures[VAL_PPL], TrialState.COMPLETE, {METRICS: figures, COMPUTE: compute})
        self._release(number)

    def epoch(self, number: int, epoch: int, value: float) -> str:
        """Record an epoch's validation perplexity; why the trial is to be stopped for it, empty if it is not."""
        self.storage.set_trial_intermediate_value(number, epoch, value)
        if self._judge is None:
            return ""
        trial = self._trial(number)
        if REPLICATE_OF in trial.user_attrs:
            return ""
        reason = self._judge.reason(trial)  # asked for fixed points too: others are measured by them
        return "" if trial.user_attrs[HASH] in self._fixed_hashes else reason

    def prune(self, number: int, reason: str, figures: dict[str, float]) -> None:
        """A trial that was stopped for what it had shown: why, and the figures that it has."""
        self._tell(number, None, TrialState.PRUNED, {REASON: reason, METRICS: figures})
        self._release(number)

    def fail(self, number: int, reason: str) -> None:
        """A trial that has no result, and why."""
        self._tell(number, None, TrialState.FAIL, {REASON: reason})
        self._release(number)

    def _release(self, number: int) -> None:
        if not self._parked:
            return
        known = self._trial(number)
        for parked in self._parked.pop(known.user_attrs[HASH], []):
            self._answer(parked, known)

    def _trial(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(number)

    def _tell(self, number: int, value: float | None, state: TrialState, attrs: dict[str, Any]) -> None:
        for key, attr in attrs.items():
            self.storage.set_trial_user_attr(number, key, attr)
        self.optuna.tell(number, value, state=state)
