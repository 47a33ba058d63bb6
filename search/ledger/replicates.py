"""Which finished configurations are run with more seeds: the study's fixed points, and the best of the others."""

from optuna.trial import FrozenTrial

from search.ledger.results import Results
from search.ledger.trials import HASH, sorted_by_value, trial_config
from search.spaces import Study

FINALISTS = 3  # configurations beside the fixed points


def finalists(results: Results, study: Study, digest: str | None = None) -> list[FrozenTrial]:
    """Trials to be run with more seeds: all fixed points, and the best `FINALISTS` of the others.

    Args:
        digest: of the code and device of new trials (`digests.Provenance`); those of others are none, since replicates
            that cannot be compared with them count in no mean.
    """
    fixed = {study.base.replace(**point).config_hash() for point in study.fixed_points}
    finished = results.finished()
    ranked = sorted_by_value(finished if digest is None else results.alike(finished, digest))
    others = [t for t in ranked if t.user_attrs[HASH] not in fixed][:FINALISTS]
    return sorted([t for t in ranked if t.user_attrs[HASH] in fixed] + others, key=lambda t: t.number)


def open_replicates(
    results: Results, study: Study, seeds: int, digest: str | None = None
) -> list[tuple[FrozenTrial, int]]:
    """Finalists, as they stand now, with those of `seeds` seeds that are still to be asked for."""
    asked = {t.user_attrs.get(HASH) for t in results.replicates()}
    first, found = study.base.seed, finalists(results, study, digest)
    return [
        (trial, seed)
        for seed in range(first + 1, first + seeds)
        for trial in found
        if trial_config(trial).replace(seed=seed).config_hash() not in asked
    ]


def most_replicates(study: Study, seeds: int) -> int:
    """How many there can be at most."""
    fixed = len(study.fixed_points)
    return (seeds - 1) * (fixed + min(FINALISTS, study.trials - fixed))
