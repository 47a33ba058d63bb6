"""What a study runs on: command, sizes, versions, hardware. The parent run's params in MLflow are the same."""

import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from search.options import Settings
from search.spaces import Study
from search.trial_records import write_whole

PACKAGES = ("torch", "ray", "optuna", "mlflow", "two-phase-search")
PLACE = Path(__file__).resolve()


def study_record(settings: Settings, study: Study, command: str, summary: dict[str, Any]) -> dict[str, Any]:
    """All that is known when a study starts.

    Args:
        summary: of its inputs (`two_phase.prepare`).
    """
    return {
        "command": command,
        "data": settings.data.spec,
        "embedding": settings.embedding.spec,
        "sampler": study.sampler or "grid",
        **study.definition(),
        **summary,
        **{f"version_{package}": _version(package) for package in PACKAGES},
        **git_state(PLACE),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    """None where it runs without having been installed under this name, from a checkout or another build of it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(source: Path) -> dict[str, Any]:
    """Commit of the checkout that `source` is a tracked file of, and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(source.parent), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", source.name) is None:
        return {"git_commit": None, "git_dirty": None}
    commit = git("rev-parse", "HEAD")
    return {"git_commit": commit, "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


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
