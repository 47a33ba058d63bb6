"""A trial's file held against the ledger: what contradicts it is used for nothing, and said."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from search.ledger.records import TrialRecord, differing, read_trial_record
from search.ledger.trials import CONFIG, HASH, METRICS, RECORD
from trainables.records import Records

STATUS = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
SAME_EPOCH = 1e-6  # of a perplexity: a trial that began again with less memory may have its last digits otherwise


@dataclass(frozen=True)
class TrialFile:
    """What a trial that has ended left behind, and whether it may be used."""

    content: TrialRecord | None  # as it is, whatever is wrong with it; None where it cannot be read
    wrong: str = ""  # what is wrong with it; empty if nothing is
    contradicts: bool = False  # it, or the ledger itself, says something else than the ledger: one was edited
    digest: str = ""  # of its content
    intact: bool = False  # it is the one that the ledger keeps, so this is what the trial wrote

    @property
    def record(self) -> TrialRecord | None:
        """Its content, to be used; None where that is missing or contradicts the ledger."""
        return None if self.contradicts else self.content


def read_trial_file(trial: FrozenTrial, study: str, records: Records) -> TrialFile:
    """The file of a trial that has ended."""
    return held_against(trial, records.trial_record(study, trial.user_attrs[HASH]))


def held_against(trial: FrozenTrial, path: Path) -> TrialFile:
    """The file in `path`, which is to be that of a trial that has ended."""
    found = read_trial_record(path)
    if found is None:
        return TrialFile(None, f"{path.name} is damaged" if path.exists() else f"{path.name} is missing")
    record, digest = found
    kept = trial.user_attrs.get(RECORD, "")  # of earlier versions there is none
    intact = kept == digest
    what = next(_contradictions(trial, record), "")
    if not what and kept and not intact:
        what = "is not as the trial wrote it"
    if what:
        return TrialFile(record, f"{path.name} {what}", True, digest, intact)
    if what := best_epoch_wrong(trial):
        return TrialFile(record, what, True, digest, intact)
    lacks = trial.state == TrialState.COMPLETE and not record.nats
    return TrialFile(record, f"{path.name} has no losses by document" if lacks else "", False, digest, intact)


def best_epoch_wrong(trial: FrozenTrial) -> str:
    """Why a trial's value in the ledger is not the best of its epochs there; empty if it is, or none is on record."""
    epochs = trial.intermediate_values.values()
    if trial.state != TrialState.COMPLETE or trial.value is None or not epochs:
        return ""
    if math.isclose(min(epochs), trial.value, rel_tol=SAME_EPOCH):
        return ""
    return f"the ledger's value {trial.value:.6g} is not its best epoch's there, {min(epochs):.6g}"


def _contradictions(trial: FrozenTrial, record: TrialRecord) -> Iterator[str]:
    """What the file says otherwise than the ledger."""
    kept = trial.user_attrs
    if (record.trial, record.config_hash) != (trial.number, kept[HASH]):
        yield f"is of trial {record.trial}, configuration {record.config_hash}"
    if record.status != STATUS[trial.state]:
        yield f"says {record.status}, the ledger {STATUS[trial.state]}"
    if record.config and record.config != kept[CONFIG]:
        yield "has another configuration than the ledger"
    if record.seed != kept[CONFIG]["seed"]:
        yield f"has seed {record.seed}, the ledger {kept[CONFIG]['seed']}"
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return
    if record.metrics and (other := differing(kept[METRICS], record.metrics)):  # an earlier version's has none
        yield f"has other figures than the ledger: {', '.join(other)}"
    try:
        adds_up = not record.nats or record.unit_losses(trial.value) is not None
    except (TypeError, ValueError):  # no numbers
        adds_up = False
    if not adds_up:
        yield f"has losses by document that do not add up to the ledger's {trial.value:.6g}"
