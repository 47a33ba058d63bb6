"""A study's trials: the ledger held against itself and against their files. Nothing here writes."""

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from search.audit.findings import Finding
from search.ledger.records import TrialRecord, differing, read_trial_record
from search.ledger.results import Results
from search.ledger.trial_files import TrialFile, best_epoch_wrong, read_trial_file
from search.ledger.trials import HASH, METRICS, RECORD
from trainables.metrics import VAL_PPL
from trainables.records import Records
from trainables.tracking.store import StoredRun
from trainables.tracking.tags import HASH_TAG

TRIAL_FILE, LEDGER = "trial file", "ledger"


@dataclass(frozen=True)
class Trials:
    """What was found of a study's trials."""

    findings: list[Finding]
    files: dict[int, TrialFile]  # by trial number
    edited: frozenset[str]  # hashes of trials whose entries in the ledger look edited: nothing is mended from them


def check_trials(results: Results, runs: list[StoredRun], records: Records) -> Trials:
    """Trials that contradict themselves; files that are missing, damaged or of no trial, or contradict the ledger."""
    ended = results.made_with_replicates()
    files = {trial.number: read_trial_file(trial, results.name, records) for trial in ended}
    last = sorted((run for run in runs if HASH_TAG in run.tags), key=lambda run: not run.deleted)
    by_hash = {run.tags[HASH_TAG]: run for run in last}
    found, edited = _contradicting(results), set()
    for trial in ended:
        key, file = trial.user_attrs[HASH], files[trial.number]
        where = f"study {results.name}, trial {trial.number}"
        if what := _ledger_edited(trial, file, by_hash.get(key)):
            edited.add(key)
            found.append(_of_ledger(where, what))
        elif file.wrong:
            remedy = (
                "--repair takes MLflow's copy where it is what the trial wrote; else bring trials/ back from a backup. "
                "The ledger has the result: only curves and intervals are lost"
            )
            found.append(Finding(kind=TRIAL_FILE, where=where, what=file.wrong, remedy=remedy, repairable=True))
        elif what := _other_copy(trial, file, by_hash.get(key)):
            remedy = "nothing says which of the two is right: compare them, or bring trials/ back from a backup"
            found.append(Finding(kind=TRIAL_FILE, where=where, what=what, remedy=remedy, repairable=False))
    return Trials(found + _of_no_trial(results, records), files, frozenset(edited))


def _of_ledger(where: str, what: str) -> Finding:
    remedy = "bring optuna.db back from a backup; nothing is mended from this trial, and it is compared with none"
    return Finding(kind=LEDGER, where=where, what=what, remedy=remedy, repairable=False)


def _contradicting(results: Results) -> list[Finding]:
    """Trials that the ledger says something impossible of, and that therefore count for nothing."""
    found = results.no_replicates() | {number: what for number, (_, what) in results.left_out.items()}
    return [_of_ledger(f"study {results.name}, trial {number}", what) for number, what in sorted(found.items())]


def _of_no_trial(results: Results, records: Records) -> list[Finding]:
    known = known_hashes(results)
    remedy = "move it away, or bring back the optuna.db that has its trial"
    return [
        Finding(kind=TRIAL_FILE, where=str(path), what="is of no trial of the ledger", remedy=remedy, repairable=False)
        for path in sorted((records.study(results.name) / "trials").glob("[!.]*.json"))
        if path.stem not in known
    ]


def known_hashes(results: Results) -> set[str]:
    """Of all trials of the ledger, those that contradict themselves too."""
    own = {trial.user_attrs.get(HASH, "") for trial in results.optuna.get_trials(deepcopy=False)}
    return own | {key for key, _ in results.left_out.values()}


def _ledger_edited(trial: FrozenTrial, file: TrialFile, run: StoredRun | None) -> str | None:
    """What says that a trial's entry in the ledger was changed, and not its file; None if nothing does."""
    if what := best_epoch_wrong(trial):
        return f"{what}: the ledger looks edited"
    if not file.contradicts or file.content is None:
        return None
    if file.intact:
        return f"{file.wrong}, and by its digest is as the trial wrote it: the ledger looks edited"
    by_both = run is not None and RECORD not in trial.user_attrs and _agree(file.content, run, trial)
    return f"{file.wrong}, and MLflow says what the file says: the ledger looks edited" if by_both else None


def _agree(content: TrialRecord, run: StoredRun, trial: FrozenTrial) -> bool:
    """Whether a file has the figures that MLflow has, and the ledger has others."""
    if not differing(trial.user_attrs.get(METRICS, {}), run.metrics) or VAL_PPL not in run.metrics:
        return False
    if content.metrics:
        return not differing(content.metrics, run.metrics)
    return content.unit_losses(run.metrics[VAL_PPL]) is not None


def _other_copy(trial: FrozenTrial, file: TrialFile, run: StoredRun | None) -> str | None:
    """Whether MLflow's copy of a file says otherwise, where the ledger keeps no digest of it."""
    if RECORD in trial.user_attrs or run is None or run.folder is None:
        return None
    copy = run.folder / f"{trial.user_attrs[HASH]}.json"
    kept = read_trial_record(copy)
    return f"{copy.name} is not what MLflow's copy of it says, {copy}" if kept and kept[1] != file.digest else None
