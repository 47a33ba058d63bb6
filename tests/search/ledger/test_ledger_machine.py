"""The ledger under any order of events: trials end in all ways, drivers die, and plain Optuna writes in between."""

import math
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from costless import ask_next, base_config, small_study
from entries import context_modes
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.trial import FrozenTrial, TrialState

from search.ledger.ledger import ENDED_ELSEWHERE, MAX_LOSSES, Assignment, Ledger
from search.ledger.replicates import finalists
from search.ledger.storage import open_storage
from search.ledger.trials import CONFIG, ENDED, HASH, INTERRUPTED, LOST, REPEAT_OF, REPLICATE_OF, SEED, trial_config
from search.spaces import SEARCHED
from trainables.metrics import VAL_PPL

SOME = st.integers(0, 10)  # which of the trials that run, in a ring
PPLS = st.integers(2, 9).map(float)  # few, so that trials tie


@cache
def empty_database() -> Path:
    path = Path(tempfile.mkdtemp()) / "new.db"
    open_storage(path).engine.dispose()
    return path


class LedgerMachine(RuleBasedStateMachine):
    """What was done to a ledger, and what must be so after each step."""

    @initialize(sampled=st.booleans(), seeds=st.integers(1, 3))
    def begin(self, sampled: bool, seeds: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.database = Path(shutil.copy(empty_database(), self.folder.name))
        self.sampled, self.seeds = sampled, seeds
        self.study = small_study(4) if sampled else context_modes(base_config(), (8,))
        self.ledger = Ledger(self.study, "s", self.database, seeds)
        self.running: dict[int, Assignment] = {}
        self.values: dict[int, float] = {}  # of finished trials
        self.owed: set[str] = set()  # hashes of the study's own that were cut off
        self.losses: Counter[str] = Counter()
        self.taken: set[int] = set()  # running trials that plain Optuna has ended
        self.foreign: dict[int, tuple[TrialState, Any]] = {}

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for number in list(self.running):
            self.complete(number, 5.0)
        while self.ask():
            self.complete(next(iter(self.running)), 5.0)
        self.all_is_in_order()
        assert not self.owed or self.ledger.made() >= self.study.trials  # a study may be resumed with fewer trials
        models = len(list(self.study.space.points()))
        assert self.ledger.made() >= min(self.study.trials, models)
        assert not self.ledger.open_replicates()
        self.ledger.storage.engine.dispose()
        self.folder.cleanup()

    # What a driver does.

    @rule()
    def next(self) -> None:
        self.ask()

    def ask(self) -> bool:
        """Ask for the next trial; whether there is one."""
        before, own_open = self.ledger.finished(), self.ledger.open_trials()
        among = {t.number for t in finalists(self.ledger, self.study)}
        asked = {t.user_attrs[HASH] for t in self.ledger.replicates()}
        waiting = "_queued" in vars(self.ledger)  # as `ask_next` left it
        assignment = self.ledger.next()
        if assignment is None:
            assert self.running or not self.owed or own_open == 0
            return False
        key = assignment.config.config_hash()
        assert key not in {a.config.config_hash() for a in self.running.values()}
        if assignment.replicate_of is None:
            assert own_open > 0
            assert assignment.config.seed == self.study.base.seed
            assert key not in {t.user_attrs[HASH] for t in before}
            assert key in self.owed or not self.owed or waiting  # what was cut off comes first
            self.owed.discard(key)
        else:
            assert assignment.replicate_of in among
            assert key not in asked
            assert self.study.base.seed < assignment.config.seed < self.study.base.seed + self.seeds
            assert not [a for n, a in self.running.items() if a.replicate_of is None and n not in self.taken]
        self.running[assignment.number] = assignment
        return True

    @precondition(lambda self: self.sampled)
    @rule(which=SOME)
    def propose(self, which: int) -> None:
        """As a sampler that proposes anything, what is known already too."""
        if self.ledger.open_trials() == 0:
            return
        points = list(self.study.space.points())
        ask_next(self.ledger, **points[which % len(points)])
        self.ask()

    @precondition(lambda self: self.sampled and self.running)
    @rule(which=SOME)
    def propose_what_runs(self, which: int) -> None:
        config = self.running[self.pick(which)].config
        if self.ledger.open_trials() > 0 and config.seed == self.study.base.seed:
            ask_next(self.ledger, **{name: getattr(config, name) for name in SEARCHED})
            self.ask()

    @rule(ppls=st.lists(PPLS, min_size=2, max_size=5))
    def go_on(self, ppls: list[float]) -> None:
        """Several trials one after the other."""
        for ppl in ppls:
            if self.ask():
                self.complete(max(self.running), ppl)

    def pick(self, which: int) -> int:
        return sorted(self.running)[which % len(self.running)]

    def end(self, number: int, tell: Any, value: float | None = None) -> None:
        tell()
        assignment = self.running.pop(number)
        if number in self.taken:
            self.cut_off(assignment)
        elif value is not None:
            self.values[number] = value
        self.taken.discard(number)

    def cut_off(self, assignment: Assignment) -> None:
        if assignment.replicate_of is None:
            self.owed.add(assignment.config.config_hash())

    @precondition(lambda self: self.running)
    @rule(which=SOME, ppl=PPLS)
    def finish(self, which: int, ppl: float) -> None:
        self.complete(self.pick(which), ppl)

    def complete(self, number: int, ppl: float) -> None:
        self.end(number, lambda: self.ledger.complete(number, {VAL_PPL: ppl}), ppl)

    @precondition(lambda self: self.running)
    @rule(which=SOME)
    def fail(self, which: int) -> None:
        number = self.pick(which)
        self.end(number, lambda: self.ledger.fail(number, "diverged"))

    @precondition(lambda self: self.running)
    @rule(which=SOME, ppl=PPLS)
    def prune(self, which: int, ppl: float) -> None:
        number = self.pick(which)
        self.epoch(which, ppl)
        self.end(number, lambda: self.ledger.prune(number, "poor", {}))

    @precondition(lambda self: self.running)
    @rule(which=SOME, ppl=PPLS)
    def epoch(self, which: int, ppl: float) -> None:
        number = self.pick(which)
        epoch = len(self.ledger._trial(number).intermediate_values) + 1
        assert self.ledger.epoch(number, epoch, ppl) == (ENDED_ELSEWHERE if number in self.taken else None)

    @precondition(lambda self: self.running)
    @rule(which=SOME)
    def interrupt(self, which: int) -> None:
        number = self.pick(which)
        self.cut_off(self.running[number])
        self.end(number, lambda: self.ledger.interrupt(number))

    @precondition(lambda self: self.running)
    @rule(which=SOME)
    def lose(self, which: int) -> None:
        number = self.pick(which)
        assignment, key = self.running[number], self.running[number].config.config_hash()
        if number not in self.taken:
            self.losses[key] += 1
            if self.losses[key] < MAX_LOSSES:
                self.cut_off(assignment)
        reason = self.ledger.on_worker_lost(number)
        if number not in self.taken:
            assert (reason is None) == (self.losses[key] < MAX_LOSSES)
        self.end(number, lambda: None)

    def standing(self) -> Any:
        leader = self.ledger.leader()
        ended = [(t.number, t.state, t.value) for t in self.ledger.made_with_replicates()]
        return self.ledger.made(), ended, leader and (leader.first.number, leader.ppl)

    def reopen(self) -> None:
        for assignment in self.running.values():
            self.cut_off(assignment)
        self.running.clear()
        self.taken.clear()
        self.ledger.storage.engine.dispose()
        self.ledger = Ledger(self.study, "s", self.database, self.seeds)

    @rule()
    def kill(self) -> None:
        before = self.standing()
        self.reopen()
        assert self.standing() == before

    @rule(trials=st.integers(2, 7), seeds=st.integers(1, 3))
    def resume(self, trials: int, seeds: int) -> None:
        before, self.seeds = self.standing(), seeds
        if self.sampled:
            self.study = replace(self.study, trials=trials)
        self.reopen()
        assert self.standing() == before

    # What others do, by plain Optuna.

    def on_record(self) -> list[FrozenTrial]:
        storage = self.ledger.storage
        return storage.get_all_trials(storage.get_study_id_from_name("s"), deepcopy=False)

    def others(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self.ledger.storage)

    def left_by_others(self) -> None:
        last = self.on_record()[-1]
        self.foreign[last.number] = (last.state, last.value)

    @precondition(lambda self: self.running)
    @rule(which=SOME, state=st.sampled_from([TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]))
    def others_tell(self, which: int, state: TrialState) -> None:
        number = self.pick(which)
        if number not in self.taken:
            self.others().tell(number, 1.0 if state == TrialState.COMPLETE else None, state=state)
            self.taken.add(number)

    @rule(which=SOME)
    def others_enqueue(self, which: int) -> None:
        points = list(self.study.space.points())
        self.others().enqueue_trial(self.study.space.params(points[which % len(points)]))
        self.left_by_others()

    @rule()
    def others_add(self) -> None:
        self.others().add_trial(optuna.trial.create_trial(value=1.0))
        self.left_by_others()

    @rule()
    def others_ask(self) -> None:
        waiting = [n for n, (state, _) in self.foreign.items() if state == TrialState.WAITING]
        number = self.others().ask().number  # takes what waits, if anything does
        assert not waiting or number in waiting
        self.foreign[number] = (TrialState.RUNNING, None)

    # What must be so.

    @invariant()
    def all_is_in_order(self) -> None:
        record, here = self.on_record(), self.ledger._trials()
        self.check_numbers(record, here)
        self.check_finished(record, here)
        self.check_running(record, here)
        self.check_replicates()
        self.check_leader()

    def check_numbers(self, record: list[FrozenTrial], here: list[FrozenTrial]) -> None:
        """A trial has one number here and in the database, and what others put there is as they left it."""
        for stored, known in zip(record, here, strict=False):
            assert stored.user_attrs.get(HASH) == known.user_attrs.get(HASH)
        assert {n: (record[n].state, record[n].value) for n in self.foreign} == self.foreign
        assert all(number in self.foreign for number in range(len(here), len(record)))

    def check_finished(self, record: list[FrozenTrial], here: list[FrozenTrial]) -> None:
        finished = self.ledger.finished()
        done = [*finished, *self.ledger.replicates(TrialState.COMPLETE)]
        assert {t.number: t.value for t in done} == self.values
        assert all(record[n].value == value for n, value in self.values.items())
        assert max(Counter(t.user_attrs[HASH] for t in finished).values(), default=1) == 1
        for trial in record:
            if CONFIG in trial.user_attrs:
                assert trial_config(trial).config_hash() == trial.user_attrs[HASH]
            if REPEAT_OF in trial.user_attrs:
                first = record[trial.user_attrs[REPEAT_OF]]
                assert not self.ledger._cut_off(here[first.number])  # nor is a repeat of what is run again
                assert (trial.state, trial.value) == (first.state, first.value)
                assert trial.user_attrs[HASH] == first.user_attrs[HASH]

    def check_running(self, record: list[FrozenTrial], here: list[FrozenTrial]) -> None:
        parked = {number for numbers in self.ledger._parked.values() for number in numbers}
        stored = {t.number for t in record if t.state == TrialState.RUNNING and HASH in t.user_attrs}
        assert stored == (self.running.keys() - self.taken) | parked
        assert {t.number for t in here if t.state == TrialState.RUNNING} - self.taken == stored
        cut_off = {t.user_attrs[HASH] for t in here if self.ledger._cut_off(t) and HASH in t.user_attrs}
        assert cut_off >= self.owed
        assert {t.user_attrs.get("reason") for t in here if self.ledger._cut_off(t)} <= {None, INTERRUPTED, LOST}

    def check_replicates(self) -> None:
        asked = [(t.user_attrs[REPLICATE_OF], t.user_attrs[SEED]) for t in self.ledger.replicates()]
        assert len(asked) == len(set(asked))
        own = {t.number for t in self.ledger.finished()}
        assert {first for first, _ in asked} <= own

    def check_leader(self) -> None:
        of_seeds: dict[str, list[float]] = {}
        for trial in self.ledger.made_with_replicates():
            if trial.state == TrialState.COMPLETE:
                key = trial_config(trial).replace(seed=self.study.base.seed).config_hash()
                of_seeds.setdefault(key, []).append(self.values[trial.number])
        assert all(t.state in ENDED for t in self.ledger.made_with_replicates())
        leader = self.ledger.leader()
        if not of_seeds:
            assert leader is None
            return
        most = max(map(len, of_seeds.values()))
        means = [math.prod(values) ** (1 / most) for values in of_seeds.values() if len(values) == most]
        assert leader is not None
        assert len(leader.trials) == most
        assert math.isclose(leader.ppl, min(means), rel_tol=1e-12)


LedgerMachine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink a failure takes minutes; what it says is a program that can be run
    suppress_health_check=list(HealthCheck),
)
TestLedgerMachine = LedgerMachine.TestCase
