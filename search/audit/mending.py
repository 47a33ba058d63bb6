"""A records folder mended from the ledger. No result is deleted; what is removed can be made again."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from search.audit.findings import Finding, Skipped
from search.audit.mlflow_checks import Runs
from search.audit.store_checks import artefact_lock
from search.audit.trial_checks import Trials
from search.execution.reconcile import complete_mlflow
from search.findings.leaderboard import leaderboard, write_results
from search.ledger.records import bigram_figures, read_study_record, write_study_record
from search.ledger.results import Results
from search.ledger.trial_files import held_against, read_trial_file
from search.ledger.trials import HASH, METRICS, SUMMARY, trial_config
from trainables.phases.convergence import with_converged
from trainables.records import Records
from trainables.tracking.operations import EndStudy, StartStudy
from trainables.tracking.store import StoredRun, StoreView
from trainables.tracking.study_runs import StudyRuns
from trainables.tracking.tags import HASH_TAG, ROLE_TAG, STUDY_ID_TAG
from trainables.tracking.writer import BackgroundWriter

LONG = 600.0  # seconds that MLflow may take for one operation


def mend_trial_files(results: Results, runs: list[StoredRun], records: Records) -> None:
    """Bring back trial files of which MLflow has a whole copy; a damaged one is kept beside it."""
    last = sorted(runs, key=lambda run: not run.deleted)  # of two runs the one that is not deleted
    folders = {run.tags[HASH_TAG]: run.folder for run in last if HASH_TAG in run.tags}
    for trial in results.made_with_replicates():
        key = trial.user_attrs[HASH]
        folder = folders.get(key)
        if folder is None or not read_trial_file(trial, results.name, records).wrong:
            continue
        path = records.trial_record(results.name, key)
        copy = folder / path.name
        if held_against(trial, copy).wrong:
            continue  # it is no better
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
        shutil.copyfile(copy, path)


def mend_mlflow(
    results: Results, runs: list[StoredRun], seen: Runs, trials: Trials, records: Records, say: Callable[[str], None]
) -> None:
    """Tell MLflow what it lacks; that the parent run is there, and all others are its children, `StudyRuns` sees to.

    A run that has to be made anew is marked as deleted, which MLflow can take back.

    Args:
        runs: all of the experiment, as they were read.
        seen: what was found of the study's runs.
        trials: and of its trials.

    Raises:
        ValueError: MLflow refuses its store, or did not take all.
    """
    study_id = results.study_id  # a query each time
    mine = [r for r in runs if r.tags.get(STUDY_ID_TAG) == study_id and r.run_id not in seen.anew]
    parents = [r for r in mine if r.tags.get(ROLE_TAG) == "study"]
    for run_id in seen.anew:
        StoreView(records.tracking_uri).delete(run_id)
    before = parents[-1].status if parents else "FINISHED"
    study_runs = StudyRuns(records, results.name, study_id)
    writer = BackgroundWriter(study_runs, records.journal(results.name, None), say)
    # of what looks edited in the ledger nothing is told
    ended = {status: (hashes - seen.again) | trials.edited for status, hashes in study_runs.ended_hashes().items()}
    writer.put(StartStudy(params=read_study_record(records.study_record(results.name))))
    summary = results.optuna.user_attrs.get(SUMMARY, {})
    runtime = {name: summary[name] for name in ("threads", "gpus") if name in summary}
    complete_mlflow(results, writer, ended, records, runtime)
    best = results.best()
    status = "KILLED" if before == "RUNNING" else before  # its driver is gone
    told = best is not None and best.user_attrs[HASH] not in trials.edited
    figures = with_converged(trial_config(best), best.user_attrs[METRICS]) if best and told else {}
    writer.put(EndStudy(status=status, figures=figures, files=[]))
    if writer.close(LONG):
        raise ValueError(f"MLflow did not take all of study {results.name!r}: run it again")


def mend_study_record(results: Results, records: Records) -> None:
    """Give `study.json` the figures of the ledger's summary; its command, versions and history stay."""
    path = records.study_record(results.name)
    write_study_record(path, read_study_record(path) | results.optuna.user_attrs[SUMMARY])


def mend_leaderboard(results: Results, records: Records) -> None:
    """Write `leaderboard.csv` and `best.json` as the ledger has them; a `best.json` of nothing is moved aside."""
    board = leaderboard(results, bigram_figures(results.optuna.user_attrs.get(SUMMARY, {})))
    about = read_study_record(records.study_record(results.name))
    write_results(results, board, records.study(results.name), about.get("command", ""))
    best = records.study(results.name) / "best.json"
    if results.leader() is None and best.exists():
        best.replace(best.with_name("best.json.stale"))


def mend_cache(findings: list[Finding]) -> list[Skipped]:
    """Remove the cache entries, scratch folders and locks that were found; none that a process now works on.

    Returns:
        what may not be removed, and why
    """
    skipped = []
    for finding in findings:
        path = Path(finding.where)
        own = artefact_lock(path)
        made = not own.exists()
        try:
            with contextlib.suppress(Timeout), FileLock(own).acquire(timeout=0):  # what is held is found again
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                if made:
                    own.unlink(missing_ok=True)
                elif not path.with_name(own.name[1:-5]).exists():
                    own.unlink(missing_ok=True)  # of an entry that is gone; held, so nobody else has it
        except OSError as error:
            skipped.append(Skipped(where=str(path), why=f"not mended: {error}"))
    return skipped
