"""A trial on record: the attributes it is written with, and what they say of it by themselves."""

from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainables.config import METHOD_VERSION, RunConfig
from trainables.metrics import VAL_PPL
from trainables.records import RECORD as RECORD

# User attributes of an Optuna trial.
CONFIG, HASH, METRICS, COMPUTE, REASON, REPEAT_OF, RETRY_OF, REPLICATE_OF, SEED = (
    "config", "config_hash", "metrics", "compute", "reason", "repeat_of", "retry_of", "replicate_of", "seed",
)  # fmt: skip
PROVENANCE = "provenance"  # as CONFIG: `digests.Provenance` as a dict
# User attributes of the Optuna study.
DEFINITION, STUDY_ID, SUMMARY, SYNCED = "definition", "study_id", "summary", "told"
RUN_AGAIN = "run_again"  # as DEFINITION: numbers of failed trials that the next command runs again
ACCEPTED = "accepted"  # as DEFINITION: digests that the study was told to go on with
THREADS = "threads"  # as DEFINITION: CPU threads by trial number, of trials whose PROVENANCE is without them
SAME_RESULTS = "same_results"  # as DEFINITION: lists of digests that were seen to give the same figures
INTERRUPTED, LOST = "interrupted", "the worker process died"  # the reasons of trials that are asked for again
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def trial_config(trial: FrozenTrial) -> RunConfig:
    """The configuration of a trial on record."""
    return RunConfig.from_flat(trial.user_attrs[CONFIG])


def is_ours(trial: FrozenTrial, definition: dict[str, Any] | None = None) -> bool:
    """Whether this program made a trial, and for this study; Optuna's own commands can put others into it.

    Args:
        definition: the study's. With it what a trial says of itself must agree (`self_contradiction`).
    """
    return bool(trial.user_attrs.keys() & {HASH, RETRY_OF, REPLICATE_OF}) and not self_contradiction(trial, definition)


def self_contradiction(trial: FrozenTrial, definition: dict[str, Any] | None) -> str:
    """What a trial's configuration, hash and value say otherwise than each other or than the study; empty if nothing.

    Args:
        definition: the study's, where it is known.
    """
    attrs = trial.user_attrs
    if definition is None or CONFIG not in attrs or HASH not in attrs or definition.get("method") != METHOD_VERSION:
        return ""  # a hash of another method is not known here
    config = attrs[CONFIG]
    own = {key: value for key, value in definition.items() if key in config}
    if REPLICATE_OF in attrs:
        own.pop("seed", None)
    if other := [key for key, value in own.items() if config[key] != value]:
        return f"its {', '.join(other)} in the ledger is not the study's"
    figure = (attrs.get(METRICS) or {}).get(VAL_PPL, trial.value)
    if trial.value is not None and figure != trial.value:
        return f"its value {trial.value!r} in the ledger is not its figure {VAL_PPL} there, {figure!r}"
    if RunConfig.from_flat(config).config_hash() != attrs[HASH]:
        return "its configuration in the ledger is not the one of its hash"
    return ""


def no_seed_of(trial: FrozenTrial, trials: list[FrozenTrial]) -> str:
    """Why a trial is no further seed of the one it names; empty if it is."""
    config, number = trial_config(trial), trial.user_attrs[REPLICATE_OF]
    first = next((trial_config(t) for t in trials if t.number == number and CONFIG in t.user_attrs), None)
    if first is None or first.config_hash() != config.replace(seed=first.seed).config_hash():
        return f"it says that it is a further seed of trial {number}, and its configuration is another"
    own_hash, before = trial.user_attrs.get(HASH), [t for t in trials if t.number < trial.number]
    taken = any(t.state == TrialState.COMPLETE and t.user_attrs.get(HASH) == own_hash for t in before)
    if taken or config.seed == first.seed or trial.user_attrs.get(SEED, config.seed) != config.seed:
        return f"it says that it is a further seed of trial {number}, and its seed {config.seed} is none"
    return ""


def ended_elsewhere(trial: FrozenTrial) -> bool:
    """Whether a trial was ended by another process, through plain Optuna: it has none of the figures of an end here."""
    attrs = trial.user_attrs  # asked of every trial on record for every trial that is handed out
    return METRICS not in attrs and REASON not in attrs and REPEAT_OF not in attrs and trial.state.is_finished()


def sorted_by_value(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Best first."""
    return sorted(trials, key=lambda t: (t.value, t.number))
