"""What is written beside the ledger, as one JSON file each: what a trial leaves behind, and what a study runs on.

The ledger says what a trial is worth; a trial's file says how it got there: curves, validation losses by document. One
that is missing or damaged costs a study its intervals or a curve, never its result. The ledger keeps a digest of each:
what was changed since is not used. A study's file is its command, sizes, versions and hardware, which the parent run's
params in MLflow are too.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from search.options import StudySettings
from search.spaces import Study
from trainables.cache import content_key
from trainables.evaluation.intervals import merged
from trainables.host.provenance import package_version
from trainables.records import write_whole

PACKAGES = ("torch", "ray", "optuna", "mlflow", "two-phase-search")
HISTORY = "history"  # in a study's record: a list with an entry for each run of the study, the first one first
TRIALS = "trials"  # in each of them: numbers of the trials that ended for good while it ran
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


def study_record(
    settings: StudySettings, study: Study, command: str, typed: str, summary: dict[str, Any]
) -> dict[str, Any]:
    """All that is known when a study starts or goes on.

    Args:
        command: which the study was begun by.
        typed: the command of this run.
        summary: of its inputs (`two_phase.prepare_study`) and of what it runs on, as the ledger keeps it.
    """
    return {
        "command": command,
        **({"continued_by": typed} if typed != command else {}),
        "data": settings.data.spec,
        "embedding": settings.embedding.spec,
        "sampler": study.sampler or "grid",
        **study.definition(),
        **summary,
        **{f"version_{package}": package_version(package) for package in PACKAGES},
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def continued(past: list[dict[str, Any]], record: dict[str, Any], typed: str) -> list[dict[str, Any]]:
    """The history with one run of a study more: its command, code and versions.

    Args:
        past: the history so far, `with_trials` of what had ended when this run began.
        record: as `study_record` makes it.
        typed: the command of this run.
    """
    kept = ("digest", "code", "device", "threads", "git_commit", "git_dirty", "started_at")
    versions = {key: value for key, value in record.items() if key.startswith("version_")}
    return [*past, {"command": typed, **{key: record.get(key) for key in kept}, **versions, TRIALS: []}]


def with_trials(history: list[dict[str, Any]], ended: Iterable[int]) -> list[dict[str, Any]]:
    """The history with the numbers of trials that no run is named for under its last run.

    Called when a run ends and again when the next one begins, since one that was killed could not.
    """
    if not history:
        return history
    *before, last = history
    named = {number for entry in history for number in entry.get(TRIALS, ())}
    return [*before, {**last, TRIALS: [*last.get(TRIALS, ()), *sorted(set(ended) - named)]}]


def bigram_figures(about: Mapping[str, Any]) -> tuple[float, float] | None:
    """Validation PPL and accuracy of the bigram model behind the embedding, from a study's record or its summary.

    None where the embedding is of another kind.
    """
    ppl, accuracy = about.get("bigram_val_ppl"), about.get("bigram_val_acc")
    return (ppl, accuracy) if ppl and accuracy else None


def write_study_record(path: Path, record: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    write_whole(path, json.dumps(record, indent=1) + "\n")


def read_study_record(path: Path) -> dict[str, Any]:
    """The record in `path`; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
