"""What a trial leaves behind beside its figures: curves and validation losses by document, one JSON file each.

The ledger says what a trial is worth; these files say how it got there. One that is missing or damaged costs a study
its intervals or a curve, never its result. The ledger keeps a digest of each: what was changed since is not used.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainables.cache import content_key
from trainables.evaluation.intervals import merged
from trainables.records import write_whole

Points = list[tuple[int, float]]  # (step, value)


@dataclass(frozen=True)
class TrialRecord:
    """One trial's curves and, where it finished, what its best epoch lost on each validation document."""

    config_hash: str
    trial: int
    seed: int
    status: str = "running"
    reason: str = ""  # where it did not finish
    series: dict[str, Points] = field(default_factory=dict)  # by the names of trainables.metrics
    nats: list[float] = field(default_factory=list)  # summed over the document's targets
    targets: list[int] = field(default_factory=list)
    units: list[int] = field(
        default_factory=list
    )  # as `trainables.inputs.corpus.Split.units`; [] each document its own
    config: dict[str, Any] = field(default_factory=dict)  # a flat `RunConfig`, to train the same again
    runtime: dict[str, Any] = field(default_factory=dict)  # where it ended: device_name, threads, gpus, compute, code
    metrics: dict[str, float] = field(default_factory=dict)  # where it finished
    phase1_by: str = ""  # where it finished: config hash of the run that trained Phase 1

    @property
    def units_known(self) -> bool:
        """Whether it says which documents are equal; records of earlier versions do not."""
        return bool(self.units)

    def add(self, points: Iterable[tuple[str, int, float]]) -> None:
        """Further points (name, step, value) of the curves."""
        for name, step, value in points:
            self.series.setdefault(name, []).append((step, value))

    def ended(self, status: str, reason: str = "", result: dict[str, Any] | None = None) -> "TrialRecord":
        """A copy of a trial that has ended; `result` are further fields of one that finished."""
        return replace(self, status=status, reason=reason, **(result or {}))

    def unit_losses(self, ppl: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Sums of nats and numbers of targets by unit, or None where they do not add up to the log of `ppl`.

        Returns:
            (units,) float64, (units,) float64; a unit without a target is left out
        """
        nats, targets = np.asarray(self.nats, np.float64), np.asarray(self.targets, np.float64)
        units = np.asarray(self.units or range(len(targets)))
        if nats.ndim != 1 or not nats.shape == targets.shape == units.shape or not targets.sum() > 0:
            return None
        if not math.isclose(nats.sum() / targets.sum(), math.log(ppl), rel_tol=0, abs_tol=1e-6):
            return None
        nats, targets = merged(units, np.stack([nats, targets]))
        return nats[targets > 0], targets[targets > 0]


def write_trial_record(path: Path, record: TrialRecord) -> str:
    """Write the file whole or not at all; the digest of its content."""
    content = asdict(record)
    write_whole(path, json.dumps(content) + "\n")
    return content_key(content)


def read_trial_record(path: Path) -> tuple[TrialRecord, str] | None:
    """The record in `path` and the digest of its content; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
        digest = content_key(content)
        series = {name: [(int(s), float(v)) for s, v in points] for name, points in content.pop("series").items()}
        return TrialRecord(series=series, **content), digest
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # whatever a damaged file may hold
        return None


def differing(left: Mapping[str, float], right: Mapping[str, float]) -> list[str]:
    """Names of the figures of `left` that `right` lacks or has otherwise."""
    return [
        name
        for name, value in left.items()
        if name not in right
        or not (math.isclose(value, right[name], rel_tol=1e-12) or (math.isnan(value) and math.isnan(right[name])))
    ]
