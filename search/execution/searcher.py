"""What Tune asks for its next trial: the ledger."""

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from search.ledger.budgets import Budgets
from search.ledger.ledger import Assignment, Ledger
from trainables.two_phase import Task


class PicklesEmpty:
    """Tune pickles its searcher and callbacks to be able to restore itself; ours restore from the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerSearcher(PicklesEmpty, Searcher):
    """Hands the ledger's next configuration to Tune. It is told nothing: the callback tells the ledger."""

    def __init__(self, ledger: Ledger, profile: Path | None, budgets: Budgets) -> None:
        super().__init__()
        self._ledger, self._profile, self._budgets = ledger, profile, budgets
        self.assigned: dict[str, Assignment] = {}  # by Ray's trial id
        self.ended: set[str] = set()  # of these, as the recorder says
        self.stopped = False  # nothing more is asked for
        self._none_left_at = -1  # trials that had ended when the ledger last had none

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.stopped:
            return str(Searcher.FINISHED)
        if self._none_left_at == len(self.ended):
            return None
        assignment = self._ledger.next(self._budgets)
        if assignment is None:
            if len(self.ended) == len(self.assigned):
                return str(Searcher.FINISHED)
            self._none_left_at = len(self.ended)  # one that runs may have to be run again, or replicates follow it
            return None
        self.assigned[trial_id] = assignment
        return Task(assignment.config, self._profile if len(self.assigned) == 1 else None).as_config()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn here."""

    def save(self, checkpoint_path: str) -> None:
        """Tune saves searchers now and then; this one's state is the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """As `save`."""
