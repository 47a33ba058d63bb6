"""A study that goes on with other code, another torch or another kind of device than some of its trials had."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from optuna.trial import FrozenTrial

from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, read_trial_record
from search.ledger.replicates import open_replicates
from search.ledger.results import CONFIG, HASH, METRICS, PROVENANCE, Origin, digest_of
from trainables.host.digests import Provenance
from trainables.metrics import ATTEMPTS, PHASE1_SAVED, PHASE1_SECONDS, PHASE1_SHARED, PHASE2_SECONDS, TOTAL_SECONDS
from trainables.records import Records

OF_THE_RUN = {ATTEMPTS, PHASE1_SAVED, PHASE1_SECONDS, PHASE1_SHARED, PHASE2_SECONDS, TOTAL_SECONDS}  # not of the model
Repeat = Callable[[dict[str, Any]], tuple[dict[str, float], list[float]]]  # flat config -> figures, nats by document


def others(ledger: Ledger, now: Provenance) -> list[Origin]:
    """Whose finished trials the figures of new ones cannot be compared with, as far as is known."""
    return [origin for origin in ledger.origins() if now.digest not in origin.digests]


def refusal(ledger: Ledger, now: Provenance) -> str | None:
    """Why the study does not go on without being told to; None where all its trials are of this code and device."""
    found = [f"{len(origin.trials)} trial(s): {_difference(origin.trials[-1], now)}" for origin in others(ledger, now)]
    if pruned := _pruned_by_others(ledger, now):
        found.append(f"{len(pruned)} pruned trial(s): {_difference(pruned[-1], now)}")
    if not found or ledger.accepts(now.digest):
        return None
    what = "; ".join(found)
    return (
        f"study {ledger.name!r} has trials of other code or on another device ({what}): with --accept-code it goes on, "
        "trains the cheapest of them again, and compares like with like only where the figures differ"
    )


def _pruned_by_others(ledger: Ledger, now: Provenance) -> list[FrozenTrial]:
    """Pruned trials of another code or device; of earlier versions it was not recorded, and those are none."""
    recorded = [trial for trial in ledger.pruned() if trial.user_attrs.get(PROVENANCE)]
    alike = {trial.number for trial in ledger.alike(recorded, now.digest)}
    return [trial for trial in recorded if trial.number not in alike]


def without_replicates(ledger: Ledger, now: Provenance) -> str:
    """Which finished configurations are run with no further seeds, and why; empty where none is left out."""
    wanted = {trial.number: trial for trial, _ in open_replicates(ledger, ledger.study, ledger.seeds)}
    left_out = sorted(wanted.keys() - {trial.number for trial in ledger.alike(wanted.values(), now.digest)})
    if not left_out:
        return ""
    numbers = ", ".join(map(str, left_out))
    return f"no further seeds of other code's configurations (trials {numbers}): a mean over seeds is of one code"


def _difference(trial: FrozenTrial, now: Provenance) -> str:
    recorded = trial.user_attrs.get(PROVENANCE)
    if not recorded:
        return "code not recorded"
    was, here = recorded, asdict(now)
    return ", ".join(f"{key} was {was.get(key)}, is {here[key]}" for key in here if was.get(key) != here[key])


def accept(ledger: Ledger, records: Records, now: Provenance, repeat: Repeat) -> list[str]:
    """Train the cheapest trial of each other code or device again; where it gives the same, both count as one.

    Returns:
        A sentence on each.
    """
    said = []
    for origin in others(ledger, now):
        trial = min(origin.trials, key=_seconds)
        figures, nats = repeat(trial.user_attrs[CONFIG])
        record = read_trial_record(records.trial_record(ledger.name, trial.user_attrs[HASH]))
        apart = _apart(trial, record, figures, nats)
        about = f"trial {trial.number} ({origin.shown}) trained again"
        if apart:
            said.append(f"{about}: {apart}. Its figures and new ones are kept apart: only like is compared with like")
        else:
            ledger.keep_same_results(digest_of(trial), now.digest)
            said.append(f"{about}: equal to the last digit. Both count as one from now on")
    if pruned := _pruned_by_others(ledger, now):
        numbers = ", ".join(str(trial.number) for trial in pruned)
        said.append(f"pruned by other code (trials {numbers}): they stay so, and no new trial is measured by them")
    ledger.accept(now.digest)
    return said


def _seconds(trial: FrozenTrial) -> float:
    figures: dict[str, float] = trial.user_attrs[METRICS]
    return figures[PHASE1_SECONDS] + figures[PHASE2_SECONDS]


def _apart(trial: FrozenTrial, record: TrialRecord | None, figures: dict[str, float], nats: list[float]) -> str:
    """Which figures differ; empty where none does."""
    before = trial.user_attrs[METRICS]
    for name in sorted((before.keys() & figures.keys()) - OF_THE_RUN):
        if before[name] != figures[name]:
            return f"{name} was {before[name]!r}, is {figures[name]!r}"
    if record is not None and record.nats and record.nats != nats:
        return "the losses by document differ"
    return ""
