"""Where code that was compiled for this host is kept: what lies there is run, so nobody else may have put it there."""

import functools
import grp
import logging
import os
import platform
import pwd
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


def _open_to_others(folder: Path) -> Path | None:
    """The folder, or the first one above it, in which somebody else could put what is run here; None if there is none.

    In a folder with the sticky bit (`/tmp`) each may rename what is their own. A group of the user's own, as many
    systems make for each user, is nobody else.
    """
    if not is_own(folder):
        return folder
    for above in folder.parents:
        found = above.stat()
        writable = found.st_mode & (stat.S_IWOTH if _is_users_own(found.st_gid) else OF_OTHERS)
        if found.st_uid not in (0, os.geteuid()) or (writable and not found.st_mode & stat.S_ISVTX):
            return above
    return None


def _is_users_own(group: int) -> bool:
    try:
        return grp.getgrgid(group).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False


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
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        for folder in (*reversed(caches.absolute().parents), caches):
            folder.mkdir(mode=0o700, exist_ok=True)
        kept = caches.resolve() / "two-phase-search"  # links above it are followed now and not once more
        for folder in (kept, kept / (re.sub(r"[^\w.-]", "_", platform.node()) or "host")):
            folder.mkdir(mode=0o700, exist_ok=True)
            if found := _open_to_others(folder):
                _say_once(
                    f"{found} is a link, another user's or writable by others: compiled code is not kept "
                    f"{'there' if found == folder else f'below it, in {kept},'} but built for each process"
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
