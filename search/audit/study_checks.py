"""A study's ledger held against its trial files, its runs in MLflow and its leaderboard. Nothing here writes."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.audit.findings import Finding
from search.findings.leaderboard import BEST, CSV, leaderboard
from search.ledger.records import read_trial_record
from search.ledger.results import CONFIG, HASH, METRICS, SUMMARY, TOLD, Results
from search.ledger.study_record import bigram_figures
from trainables.records import Records
from trainables.tracking.spool import read_journal
from trainables.tracking.store import StoredRun
from trainables.tracking.study_runs import HASH_TAG, PARENT_TAG, ROLE_TAG, STUDY_ID_TAG

TRIAL_FILE, MLFLOW, LEADERBOARD = "trial file", "mlflow", "leaderboard"
STATUS = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
AT_ONCE = "--repair does it"


def same(left: Mapping[str, float], right: Mapping[str, float]) -> list[str]:
    """Names of the figures of `left` that `right` lacks or has otherwise."""
    return [
        name
        for name, value in left.items()
        if name not in right
        or not (math.isclose(value, right[name], rel_tol=1e-12) or (math.isnan(value) and math.isnan(right[name])))
    ]


def check_trial_files(results: Results, records: Records) -> list[Finding]:
    """Files of trials that are missing, damaged or say something else than the ledger; files of no trial."""
    ended = results.made_with_replicates()
    found = [
        Finding(
            kind=TRIAL_FILE,
            where=f"study {results.name}, trial {trial.number}",
            what=what,
            remedy="--repair takes MLflow's copy where it is whole; else bring trials/ back from a backup. The ledger "
            "has the result: only curves and intervals are lost",
            repairable=True,
        )
        for trial in ended
        if (what := trial_file_wrong(trial, results.name, records))
    ]
    known = {trial.user_attrs.get(HASH) for trial in results.optuna.get_trials(deepcopy=False)}
    for path in sorted((records.study(results.name) / "trials").glob("[!.]*.json")):
        if path.stem not in known:
            remedy = "move it away, or bring back the optuna.db that has its trial"
            what = "is of no trial of the ledger"
            found.append(Finding(kind=TRIAL_FILE, where=str(path), what=what, remedy=remedy, repairable=False))
    return found


def trial_file_wrong(trial: FrozenTrial, study: str, records: Records) -> str:
    """What is wrong with the file of a trial that has ended; empty if nothing is."""
    path = records.trial_record(study, trial.user_attrs[HASH])
    record = read_trial_record(path)
    if record is None:
        return f"{path.name} is damaged" if path.exists() else f"{path.name} is missing"
    if (record.trial, record.config_hash) != (trial.number, trial.user_attrs[HASH]):
        return f"{path.name} is of trial {record.trial}, configuration {record.config_hash}"
    if record.status != STATUS[trial.state]:
        return f"{path.name} says {record.status}, the ledger {STATUS[trial.state]}"
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return ""
    # a file of an earlier version has no figures
    if record.metrics and (other := same(trial.user_attrs[METRICS], record.metrics)):
        return f"{path.name} has other figures than the ledger: {', '.join(other)}"
    try:
        adds_up = record.unit_losses(trial.value) is not None
    except (TypeError, ValueError):  # no numbers
        adds_up = False
    return "" if adds_up else f"{path.name}: its losses by document do not add up to the ledger's {trial.value:.6g}"


def elsewhere(results: Results, runs: Iterable[StoredRun], records: Records) -> str:
    """Why this store does not have to have the study's runs: they went to another; empty if they went here."""
    others = list(records.study(results.name).glob("mlflow-*.journal"))
    if not others:
        return ""
    here = {run.run_id for run in runs}
    told = results.optuna.user_attrs.get(TOLD, [""])[0]
    own = records.journal(results.name, None).exists()
    if told in here or (not told and own):
        return ""
    return "its runs went to another tracking server: what MLflow has of it is not checked"


def check_mlflow(results: Results, runs: list[StoredRun], records: Records) -> tuple[list[Finding], set[str]]:
    """Runs that are missing, doubled or say something else than the ledger; hashes of those to be told again."""
    study_id = results.study_id  # a query each time
    mine = [r for r in runs if r.tags.get(STUDY_ID_TAG) == study_id]
    alive = [r for r in mine if not r.deleted]
    by_hash: dict[str, list[StoredRun]] = defaultdict(list)
    for run in alive:
        if HASH_TAG in run.tags:
            by_hash[run.tags[HASH_TAG]].append(run)
    found, again = _check_parents(results, mine), set()
    for trial in results.made_with_replicates():
        key, where = trial.user_attrs[HASH], f"study {results.name}, trial {trial.number}"
        of_trial = by_hash.pop(key, [])
        what = _run_wrong(trial, of_trial)
        if what:
            doubled = len(of_trial) > 1
            remedy = "delete all but one in MLflow's UI, then --repair" if doubled else AT_ONCE
            found.append(Finding(kind=MLFLOW, where=where, what=what, remedy=remedy, repairable=not doubled))
            again |= set() if doubled else {key}
    known = {trial.user_attrs.get(HASH) for trial in results.optuna.get_trials(deepcopy=False)}
    for key, left in by_hash.items():
        where = f"study {results.name}, run {left[0].run_id}"
        if key not in known:
            what, remedy = "is of no trial of the ledger", "delete it in MLflow's UI, or bring its optuna.db back"
            found.append(Finding(kind=MLFLOW, where=where, what=what, remedy=remedy, repairable=False))
    return found + _check_journal(results, records), again


def _run_wrong(trial: FrozenTrial, runs: list[StoredRun]) -> str:
    if not runs:
        return "MLflow has no run of it"
    if len(runs) > 1:
        return f"MLflow has {len(runs)} runs of it: {', '.join(run.run_id for run in runs)}"
    wanted = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
    if runs[0].status != wanted:
        return f"MLflow's run has ended as {runs[0].status}, by the ledger it is {wanted}"
    other = same(trial.user_attrs.get(METRICS, {}), runs[0].metrics)
    return f"MLflow's run has other figures than the ledger: {', '.join(other)}" if other else ""


def _check_parents(results: Results, runs: list[StoredRun]) -> list[Finding]:
    """The study's own run: there must be one, ended, and all others its children."""
    where = f"study {results.name}"

    def of(what: str, remedy: str = AT_ONCE, repairable: bool = True) -> Finding:
        return Finding(kind=MLFLOW, where=where, what=what, remedy=remedy, repairable=repairable)

    parents = [r for r in runs if r.tags.get(ROLE_TAG) == "study"]
    active = [r for r in parents if not r.deleted]
    if len(active) > 1:
        return [of(f"MLflow has {len(active)} parent runs of it", "delete all but one in MLflow's UI", False)]
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


def check_leaderboard(results: Results, records: Records) -> list[Finding]:
    """`leaderboard.csv` and `best.json` against what the ledger says now."""
    if not results.made_with_replicates():
        return []
    folder, found = records.study(results.name), []
    csv, best = folder / CSV, folder / BEST
    try:
        wanted = leaderboard(results, bigram_figures(results.optuna.user_attrs.get(SUMMARY, {}))).to_csv(index=False)
    except KeyError as error:
        what, remedy = f"the ledger lacks the figure {error}", "bring back the optuna.db that has it"
        where = f"study {results.name}"
        return [Finding(kind=LEADERBOARD, where=where, what=what, remedy=remedy, repairable=False)]
    if not csv.exists():
        found.append((csv, "is missing"))
    elif csv.read_text(errors="replace") != wanted:
        found.append((csv, "is not what the ledger says"))
    if what := _best_wrong(results, _json(best)):
        found.append((best, what if best.exists() else "is missing"))
    return [
        Finding(kind=LEADERBOARD, where=str(path), what=what, remedy=AT_ONCE, repairable=True) for path, what in found
    ]


def _json(path: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _best_wrong(results: Results, content: Any) -> str:
    leader = results.leader()
    if leader is None:
        return "" if content is None else "names a leader, and no trial has finished"
    if not isinstance(content, dict):
        return "is damaged"
    kept = leader.first.user_attrs
    if content.get("config_hash") != kept[HASH] or content.get("trial") != leader.first.number:
        return f"names trial {content.get('trial')}, by the ledger trial {leader.first.number} leads"
    seeds = content.get("seeds") or {}
    agrees = (content.get("config"), content.get("metrics")) == (kept[CONFIG], kept[METRICS])
    agrees = agrees and content.get("study_id") == results.study_id and seeds.get("count") == len(leader.trials)
    return "" if agrees and seeds.get("mean_val_ppl") == leader.ppl else "has other figures than the ledger"
