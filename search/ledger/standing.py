"""How a study stands: what is on record, against what was asked for. Nothing here changes it."""

import hashlib
import json
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.ledger.budgets import Budgets
from search.ledger.replicates import most_replicates, open_replicates
from search.ledger.results import Results
from search.ledger.storage import RecordedStudy
from search.ledger.trials import ENDED, HASH, REPLICATE_OF, SUMMARY, SYNCED
from search.spaces import Point, Study
from trainables.config import RunConfig

Ending = tuple[str, int | None]  # MLflow's parent run, and when it ended last


class Standing(Results):
    """A study on record, and what is still to be asked for."""

    def __init__(self, record: RecordedStudy, study: Study, seeds: int) -> None:
        """`study` is what was asked for; its finalists are run with `seeds` seeds in all."""
        super().__init__(record)
        self.study, self.seeds = study, seeds
        self.digest: str | None = None  # of the code and device of new trials, once the driver knows it
        self._parked: dict[str, list[int]] = {}  # config hash -> trials that wait for a running one's value
        self._fixed_hashes = {self._config(point).config_hash() for point in study.fixed_points}

    def _config(self, point: Point) -> RunConfig:
        return self.study.base.replace(**point)

    def has_ended(self, number: int) -> bool:
        """Whether a trial's end is on record."""
        return self._trials()[number].state.is_finished()

    def made(self) -> int:
        """How many configurations have ended."""
        return len(self._made(*ENDED))

    def ended(self) -> list[tuple[float | None, bool]]:
        """What `Budgets` looks at: of each trial with an outcome its value, if finished, and if it was proposed."""
        fixed = self._fixed_hashes
        return [
            (t.value if t.state == TrialState.COMPLETE else None, t.user_attrs[HASH] not in fixed)
            for t in self._made(TrialState.COMPLETE, TrialState.PRUNED)
        ]

    def open_trials(self) -> int:
        """How many configurations are still to be asked for."""
        parked = {number for numbers in self._parked.values() for number in numbers}
        running = [t for t in self._made(TrialState.RUNNING) if t.number not in parked]
        return max(0, self.study.trials - self.made() - len(running))

    def enough(self, budgets: Budgets) -> str | None:
        """Why no trial of the study's own is to be asked for now; None while one is."""
        if self.open_trials() == 0:
            return "all trials of this study are finished"
        return budgets.used_up(self.ended())

    def nothing_to_run(self, budgets: Budgets) -> str | None:
        """Why there is nothing to run at all: `enough`, and no replicate is to follow; None while there is."""
        reason = self.enough(budgets)
        if not reason and self._exhausted():
            reason = "every model of this study's space has been tried: a wider space is a new study"
        return None if reason and self.open_replicates() and not budgets.out_of_time() else reason

    def open_replicates(self) -> list[tuple[FrozenTrial, int]]:
        """Finalists, as they stand now, with the seeds that are still to be asked for."""
        return open_replicates(self, self.study, self.seeds, self.digest)

    def planned_replicates(self) -> int:
        """How many there are and will be; as long as trials of the study's own are open, at most."""
        if self.open_trials() == 0:
            return len(self.replicates()) + len(self.open_replicates())
        return max(most_replicates(self.study, self.seeds), len(self.replicates()))

    def undecided(self) -> bool:
        """Whether replicates may follow once the study's own running trials have ended."""
        return self.seeds > 1 and bool(self._made(TrialState.RUNNING))

    def _without_replicates(self) -> list[FrozenTrial]:
        return [t for t in self._trials() if REPLICATE_OF not in t.user_attrs]

    def _proposals(self) -> int:
        """How many configurations were asked for; interrupted ones do not count, so that seeds stay the same."""
        return sum(not self._cut_off(t) for t in self._without_replicates())

    def _untried(self) -> list[Point]:
        tried = {t.user_attrs.get(HASH) for t in self._trials()}
        return [p for p in self.study.space.points() if self._config(p).config_hash() not in tried]

    def _exhausted(self) -> bool:
        """Whether the space has no model left, however many trials are asked for."""
        ended = {t.user_attrs[HASH] for t in self._made(*ENDED)}
        return all(self._config(point).config_hash() in ended for point in self.study.space.points())

    def summary(self) -> dict[str, Any]:
        """What the study's inputs are, in figures; empty before they were made."""
        return dict(self.optuna.user_attrs.get(SUMMARY, {}))

    def is_synced(self, ending: Ending) -> bool:
        """Whether MLflow's runs were complete when the parent run ended so, and no trial has ended since."""
        told: list[Any] = self.optuna.user_attrs.get(SYNCED, [])
        return told == [*ending, self._all_ended()]

    def _all_ended(self) -> str:
        """A digest of which trials have ended; their number would not tell one from another that was run again."""
        numbers = sorted(t.number for t in self.made_with_replicates())
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]
