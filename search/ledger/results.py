"""What a study has on record, to look at only: configurations with their seeds, failures, the leader."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.ledger.storage import RecordedStudy, open_storage
from search.ledger.trials import (
    CONFIG,
    DEFINITION,
    ENDED,
    INTERRUPTED,
    LOST,
    METRICS,
    PROVENANCE,
    REASON,
    REPEAT_OF,
    REPLICATE_OF,
    RUN_AGAIN,
    SAME_RESULTS,
    SEED,
    STUDY_ID,
    THREADS,
    ended_elsewhere,
    no_seed_of,
    trial_config,
)
from trainables.config import RunConfig
from trainables.host.digests import Provenance
from trainables.phases.convergence import converged
from trainables.records import RECORD as RECORD


@dataclass(frozen=True)
class Configuration:
    """One configuration's finished trials: the study's own first, then its replicates by seed."""

    trials: tuple[FrozenTrial, ...]

    @property
    def first(self) -> FrozenTrial:
        """The trial that the search made."""
        return self.trials[0]

    @property
    def config(self) -> RunConfig:
        """With the first trial's seed."""
        return trial_config(self.first)

    @property
    def converged(self) -> bool:
        """Whether Phase 1 converged with each seed."""
        return all(converged(trial_config(t), t.user_attrs[METRICS]) for t in self.trials)

    @property
    def ppls(self) -> list[float]:
        """Validation perplexity of each seed."""
        return [t.value for t in self.trials if t.value is not None]

    @property
    def ppl(self) -> float:
        """Geometric mean over seeds: exp of the mean loss; with one seed its very value."""
        if len(self.trials) == 1:
            return self.ppls[0]
        return math.exp(math.fsum(map(math.log, self.ppls)) / len(self.ppls))


@dataclass(frozen=True)
class Origin:
    """Trials whose figures can be compared: of one digest, or of several that were seen to give the same figures."""

    label: str  # A, B, … by their first trial
    digests: frozenset[str]  # "" where none was recorded
    trials: tuple[FrozenTrial, ...]  # that finished
    made: tuple[dict[str, Any], ...]  # `Results.provenance_of` each

    @property
    def shown(self) -> str:
        """For people."""
        return _shown(self.made[-1])

    def parts(self) -> dict[str, list[int]]:
        """The numbers of its trials by what each was made by, for people."""
        found: dict[str, list[int]] = {}
        for trial, made in zip(self.trials, self.made, strict=True):
            found.setdefault(_shown(made), []).append(trial.number)
        return found


def _shown(made: dict[str, Any]) -> str:
    if not made:
        return "code not recorded"
    threads = f", {made['threads']} thread(s)" if made.get("threads") else ""
    return f"code {made['code'][:8]}, torch {made['torch']}, {made['device']}, {made['compute']}{threads}"


def _letters(rank: int) -> str:
    """A, …, Z, AA, …"""
    return (_letters(rank // 26 - 1) if rank >= 26 else "") + chr(ord("A") + rank % 26)


class Results:
    """A study's record in Optuna. Nothing here changes it."""

    def __init__(self, study: RecordedStudy) -> None:
        self.optuna, self.name = study, study.study_name
        self._again = frozenset(study.user_attrs.get(RUN_AGAIN, ()))  # read once: what is added is for the next command
        self._threads: dict[str, int] = study.user_attrs.get(THREADS, {})
        self.left_out = study.contradicting
        self._seed_of: dict[int, str] = {}  # replicate -> what is wrong with it, where that is known

    @property
    def definition(self) -> dict[str, Any]:
        """What the study is (`spaces.Study.definition`)."""
        found: dict[str, Any] = self.optuna.user_attrs[DEFINITION]
        return found

    @property
    def study_id(self) -> str:
        """Which study of this name it is, wherever its runs are."""
        return str(self.optuna.user_attrs.get(STUDY_ID, ""))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)  # none named: all

    def _made(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials that stand for a configuration of their own: no repeats, replicates or interrupted ones."""
        return [
            t
            for t in self._trials(*states)
            if REPEAT_OF not in t.user_attrs and REPLICATE_OF not in t.user_attrs and not self._cut_off(t)
        ]

    def _cut_off(self, trial: FrozenTrial) -> bool:
        """Whether a trial is to be asked for again."""
        if trial.user_attrs.get(REASON) in (INTERRUPTED, LOST) or trial.number in self._again:
            return True
        return ended_elsewhere(trial)

    def finished(self) -> list[FrozenTrial]:
        """Trials with a result."""
        return self._made(TrialState.COMPLETE)

    def failed(self) -> list[FrozenTrial]:
        """Trials that ended without one, and will not be tried again."""
        return self._made(TrialState.FAIL)

    def pruned(self) -> list[FrozenTrial]:
        """Trials that were stopped for what they had shown; their REASON says what."""
        return self._made(TrialState.PRUNED)

    def replicates(self, *states: TrialState) -> list[FrozenTrial]:
        """Further seeds of configurations that were finished; no interrupted ones, none that are of another."""
        return [t for t in self._claimed_replicates(*states) if not self._no_seed_of(t)]

    def _claimed_replicates(self, *states: TrialState) -> list[FrozenTrial]:
        return [t for t in self._trials(*states) if REPLICATE_OF in t.user_attrs and not self._cut_off(t)]

    def no_replicates(self) -> dict[int, str]:
        """Trials that say they are a further seed of one that they are no seed of, and why not; they count nowhere."""
        return {t.number: what for t in self._claimed_replicates() if (what := self._no_seed_of(t))}

    def _no_seed_of(self, trial: FrozenTrial) -> str:
        if CONFIG not in trial.user_attrs:
            return ""  # one that waits
        if trial.number not in self._seed_of:
            self._seed_of[trial.number] = no_seed_of(trial, self._trials())
        return self._seed_of[trial.number]

    def made_with_replicates(self) -> list[FrozenTrial]:
        """All trials that have ended for good, further seeds included."""
        return self._made(*ENDED) + self.replicates(*ENDED)

    def provenance_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial's `digests.Provenance` as a dict, threads of earlier versions' trials included; empty: not known."""
        recorded: dict[str, Any] = trial.user_attrs.get(PROVENANCE) or {}
        threads = self._threads.get(str(trial.number))
        return recorded | {"threads": threads} if recorded and threads else recorded

    def digest_of(self, trial: FrozenTrial) -> str:
        """Of the code, torch, device and threads that gave a trial's figures; empty where it was not recorded."""
        made = self.provenance_of(trial)
        return Provenance(**made).digest if made else ""

    def _same_results(self, digest: str) -> frozenset[str]:
        """All digests that count as this one."""
        known = self.optuna.user_attrs.get(SAME_RESULTS, ())
        return next((frozenset(each) for each in known if digest in each), frozenset({digest}))

    def alike(self, trials: Iterable[FrozenTrial], digest: str) -> list[FrozenTrial]:
        """Those of `trials` whose code and devices give the same figures as those of `digest`."""
        same = self._same_results(digest)
        return [trial for trial in trials if self.digest_of(trial) in same]

    def comparable(self, one: FrozenTrial, other: FrozenTrial) -> bool:
        """Whether the figures of two trials come from code and devices that give the same."""
        return bool(self.alike([one], self.digest_of(other)))

    def origins(self) -> list[Origin]:
        """Finished trials, replicates left out, by what gave their figures; in the order of their first trials."""
        found: dict[frozenset[str], list[FrozenTrial]] = {}
        for trial in sorted(self.finished(), key=lambda t: t.number):
            found.setdefault(self._same_results(self.digest_of(trial)), []).append(trial)
        labels = (_letters(rank) for rank in range(len(found)))
        return [
            Origin(label, key, tuple(trials), tuple(map(self.provenance_of, trials)))
            for label, (key, trials) in zip(labels, found.items(), strict=True)
        ]

    def apart(self) -> list[FrozenTrial]:
        """Finished replicates that no mean over seeds has: that is of one code and device, the first seed's."""
        first = {trial.number: trial for trial in self.finished()}
        finished = self.replicates(TrialState.COMPLETE)
        return [t for t in finished if not self.comparable(t, first[t.user_attrs[REPLICATE_OF]])]

    def configurations(self) -> list[Configuration]:
        """All finished configurations, by mean loss over their seeds."""
        seeds, apart = {trial.number: [trial] for trial in self.finished()}, {t.number for t in self.apart()}
        for trial in sorted(self.replicates(TrialState.COMPLETE), key=lambda t: t.user_attrs[SEED]):
            if trial.number not in apart:
                seeds[trial.user_attrs[REPLICATE_OF]].append(trial)
        found = [Configuration(tuple(trials)) for trials in seeds.values()]
        return sorted(found, key=lambda c: (c.ppl, c.first.number))

    def leader(self) -> Configuration | None:
        """The best mean loss among the configurations of the most seeds: a lucky seed alone leads nothing."""
        origins = self.origins()
        if len(origins) > 1:  # only like is compared with like: those of which there are most, the later of equals
            largest = max(origins, key=lambda origin: (len(origin.trials), origin.label))
            numbers = {trial.number for trial in largest.trials}
            found = [c for c in self.configurations() if c.first.number in numbers]
        else:
            found = self.configurations()
        most = max((len(c.trials) for c in found), default=0)
        return next((c for c in found if len(c.trials) == most), None)

    def best(self) -> FrozenTrial | None:
        """The leader's own trial, of the study's seed."""
        leader = self.leader()
        return leader.first if leader else None


def load_results(name: str, database: Path) -> Results:
    """A study on record, which must be there."""
    return Results(RecordedStudy(name, open_storage(database)))
