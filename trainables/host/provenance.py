"""Which code made something: the checkout's commit and the versions of packages."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def package_version(package: str) -> str | None:
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
