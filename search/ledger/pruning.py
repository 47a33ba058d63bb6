"""Which trials are stopped early: Optuna's pruners, asked about what is on record, so that a resume changes nothing."""

from collections.abc import Callable, Container, Sequence

import optuna
from optuna.pruners import BasePruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from search.spaces import SCHEDULERS


class _OnRecord(optuna.Study):
    """A study as pruners see it: an interrupted trial and its second try, or a repeat, do not count twice."""

    among: Sequence[FrozenTrial] = ()

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self.among if states is None or trial.state in states]


class EpochPruner:
    """One of Optuna's pruners, asked after each epoch's validation perplexity."""

    def __init__(self, kind: str, study: str, storage: optuna.storages.BaseStorage) -> None:
        """`kind` is a scheduler other than none."""
        self.kind, self.options = kind, SCHEDULERS[kind]
        kinds: dict[str, Callable[..., BasePruner]] = {
            "asha": SuccessiveHalvingPruner,
            "first-epoch": PercentilePruner,
        }
        self._pruner = kinds[kind](**self.options)
        self._study = _OnRecord(study, storage)

    def prune_reason(self, trial: FrozenTrial, among: Sequence[FrozenTrial]) -> str | None:
        """Why a trial whose latest epoch is on record is to be stopped; None if it is not.

        Args:
            among: trials that it can be compared with, itself among them; each stands for a configuration of its own.
        """
        self._study.among = among
        epoch = trial.last_step
        assert epoch is not None
        if self.kind == "first-epoch" and epoch > 1:
            return None
        if not self._pruner.prune(self._study, trial):
            return None
        value = trial.intermediate_values[epoch]
        return f"{self.kind}: validation perplexity {value:.2f} after epoch {epoch} is not good enough"
