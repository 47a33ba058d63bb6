"""The ledger: one Optuna study in a database is the truth about what was asked for and what came back.

Whatever else shows a study (MLflow, the leaderboard) is written from it. Running the same command again
continues from it: finished trials are kept, trials that were interrupted are asked for again, and a
configuration that is the same model as a finished one is answered with that one's value, not trained.
"""

import json
import random
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.ledger.budgets import UNLIMITED, Budgets
from search.ledger.pruning import EpochPruner
from search.ledger.samplers import given, make_sampler, propose
from search.ledger.standing import Ending, Standing
from search.ledger.storage import RecordedStudy, open_storage
from search.ledger.trials import (
    ACCEPTED,
    COMPUTE,
    CONFIG,
    DEFINITION,
    ENDED,
    HASH,
    INTERRUPTED,
    LOST,
    METRICS,
    PROVENANCE,
    REASON,
    RECORD,
    REPEAT_OF,
    REPLICATE_OF,
    RETRY_OF,
    RUN_AGAIN,
    SAME_RESULTS,
    SEED,
    STUDY_ID,
    SUMMARY,
    SYNCED,
    THREADS,
)
from search.spaces import NO_SCHEDULER, Point, Study, differences
from trainables.config import RunConfig
from trainables.host.digests import Provenance
from trainables.metrics import VAL_PPL

MAX_LOSSES = 3  # a configuration whose worker died so often is failed
MAX_FAILURES = 3  # times that a configuration is run to fail alike, before a study goes on without it
ENDED_ELSEWHERE = "another process has ended this trial in the database: it is run again"
MAX_REPEATS = 5  # repeated proposals answered in a row before an untried point is drawn

Made = dict[str, Any] | None  # `digests.Provenance` of a trial; None or empty: not known


def _kept(provenance: Made, record: str) -> dict[str, Any]:
    return ({PROVENANCE: provenance} if provenance else {}) | ({RECORD: record} if record else {})


@dataclass(frozen=True)
class Assignment:
    """One configuration to train."""

    number: int  # of the Optuna trial
    config: RunConfig
    replicate_of: int | None = None  # the trial of which this is another seed


class Ledger(Standing):
    """One study on record. Only one process at a time may hold it (the caller keeps the lock)."""

    def __init__(self, study: Study, name: str, database: Path, seeds: int = 1) -> None:
        """Open the study `name`, or begin it; its finalists are run with `seeds` seeds in all.

        Raises:
            ValueError: a study of that name has another definition; the differences are named.
        """
        wanted = json.loads(json.dumps(study.definition()))
        self.storage = open_storage(database)
        optuna.create_study(storage=self.storage, study_name=name, direction="minimize", load_if_exists=True)
        super().__init__(RecordedStudy(name, self.storage), study, seeds)
        if STUDY_ID not in self.optuna.user_attrs:
            self.optuna.set_user_attr(STUDY_ID, uuid.uuid4().hex)
        stored = self.optuna.user_attrs.get(DEFINITION)
        if stored is None:
            self.optuna.set_user_attr(DEFINITION, wanted)
        elif stored != wanted:
            raise ValueError(
                f"study {name!r} exists with another definition ({differences(stored, wanted)}): "
                "begin a new one under another --name"
            )
        self._pruner = None if study.scheduler == NO_SCHEDULER else EpochPruner(study.scheduler, name, self.storage)
        self._recover()

    def _recover(self) -> None:
        """Trials that a killed driver left running, or an earlier version's waiting, are interrupted."""
        for trial in self._trials(TrialState.RUNNING, TrialState.WAITING):
            self.interrupt(trial.number)

    def interrupt(self, number: int, reason: str = INTERRUPTED) -> None:
        """A trial that was cut off, and those that wait for its value: failed; `_queued` asks for it again."""
        self.optuna.end(number, TrialState.FAIL, None, {REASON: reason})
        self._release(number)

    def on_worker_lost(self, number: int, provenance: Made = None) -> str | None:
        """A trial whose worker died: it is asked for again, or failed after `MAX_LOSSES` times; then, why."""
        own_hash = self._trial(number).user_attrs[HASH]
        lost = [t for t in self._trials(TrialState.FAIL) if t.user_attrs.get(REASON) == LOST]
        if 1 + sum(t.user_attrs.get(HASH) == own_hash for t in lost) < MAX_LOSSES:
            self.interrupt(number, LOST)
            return None
        reason = f"{LOST} {MAX_LOSSES} times"
        self.fail(number, reason, provenance)
        return reason

    def run_again(self, numbers: Iterable[int], always: bool) -> bool:
        """Have the next command run these failed trials again; whether it will any of them.

        Args:
            always: also those that failed `MAX_FAILURES` times: it is no fault of theirs.
        """
        known = self.optuna.user_attrs.get(RUN_AGAIN, ())
        failed = Counter(self._trial(n).user_attrs[HASH] for n in {*known, *numbers})
        again = [n for n in numbers if always or failed[self._trial(n).user_attrs[HASH]] < MAX_FAILURES]
        self.optuna.set_user_attr(RUN_AGAIN, sorted({*known, *again}))
        return bool(again)

    def _queued(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What comes before the sampler's proposals: parameters, and attributes of the trial to be; None if nothing.

        That is interrupted trials, then fixed points. It is read from the record each time, so that they keep their
        order and a kill at any moment loses none.
        """
        made = {t.user_attrs.get(HASH) for t in self._made()}
        for trial in self._trials(TrialState.FAIL):
            if REPLICATE_OF in trial.user_attrs:
                continue  # `_next_replicate` finds by itself what is missing
            own_hash = trial.user_attrs.get(HASH)  # none: it was cut off before it had parameters
            if self._cut_off(trial) and own_hash is not None and own_hash not in made:
                return trial.params, {RETRY_OF: trial.number}
        for point in self.study.fixed_points:
            if self._config(point).config_hash() not in made:
                return self.study.space.params(point), {}
        return None

    def keep_summary(self, summary: dict[str, Any]) -> None:
        """Keep it, for a run that has nothing to train and so makes no inputs.

        Raises:
            ValueError: the inputs are not those that the study began with.
        """
        before = self.summary().get("inputs", summary["inputs"])
        if before != summary["inputs"]:
            raise ValueError(
                f"study {self.name!r} began with another embedding table, and the cache no longer has it: it was made "
                "anew and differs (other hardware, or another number of cores). Bring the study's cache folder back, "
                "or begin a new one under another --name"
            )
        self.optuna.set_user_attr(SUMMARY, summary)

    def accepts(self, digest: str) -> bool:
        """Whether the study was told to go on with this code, torch and device."""
        return digest in self.optuna.user_attrs.get(ACCEPTED, ())

    def accept(self, digest: str) -> None:
        """It is from now on."""
        self.optuna.set_user_attr(ACCEPTED, sorted({*self.optuna.user_attrs.get(ACCEPTED, ()), digest}))

    def keep_same_results(self, one: str, other: str) -> None:
        """The digests `one` and `other` were seen to give the same figures: from now on they count as one."""
        both = self._same_results(one) | self._same_results(other)
        apart = [each for each in self.optuna.user_attrs.get(SAME_RESULTS, ()) if not both & set(each)]
        self.optuna.set_user_attr(SAME_RESULTS, [*apart, sorted(both)])

    def keep_threads(self, found: dict[int, int]) -> None:
        """CPU threads of trials whose provenance is without them; what counted as one or was accepted still does."""
        if not found:
            return
        self._threads = self._threads | {str(number): threads for number, threads in found.items()}
        self.optuna.set_user_attr(THREADS, self._threads)
        full: dict[tuple[str, int], str] = {}  # (digest without threads, threads) -> with them
        for number, threads in found.items():
            trial = self._trial(number)
            full[Provenance(**trial.user_attrs[PROVENANCE]).digest, threads] = self.digest_of(trial)
        alike = self.optuna.user_attrs.get(SAME_RESULTS, [])
        each = [[full[d, n] for d in group if (d, n) in full] for group in alike for n in sorted(set(found.values()))]
        self.optuna.set_user_attr(SAME_RESULTS, [*alike, *(sorted(group) for group in each if len(group) > 1)])
        for (digest, _), with_threads in full.items():
            if self.accepts(digest):
                self.accept(with_threads)

    def mark_synced(self, ending: Ending) -> None:
        """MLflow's runs are complete now."""
        self.optuna.set_user_attr(SYNCED, [*ending, self._all_ended()])

    def next(self, budgets: Budgets = UNLIMITED) -> Assignment | None:
        """The next configuration to train, marked as running; None when there is none left, or none `undecided`."""
        own = None if self.enough(budgets) else self._next_own()
        return own or (None if budgets.out_of_time() else self._next_replicate())

    def _next_own(self) -> Assignment | None:
        """The next configuration of the study's own seed."""
        for _ in range(MAX_REPEATS):
            if queued := self._queued():
                assignment = self._begin(*given(self.study.space, queued[0]), queued[1])
            elif self.study.sampler is None:
                return None  # an exact grid: all asked for
            else:
                sampler = make_sampler(self.study.sampler, self.study.base.seed, self._proposals())
                # replicates would count its favourites twice
                assignment = self._begin(*propose(self.study.space, sampler, self._without_replicates()), {})
            if assignment is not None:
                return assignment
        untried = self._untried()
        if not untried:
            return None
        rng = random.Random(f"{self.study.base.seed}:untried:{self._proposals()}")
        return self._begin(*given(self.study.space, self.study.space.params(rng.choice(untried))), {})

    def _begin(self, trial: FrozenTrial, point: Point, attrs: dict[str, Any]) -> Assignment | None:
        """Begin a trial with these attributes; None where it is of what is known already, and answered on the spot."""
        replicate_of = attrs.get(REPLICATE_OF)
        config = self._config(point)
        if replicate_of is not None:
            config = config.replace(seed=attrs[SEED])
        own_hash = config.config_hash()
        known = [t for t in self._made(*ENDED, TrialState.RUNNING) if t.user_attrs.get(HASH) == own_hash]
        trial.user_attrs = attrs | {HASH: own_hash, CONFIG: config.flat()}
        number = self.optuna.begin(trial)
        if known and replicate_of is None:
            self._answer(number, known[0])
            return None
        return Assignment(number, config, replicate_of)

    def _next_replicate(self) -> Assignment | None:
        if self.undecided() or not (missing := self.open_replicates()):
            return None
        trial, seed = missing[0]
        return self._begin(*given(self.study.space, trial.params), {REPLICATE_OF: trial.number, SEED: seed})

    def _answer(self, number: int, known: FrozenTrial) -> None:
        if known.state == TrialState.RUNNING:
            self._parked.setdefault(known.user_attrs[HASH], []).append(number)
            return
        if known.state == TrialState.PRUNED:  # its value is that of its last epoch, which Optuna looks up itself
            for epoch, ppl in known.intermediate_values.items():
                self.optuna.report(number, epoch, ppl)
        value = known.value if known.state == TrialState.COMPLETE else None
        self.optuna.end(number, known.state, value, {REPEAT_OF: known.number})

    def complete(
        self, number: int, figures: dict[str, float], compute: str = "", provenance: Made = None, record: str = ""
    ) -> None:
        """A trial's result, how it was computed, by what code, torch and device, and the digest of its file."""
        attrs = {METRICS: figures, COMPUTE: compute, **_kept(provenance, record)}
        self.optuna.end(number, TrialState.COMPLETE, figures[VAL_PPL], attrs)
        self._release(number)

    def epoch(self, number: int, epoch: int, value: float, provenance: Made = None) -> str | None:
        """Record an epoch's validation perplexity; why the trial is to be stopped for it, None if it is not."""
        if not self.optuna.report(number, epoch, value):
            return ENDED_ELSEWHERE
        trial = self._trial(number)
        if self._pruner is None or REPLICATE_OF in trial.user_attrs:
            return None
        if provenance and PROVENANCE not in trial.user_attrs:  # before its end, since running ones are compared
            self.optuna.set_trial_attr(number, PROVENANCE, provenance)
            trial = self._trial(number)
        # asked for fixed points too: others are measured by them
        reason = self._pruner.prune_reason(trial, self.alike(self._made(), self.digest_of(trial)))
        return None if trial.user_attrs[HASH] in self._fixed_hashes else reason

    def prune(
        self, number: int, reason: str, figures: dict[str, float], provenance: Made = None, record: str = ""
    ) -> None:
        """A trial that was stopped for what it had shown: why, and the figures that it has."""
        self.optuna.end(
            number, TrialState.PRUNED, None, {REASON: reason, METRICS: figures, **_kept(provenance, record)}
        )
        self._release(number)

    def fail(self, number: int, reason: str, provenance: Made = None, record: str = "") -> None:
        """A trial that has no result, and why."""
        self.optuna.end(number, TrialState.FAIL, None, {REASON: reason, **_kept(provenance, record)})
        self._release(number)

    def _release(self, number: int) -> None:
        if not self._parked:
            return
        known = self._trial(number)
        for parked in self._parked.pop(known.user_attrs.get(HASH, ""), []):
            if self._cut_off(known):
                self.optuna.end(parked, TrialState.FAIL, None, {REASON: INTERRUPTED})
            else:
                self._answer(parked, known)

    def _trial(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def foreign_changes(self) -> str | None:
        """What another program has done to this study in the database, in one sentence; None where nothing."""
        said = []
        if self.optuna.foreign:
            said.append(f"{len(self.optuna.foreign)} trial(s) were put into it, which are left alone")
        if self.optuna.ended_elsewhere:
            said.append(f"{len(self.optuna.ended_elsewhere)} of its own were ended without figures and are run again")
        return f"another program wrote into this study: {' and '.join(said)}" if said else None
