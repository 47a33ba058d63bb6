"""Where code that was compiled for this host is kept: what lies there is run, so nobody else may have put it there."""

import functools
import logging
import os
import platform
import re
import stat
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

TRITON = "TRITON_CACHE_DIR"
OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(path: Path) -> bool:
    """Whether a file or folder is this user's and nobody else may write to it; a link is neither."""
    found = path.lstat()
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & OF_OTHERS


@functools.cache
def _of_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="two-phase-search-")


@functools.cache
def _say_once(sentence: str) -> None:
    log.warning(sentence)


def build_folder() -> Path:
    """This user's folder for this host, made if need be; one of this process alone where that cannot be trusted.

    Hosts that share a home folder have each their own.
    """
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "two-phase-search"
        kept.parent.mkdir(parents=True, exist_ok=True)
        for folder in (kept, kept / (re.sub(r"[^\w.-]", "_", platform.node()) or "host")):
            folder.mkdir(mode=0o700, exist_ok=True)
            if not is_own(folder):
                _say_once(
                    f"{folder} is a link, another user's or writable by others: compiled code is not kept there "
                    "but built for each process"
                )
                break
        else:
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
        _say_once(f"compiled code cannot be kept ({error}): it is built for each process")
    return Path(_of_this_process().name)


def keep_kernels() -> None:
    """Have Triton keep its kernels there as well, unless the user has named a place."""
    if TRITON not in os.environ and "TRITON_HOME" not in os.environ:
        os.environ[TRITON] = str(build_folder() / "triton")
