"""Optuna's samplers, made for one proposal each."""

import hashlib
import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from search.spaces import SAMPLERS


def make_sampler(kind: str, seed: int, number: int) -> BaseSampler:
    """The sampler that proposes trial `number`.

    It is made anew for each proposal from (seed, number) and the trials on record, so a study that was
    interrupted goes on as if it had not been (with one trial at a time).
    """
    digest = hashlib.sha256(f"{seed}:sampler:{number}".encode()).digest()
    own = int.from_bytes(digest[:4], "little")
    kinds: dict[str, Callable[..., BaseSampler]] = {"gp": GPSampler, "tpe": TPESampler, "random": RandomSampler}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return kinds[kind](seed=own, **SAMPLERS[kind])
