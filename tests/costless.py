"""Studies whose trials cost nothing: a value looked up by the config's hash."""

from pathlib import Path
from typing import Any

import optuna
from entries import MODES, asym_layers
from optuna.trial import FrozenTrial, TrialState

from search.ledger.ledger import (
    Assignment,
    Ledger,
)
from search.spaces import Point, Space, Study
from trainables.config import BigramConfig, RunConfig
from trainables.metrics import VAL_PPL

DIMS = (8, 16)
TRIALS = 8  # the four cells, two more before gp and tpe start to model, two that they propose
CELLS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def base_config(**changes: Any) -> RunConfig:
    base = RunConfig(
        data="a.jsonl",
        data_fingerprint="d1",
        embedding="bigram",
        embedding_fingerprint="bigram",
        bigram=BigramConfig(),
        context_dim=16,
    )
    return base.replace(**changes)


def layers_study(trials: int = TRIALS, sampler: str = "random", **changes: Any) -> Study:
    return asym_layers(base_config(**changes), DIMS, sampler, trials)


def small_study(trials: int, sampler: str = "random") -> Study:
    """A study over the six models of one context layer and at most two token layers."""
    space = Space(context_layers=(1, 1), token_layers=(1, 2), context_dims=(8,), context_modes=MODES)
    fixed = (next(space.points()),)
    return Study(entry="small", base=base_config(), space=space, fixed_points=fixed, sampler=sampler, trials=trials)


VALUES = {
    base_config(**point).config_hash(): 20 + 7919 * rank % 1000 / 25
    for study in (layers_study(), small_study(9))
    for rank, point in enumerate(study.space.points())
}


def value_of(config: RunConfig) -> float:
    """The objective: every model has a value of its own."""
    return VALUES[config.replace(seed=0).config_hash()]


def finish(ledger: Ledger, assignment: Assignment) -> None:
    ledger.complete(assignment.number, {VAL_PPL: value_of(assignment.config)})


def handed_out(ledger: Ledger) -> Assignment:
    """The ledger's next configuration, which there must be."""
    assignment = ledger.next()
    assert assignment is not None
    return assignment


def run_to_the_end(ledger: Ledger) -> list[RunConfig]:
    """Run a study one trial at a time; the configurations in the order they were handed out."""
    handed = []
    while (assignment := ledger.next()) is not None:
        finish(ledger, assignment)
        handed.append(assignment.config)
    return handed


def on_record(ledger: Ledger) -> list[FrozenTrial]:
    """What the database says."""
    return optuna.load_study(study_name=ledger.name, storage=ledger.storage).trials


def trial(ledger: Ledger, number: int) -> FrozenTrial:
    return on_record(ledger)[number]


def unended(ledger: Ledger) -> list[FrozenTrial]:
    return [t for t in on_record(ledger) if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def ask_next(ledger: Ledger, **point: Any) -> None:
    """Make the ledger's next proposal that of `point`, as a sampler might."""
    whole: Point = {"context_dim": 16, "context_mode": "prev_and_current"} | point
    queued = ledger._queued

    def once() -> Any:
        ledger._queued = queued  # type: ignore[method-assign]
        return ledger.study.space.params(whole), {}

    ledger._queued = once  # type: ignore[method-assign]


def replicated(trials: int, seeds: int, database: Path, sampler: str = "random", name: str = "s") -> Ledger:
    return Ledger(layers_study(trials=trials, sampler=sampler), name, database, seeds)
