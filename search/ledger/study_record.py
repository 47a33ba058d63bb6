"""What a study runs on: command, sizes, versions, hardware. The parent run's params in MLflow are the same."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from search.options import StudySettings
from search.spaces import Study
from trainables.host.provenance import package_version
from trainables.records import write_whole

PACKAGES = ("torch", "ray", "optuna", "mlflow", "two-phase-search")
HISTORY = "history"  # in the record: a list with an entry for each run of the study, the first one first
TRIALS = "trials"  # in each of them: numbers of the trials that ended for good while it ran


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
