"""Studies whose losses are made up, so that their verdicts are known."""

from collections.abc import Callable

import numpy as np

from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, write_trial_record
from search.spaces import Study
from trainables import metrics as names
from trainables.config import BigramConfig, RunConfig
from trainables.records import Records

BASE = RunConfig(
    data="a.jsonl",
    data_fingerprint="d1",
    embedding="bigram",
    embedding_fingerprint="bigram",
    bigram=BigramConfig(),
    context_dim=16,
)
DOCUMENTS = 60
Loss = Callable[[RunConfig], float]


def run(
    study: Study,
    records: Records,
    loss: Loss,
    seeds: int = 1,
    seed_spread: float = 0.002,
    fails: Callable[[RunConfig], bool] = lambda config: False,
    digests: bool = True,
) -> Ledger:
    """Run a study whose trials have the mean loss `loss`, on documents and with seeds that move it a little.

    Args:
        digests: False: the ledger keeps none of the trials' files, as earlier versions did not.
    """
    ledger = Ledger(study, "made-up", records.optuna_database, seeds)
    rng = np.random.default_rng(0)
    targets, common = rng.integers(50, 200, DOCUMENTS), rng.normal(0, 0.4, DOCUMENTS)
    while (assignment := ledger.next()) is not None:
        config = assignment.config
        if fails(config):
            ledger.fail(assignment.number, "diverged")
            continue
        own = np.random.default_rng([config.seed, assignment.number])
        each = loss(config) + common + own.normal(0, 0.01, DOCUMENTS) + own.normal(0, seed_spread)
        nats = each * targets
        ppl = float(np.exp(nats.sum() / targets.sum()))
        running = TrialRecord(config.config_hash(), assignment.number, config.seed)
        running.add([(names.SWEEP_CONVERGENCE, step, step / 20) for step in range(2, 19)])
        running.add([(names.EPOCH_VAL_PPL, epoch, ppl + 5 - epoch) for epoch in range(1, 6)])
        documents = {"nats": nats.tolist(), "targets": targets.tolist(), "units": list(range(DOCUMENTS))}
        path = records.trial_record(ledger.name, config.config_hash())
        runtime = {"threads": 1, "gpus": 0.0}
        ended = {
            **documents,
            "metrics": figures(config, ppl),
            "config": config.flat(),
            "runtime": runtime,
            "phase1_by": config.config_hash(),
        }
        digest = write_trial_record(path, running.ended("finished", result=ended))
        ledger.complete(assignment.number, figures(config, ppl), record=digest if digests else "")
    return ledger


def figures(config: RunConfig, ppl: float) -> dict[str, float]:
    return {
        names.VAL_PPL: ppl,
        names.VAL_ACC: 0.2,
        names.SWEEPS: 15.0 if config.context_layers > 1 else 30.0 + config.seed,
        names.CONVERGENCE: 0.92,
        names.VAL_ER: 80.0,
        names.PHASE1_SECONDS: 4.0,
        names.PHASE2_SECONDS: 6.0 + config.token_layers,
        names.TOTAL_SECONDS: 10.0 + config.token_layers,
        names.TOTAL_PARAMS: 1e6 * config.token_layers + 1e5 * config.context_layers,
        names.PHASE1_PARAMS: 1e5 * config.context_layers,
        names.PHASE2_PARAMS: 1e6 * config.token_layers,
    }


def modes(config: RunConfig) -> float:
    """layerwise and final_only far apart, the best two close by."""
    return {"layerwise": 3.0, "final_only": 3.2, "first_layer_only": 3.4}.get(config.context_mode, 2.9)
