"""A study's runs in MLflow held against its ledger and its trial files. Nothing here writes."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from search.audit.findings import Finding
from search.audit.trial_checks import Trials, known_hashes
from search.execution.reconcile import RUNTIME, place_of
from search.ledger.records import Points, TrialRecord, differing
from search.ledger.results import Results
from search.ledger.trials import CONFIG, HASH, METRICS, REPLICATE_OF, SYNCED, trial_config
from trainables.phases.convergence import with_converged
from trainables.records import Records
from trainables.tracking.operations import read_journal
from trainables.tracking.store import StoredRun
from trainables.tracking.tags import HASH_TAG, PARENT_TAG, PHASE1_TAG, REPLICATE_TAG, ROLE_TAG, STUDY_ID_TAG, TRIAL_TAG

MLFLOW = "mlflow"
AT_ONCE = "--repair does it"
Ranges = Mapping[tuple[str, str], tuple[float, float]]  # (run, curve) -> lowest and highest value


def elsewhere(results: Results, runs: Iterable[StoredRun], records: Records) -> str | None:
    """Why this store does not have to have the study's runs: they went to another; None if they went here."""
    others = list(records.study(results.name).glob("mlflow-*.journal"))
    if not others:
        return None
    here = {run.run_id for run in runs}
    told = results.optuna.user_attrs.get(SYNCED, [""])[0]
    own = records.journal(results.name, None).exists()
    if told in here or (not told and own):
        return None
    return "its runs went to another tracking server or database (--tracking-uri): what is there is not checked"


@dataclass(frozen=True)
class Runs:
    """What was found of a study's runs."""

    findings: list[Finding]
    again: set[str]  # hashes of those to be told again
    anew: set[str]  # ids of those to be made anew: MLflow takes back neither a param nor a point of a curve


def check_mlflow(results: Results, runs: list[StoredRun], records: Records, trials: Trials, ranges: Ranges) -> Runs:
    """Runs that are missing, doubled or say something else than the ledger and the trial files."""
    study_id = results.study_id  # a query each time
    mine = [r for r in runs if r.tags.get(STUDY_ID_TAG) == study_id]
    alive = [r for r in mine if not r.deleted]
    by_hash: dict[str, list[StoredRun]] = defaultdict(list)
    for run in alive:
        if HASH_TAG in run.tags:
            by_hash[run.tags[HASH_TAG]].append(run)
    found, again, anew = _check_parents(results, mine), set(), set()
    for trial in results.made_with_replicates():
        key, where = trial.user_attrs[HASH], f"study {results.name}, trial {trial.number}"
        of_trial = by_hash.pop(key, [])
        if key in trials.edited:
            continue  # said already; what MLflow has may be all that is right
        left = trials.files[trial.number].record
        what, fixed = _run_wrong(trial, of_trial), ""
        if not what:
            what, fixed = _content_wrong(trial, of_trial[0], left, ranges)
        if what:
            doubled, lost = len(of_trial) > 1, bool(fixed) and left is None
            remedy = "delete all but one in MLflow's UI, then --repair" if doubled else AT_ONCE
            remedy = "bring its trial file back first: the run made anew would lack its curves" if lost else remedy
            mends = not (doubled or lost)
            found.append(Finding(kind=MLFLOW, where=where, what=what, remedy=remedy, repairable=mends))
            again |= {key} if mends else set()
            anew |= {of_trial[0].run_id} if mends and fixed else set()
    known = known_hashes(results)
    for key, others in by_hash.items():
        where = f"study {results.name}, run {others[0].run_id}"
        if key not in known:
            what, remedy = "is of no trial of the ledger", "delete it in MLflow's UI, or bring its optuna.db back"
            found.append(Finding(kind=MLFLOW, where=where, what=what, remedy=remedy, repairable=False))
    return Runs(found + _check_journal(results, records), again, anew)


def _run_wrong(trial: FrozenTrial, runs: list[StoredRun]) -> str | None:
    if not runs:
        return "MLflow has no run of it"
    if len(runs) > 1:
        return f"MLflow has {len(runs)} runs of it: {', '.join(run.run_id for run in runs)}"
    wanted = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
    if runs[0].status != wanted:
        return f"MLflow's run has ended as {runs[0].status}, by the ledger it is {wanted}"
    return None


def _content_wrong(trial: FrozenTrial, run: StoredRun, left: TrialRecord | None, ranges: Ranges) -> tuple[str, str]:
    """What a run says otherwise than ledger and file, and those of it that no call to MLflow can change."""
    config, kept = trial_config(trial), trial.user_attrs
    figures = differing(with_converged(config, kept.get(METRICS, {})), run.metrics)
    runtime = left.runtime if left else {}
    params = kept[CONFIG] | {name: runtime[name] for name in RUNTIME if name in runtime}
    finished = left is not None and trial.state == TrialState.COMPLETE
    curves = left.series if left and finished else {}
    tags = place_of(trial, left or TrialRecord(kept[HASH], trial.number, config.seed))
    tags |= {TRIAL_TAG: str(trial.number)} | ({PHASE1_TAG: left.phase1_by} if left and left.phase1_by else {})
    tags |= {REPLICATE_TAG: str(kept[REPLICATE_OF])} if REPLICATE_OF in kept else {}
    fixed = [name for name, value in params.items() if run.params.get(name, str(value)) != str(value)]
    other = {
        "figures": figures,
        "params": [name for name, value in params.items() if run.params.get(name) != str(value)],
        "tags": [name for name, value in tags.items() if run.tags.get(name) != value],
        "curves": [name for name, points in curves.items() if _curve_wrong(name, points, run, ranges)],
    }
    said = "; ".join(f"{kind} than the ledger: {', '.join(names)}" for kind, names in other.items() if names)
    return f"MLflow's run has other {said}" if said else "", ", ".join(fixed + other["curves"])


def _curve_wrong(name: str, points: Points, run: StoredRun, ranges: Ranges) -> bool:
    """Whether a curve ends otherwise in MLflow, or has another lowest or highest value."""
    values = [value for _, value in points]
    low, high = ranges.get((run.run_id, name), (math.nan, math.nan))
    wanted = {"last": max(points)[1], "low": min(values), "high": max(values)}
    return bool(differing(wanted, {"last": run.metrics.get(name, math.nan), "low": low, "high": high}))


def _check_parents(results: Results, runs: list[StoredRun]) -> list[Finding]:
    """The study's own run: there must be one, ended, and all others its children."""
    where = f"study {results.name}"

    def of(what: str, remedy: str = AT_ONCE, repairable: bool = True) -> Finding:
        return Finding(kind=MLFLOW, where=where, what=what, remedy=remedy, repairable=repairable)

    parents = [r for r in runs if r.tags.get(ROLE_TAG) == "study"]
    active = [r for r in parents if not r.deleted]
    if len(active) > 1:
        return [of(f"MLflow has {len(active)} parent runs of it", "delete all but one in MLflow's UI", False)]
    if not runs and not results.optuna.get_trials(deepcopy=False):
        return []  # it never began, as where Ray could not be started
    if not active:
        return [of("its parent run in MLflow is deleted" if parents else "MLflow has no parent run of it")]
    found = []
    if active[0].status == "RUNNING":
        found.append(of("MLflow says that it is running, and no driver is"))
    children = [r for r in runs if not r.deleted and PARENT_TAG in r.tags]
    strays = sum(r.tags[PARENT_TAG] != active[0].run_id for r in children)
    if strays:
        found.append(of(f"{strays} runs in MLflow are children of another or a deleted parent"))
    return found


def _check_journal(results: Results, records: Records) -> list[Finding]:
    journal = records.journal(results.name, None)
    try:
        waiting = len(read_journal(journal))
    except ValueError as error:
        remedy = "delete it, then --repair: the ledger has all that is missing"
        return [Finding(kind=MLFLOW, where=str(journal), what=str(error), remedy=remedy, repairable=False)]
    if not waiting:
        return []
    what = f"MLflow was not told {waiting} operations"
    return [Finding(kind=MLFLOW, where=str(journal), what=what, remedy=AT_ONCE, repairable=True)]
