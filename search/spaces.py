"""Studies as data: which points are fixed, which space a sampler explores. No torch.

A study is a file beside `context_modes.py` whose function returns a `Study`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Protocol

from model.modes import MAX_LAYERS, same_model_modes
from trainables.cache import content_key
from trainables.config import METHOD_VERSION, RunConfig

STARTUP_TRIALS = 6  # finished trials before gp and tpe start to model; the fixed points count
# Every option that is not left to Optuna, since its defaults change between versions; part of a study's definition.
SAMPLERS: dict[str, dict[str, Any]] = {
    "gp": {"n_startup_trials": STARTUP_TRIALS, "deterministic_objective": False},
    "tpe": {"n_startup_trials": STARTUP_TRIALS, "multivariate": True, "group": True, "constant_liar": True},
    "random": {},
}
NO_SCHEDULER = "none"
# Who stops poor trials on their validation perplexity by epoch; as SAMPLERS. Options of Optuna's pruners.
SCHEDULERS: dict[str, dict[str, Any]] = {
    NO_SCHEDULER: {},
    "asha": {"min_resource": 1, "reduction_factor": 3, "min_early_stopping_rate": 0, "bootstrap_count": 0},
    "first-epoch": {"percentile": 75.0, "n_startup_trials": 0, "n_min_trials": STARTUP_TRIALS},
}
SEARCHED = ("context_layers", "token_layers", "context_dim", "context_mode")  # fields of a RunConfig

Point = dict[str, Any]  # the searched fields of a RunConfig


class Suggests(Protocol):
    """What a space needs of an Optuna trial."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_categorical(self, name: str, choices: list[str]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Space:
    """A box of configurations. Layer counts are ranges; D is an ordered list, so that trials can share Phase 1."""

    context_layers: tuple[int, int]  # lowest, highest
    token_layers: tuple[int, int]
    context_dims: tuple[int, ...]  # ascending
    context_modes: tuple[str, ...]

    def suggest(self, trial: Suggests) -> Point:
        """Ask an Optuna trial for one point. D is suggested by its rank in the list, which keeps its order."""
        rank = trial.suggest_int("context_dim_rank", 0, len(self.context_dims) - 1)
        return {
            "context_layers": trial.suggest_int("context_layers", *self.context_layers),
            "token_layers": trial.suggest_int("token_layers", *self.token_layers),
            "context_dim": self.context_dims[rank],
            "context_mode": trial.suggest_categorical("context_mode", list(self.context_modes)),
        }

    def params(self, point: Point) -> dict[str, Any]:
        """The Optuna parameters that make `suggest` return `point`."""
        rest = {key: value for key, value in point.items() if key != "context_dim"}
        return rest | {"context_dim_rank": self.context_dims.index(point["context_dim"])}

    def points(self) -> Iterator[Point]:
        """Every distinct model of the box, once, under the first name it has."""
        context, token = (range(low, high + 1) for low, high in (self.context_layers, self.token_layers))
        for d, c, t, mode in product(self.context_dims, context, token, self.context_modes):
            first = next(m for m in same_model_modes(mode, c, t) if m in self.context_modes)
            if mode == first:
                yield {"context_layers": c, "token_layers": t, "context_dim": d, "context_mode": mode}


@dataclass(frozen=True, kw_only=True)
class Study:
    """One search: fixed points first, then what the sampler asks for until `trials` are made."""

    entry: str  # the entry's name
    base: RunConfig  # all that is not searched
    space: Space
    fixed_points: tuple[Point, ...]
    sampler: str | None  # None: an exact grid, nothing is sampled
    trials: int  # all of them, the fixed points included; no part of the definition, so it can grow
    scheduler: str = NO_SCHEDULER  # fixed points are never stopped

    def definition(self) -> dict[str, Any]:
        """What the study is. Two studies of equal definitions are one."""
        # data and embedding are named by content: the same file by another path is the same study
        left_out = {*SEARCHED, "data", "embedding"}
        base = {key: value for key, value in self.base.flat().items() if key not in left_out}
        return {
            "entry": self.entry,
            "method": METHOD_VERSION,
            **base,
            "space": asdict(self.space),
            "fixed_points": list(self.fixed_points),
            "sampler": self.sampler,
            "sampler_options": SAMPLERS[self.sampler] if self.sampler else {},
            "scheduler": self.scheduler,
            "scheduler_options": SCHEDULERS[self.scheduler],
        }

    def default_name(self, data_label: str) -> str:
        """Entry, data and a short hash of the definition, so that different definitions never meet."""
        return f"{self.entry}-{data_label}-{content_key(self.definition())[:8]}"


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What sets one definition of a study apart from another, for a person."""
    names = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    contents = {"data_fingerprint": "the data has changed", "embedding_fingerprint": "the embedding has changed"}
    return "; ".join(contents.get(n) or f"{n} is {wanted.get(n)!r}, was {stored.get(n)!r}" for n in names)


DEPTHS = (1, MAX_LAYERS)  # layers of either block, lowest and highest
CELLS = ((1, 1), (2, 1), (1, 2), (2, 2))  # context layers, token layers: the reports' four


def grid(entry: str, base: RunConfig, space: Space) -> Study:
    """Every distinct model of a space, each once; nothing is sampled."""
    points = tuple(space.points())
    return Study(entry=entry, base=base, space=space, fixed_points=points, sampler=None, trials=len(points))
