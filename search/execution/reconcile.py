"""MLflow's runs made to agree with the ledger, from what each trial left behind."""

from typing import Any

from optuna.trial import TrialState

from search.findings.leaderboard import trial_name
from search.ledger.records import TrialRecord, read_trial_record
from search.ledger.results import COMPUTE, HASH, METRICS, PROVENANCE, REASON, REPLICATE_OF, Results, trial_config
from trainables.phases.convergence import with_converged
from trainables.records import Records
from trainables.tracking.spool import Spool
from trainables.tracking.study_runs import COMPUTE_TAG, DEVICE_TAG, provenance_tags


def complete_mlflow(ledger: Results, spool: Spool, records: Records, runtime: dict[str, Any]) -> None:
    """End MLflow's runs of trials that ended in the ledger, or make them.

    It lacks them where a driver was killed between the two, or where the study's runs go to another store than before.

    Args:
        runtime: params of runs that no record says better.
    """
    if spool.ended is None:
        return
    for trial in ledger.made_with_replicates():
        key, kept = trial.user_attrs[HASH], trial.user_attrs
        failed = trial.state == TrialState.FAIL
        if key in spool.ended["FAILED" if failed else "FINISHED"]:
            continue
        config, first = trial_config(trial), kept.get(REPLICATE_OF)
        path = records.trial_record(ledger.name, key)
        left = read_trial_record(path)
        if left is None or left.trial != trial.number:  # damaged, or an earlier attempt's
            left = TrialRecord(key, trial.number, config.seed)
        params = config.flat() | {name: left.runtime.get(name, value) for name, value in runtime.items()}
        name = trial_name(config, first is not None)
        spool.put("start_trial", key, number=trial.number, name=name, params=params, replicate_of=first)
        if left.series:
            points = [(name, *point) for name, curve in left.series.items() for point in curve]
            spool.put("log_series", key, points=points)
            spool.put("log_file", key, file=records.inside(path))
        place = {COMPUTE_TAG: kept[COMPUTE]} if kept.get(COMPUTE) else {}
        place |= provenance_tags(kept.get(PROVENANCE))
        place |= {tag: left.runtime[tag] for tag in (COMPUTE_TAG, DEVICE_TAG) if tag in left.runtime}
        if failed:
            spool.put("fail_trial", key, reason=kept[REASON], details="", place=place)
        elif trial.state == TrialState.PRUNED:
            figures = with_converged(config, kept[METRICS])
            spool.put("prune_trial", key, reason=kept[REASON], figures=figures, place=place)
        else:
            figures = with_converged(config, kept[METRICS])
            spool.put("finish_trial", key, figures=figures, place=place, phase1_by=left.phase1_by)
