"""MLflow's runs made to agree with the ledger."""

from typing import Any

from optuna.trial import TrialState

from search.leaderboard import trial_name
from search.ledger import Ledger
from search.results import COMPUTE, HASH, METRICS, REASON, REPLICATE_OF, trial_config
from trainables.spool import Spool


def complete_mlflow(ledger: Ledger, spool: Spool, runtime: dict[str, Any]) -> None:
    """End MLflow's runs of trials that ended in the ledger: a driver was killed between the two."""
    if spool.ended is None:
        return
    for trial in ledger.made_with_replicates():
        key, kept = trial.user_attrs[HASH], trial.user_attrs
        failed = trial.state == TrialState.FAIL
        if key in spool.ended["FAILED" if failed else "FINISHED"]:
            continue
        config, first = trial_config(trial), kept.get(REPLICATE_OF)
        name, params = trial_name(config, first is not None), config.flat() | runtime
        spool.put("start_trial", key, number=trial.number, name=name, params=params, replicate_of=first)
        if failed:
            spool.put("fail_trial", key, reason=kept[REASON], details="")
        elif trial.state == TrialState.PRUNED:
            spool.put("prune_trial", key, reason=kept[REASON], figures=kept[METRICS])
        else:
            spool.put("finish_trial", key, figures=kept[METRICS], compute=kept.get(COMPUTE, ""))
