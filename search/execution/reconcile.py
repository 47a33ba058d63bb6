"""MLflow's runs made to agree with the ledger, from what each trial left behind."""

from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from search.findings.leaderboard import trial_name
from search.ledger.records import TrialRecord
from search.ledger.results import Results
from search.ledger.trial_files import held_against
from search.ledger.trials import COMPUTE, HASH, METRICS, PROVENANCE, REASON, REPLICATE_OF, trial_config
from trainables.phases.convergence import with_converged
from trainables.records import Records
from trainables.reports import Point
from trainables.tracking.operations import FailRun, FinishRun, LogFile, LogPoints, PruneRun, StartRun
from trainables.tracking.tags import COMPUTE_TAG, DEVICE_TAG, provenance_tags, trial_tags

if TYPE_CHECKING:  # it imports MLflow
    from trainables.tracking.writer import BackgroundWriter

RUNTIME = ("threads", "gpus")  # params of a trial's run that are no part of its configuration


def complete_mlflow(
    ledger: Results,
    writer: "BackgroundWriter",
    ended: dict[str, set[str]] | None,
    records: Records,
    runtime: dict[str, Any],
) -> None:
    """End MLflow's runs of trials that ended in the ledger, or make them.

    It lacks them where a driver was killed between the two, or where the study's runs go to another store than before.

    Args:
        ended: configurations whose runs have ended there, as `StudyRuns.ended_hashes` says; None: all have.
        runtime: params of runs that no record says better.
    """
    if ended is None:
        return
    for trial in ledger.made_with_replicates():
        key, kept = trial.user_attrs[HASH], trial.user_attrs
        failed = trial.state == TrialState.FAIL
        if key in ended["FAILED" if failed else "FINISHED"]:
            continue
        config, first = trial_config(trial), kept.get(REPLICATE_OF)
        path = records.trial_record(ledger.name, key)
        # without one: damaged, changed, or an earlier attempt's
        left = held_against(trial, path).record or TrialRecord(key, trial.number, config.seed)
        params = config.flat() | runtime | {key: left.runtime[key] for key in RUNTIME if key in left.runtime}
        name = trial_name(config, first is not None)
        writer.put(StartRun(key, name=name, params=params, tags=trial_tags(trial.number, first)))
        if left.series:
            points = [Point(name, *point) for name, curve in left.series.items() for point in curve]
            writer.put(LogPoints(key, points=points))
            writer.put(LogFile(key, file=records.inside(path)))
        place = place_of(trial, left)
        if failed:
            writer.put(FailRun(key, reason=kept[REASON], place=place))
        elif trial.state == TrialState.PRUNED:
            figures = with_converged(config, kept[METRICS])
            writer.put(PruneRun(key, reason=kept[REASON], figures=figures, place=place))
        else:
            figures = with_converged(config, kept[METRICS])
            writer.put(FinishRun(key, figures=figures, place=place, phase1_by=left.phase1_by))


def place_of(trial: FrozenTrial, left: TrialRecord) -> dict[str, str]:
    """Tags that say where, how and by what code a trial was computed, as far as it is known."""
    compute = trial.user_attrs.get(COMPUTE)
    known = ({COMPUTE_TAG: compute} if compute else {}) | provenance_tags(trial.user_attrs.get(PROVENANCE))
    return known | {tag: left.runtime[tag] for tag in (COMPUTE_TAG, DEVICE_TAG) if tag in left.runtime}
