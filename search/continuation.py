"""A study that goes on with other code, another torch or another kind of device than some of its trials had."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import FrozenTrial

from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord
from search.ledger.replicates import open_replicates
from search.ledger.results import Origin
from search.ledger.trial_files import read_trial_file
from search.ledger.trials import METRICS, PROVENANCE, trial_config
from trainables.config import RunConfig
from trainables.host.digests import Provenance
from trainables.metrics import ATTEMPTS, PHASE1_SAVED, PHASE1_SECONDS, PHASE1_SHARED, PHASE2_SECONDS, TOTAL_SECONDS
from trainables.records import Records

OF_THE_RUN = {ATTEMPTS, PHASE1_SAVED, PHASE1_SECONDS, PHASE1_SHARED, PHASE2_SECONDS, TOTAL_SECONDS}  # not of the model
# CPU threads (0: as trials have) -> figures, nats by document
Repeat = Callable[[RunConfig, int], tuple[dict[str, float], list[float]]]


def others(ledger: Ledger, now: Provenance) -> list[Origin]:
    """Whose finished trials the figures of new ones cannot be compared with, as far as is known."""
    return [origin for origin in ledger.origins() if now.digest not in origin.digests]


def threads_before(ledger: Ledger, records: Records) -> dict[int, int]:
    """CPU threads of trials that an earlier version recorded none with, from what else is on record of them."""
    found, last = {}, ledger.summary()
    for trial in ledger.made_with_replicates():
        made = ledger.provenance_of(trial)
        if not made or "threads" in made:
            continue
        left = read_trial_file(trial, ledger.name, records).record
        runtime = left.runtime if left and "threads" in left.runtime else last
        if not runtime.get("gpus") and runtime.get("threads"):
            found[trial.number] = int(runtime["threads"])
    return found


def refusal(ledger: Ledger, now: Provenance) -> str | None:
    """Why the study does not go on without being told to; None where all its trials are of this code and device."""
    found = [f"{len(origin.trials)} trial(s): {_difference(origin.made[-1], now)}" for origin in others(ledger, now)]
    if pruned := _pruned_by_others(ledger, now):
        found.append(f"{len(pruned)} pruned trial(s): {_difference(ledger.provenance_of(pruned[-1]), now)}")
    if not found or ledger.accepts(now.digest):
        return None
    what = "; ".join(found)
    return (
        f"study {ledger.name!r} has trials of other code, device or threads ({what}): with --accept-code it goes on, "
        "trains the cheapest of them again, and compares like with like only where the figures differ"
    )


def _pruned_by_others(ledger: Ledger, now: Provenance) -> list[FrozenTrial]:
    """Pruned trials of another code or device; of earlier versions it was not recorded, and those are none."""
    recorded = [trial for trial in ledger.pruned() if trial.user_attrs.get(PROVENANCE)]
    alike = {trial.number for trial in ledger.alike(recorded, now.digest)}
    return [trial for trial in recorded if trial.number not in alike]


def without_replicates(ledger: Ledger, now: Provenance) -> str | None:
    """Which finished configurations are run with no further seeds, and why; None where none is left out."""
    wanted = {trial.number: trial for trial, _ in open_replicates(ledger, ledger.study, ledger.seeds)}
    left_out = sorted(wanted.keys() - {trial.number for trial in ledger.alike(wanted.values(), now.digest)})
    if not left_out:
        return None
    numbers = ", ".join(map(str, left_out))
    return f"no further seeds of other code's configurations (trials {numbers}): a mean over seeds is of one code"


def _difference(made: dict[str, Any], now: Provenance) -> str:
    if not made:
        return "code not recorded"
    was, here = asdict(Provenance(**made)), asdict(now)
    return ", ".join(f"{key} was {was[key]}, is {here[key]}" for key in here if was[key] != here[key])


def accept(ledger: Ledger, records: Records, now: Provenance, repeat: Repeat) -> list[str]:
    """Train the cheapest trial of each other code or device again; where it gives the same, both count as one.

    Returns:
        A sentence on each.
    """
    said = []
    for origin in others(ledger, now):
        trial = min(origin.trials, key=_seconds)
        record = read_trial_file(trial, ledger.name, records).record
        about = f"trial {trial.number} ({origin.shown}) trained again"
        apart: str | None = None
        for made in _to_try(ledger.provenance_of(trial), origin, now):
            figures, nats = repeat(trial_config(trial), made.threads)
            apart = _apart(trial, record, figures, nats)
            about += f" with {made.threads} thread(s)" if made.threads else ""
            if apart:
                break
            ledger.keep_same_results(ledger.digest_of(trial), made.digest)
            about += ": equal to the last digit"
        if apart:
            said.append(f"{about}: {apart}. Its figures and new ones are kept apart: only like is compared with like")
        else:
            said.append(f"{about}. Both count as one from now on")
    if pruned := _pruned_by_others(ledger, now):
        numbers = ", ".join(str(trial.number) for trial in pruned)
        said.append(f"pruned by other code (trials {numbers}): they stay so, and no new trial is measured by them")
    ledger.accept(now.digest)
    return said


def _to_try(made: dict[str, Any], origin: Origin, now: Provenance) -> list[Provenance]:
    """With what a trial is trained again, one difference after the other: first the code, then the threads."""
    then = int(made.get("threads", 0))
    like = replace(now, threads=then) if then and now.threads else now
    return [now] if like == now or like.digest in origin.digests else [like, now]


def _seconds(trial: FrozenTrial) -> float:
    figures: dict[str, float] = trial.user_attrs[METRICS]
    return figures[PHASE1_SECONDS] + figures[PHASE2_SECONDS]


def _apart(trial: FrozenTrial, record: TrialRecord | None, figures: dict[str, float], nats: list[float]) -> str | None:
    """Which figures differ; None where none does."""
    before = trial.user_attrs[METRICS]
    for name in sorted((before.keys() & figures.keys()) - OF_THE_RUN):
        if before[name] != figures[name]:
            return f"{name} was {before[name]!r}, is {figures[name]!r}"
    if record is not None and record.nats and record.nats != nats:
        return "the losses by document differ"
    return None
