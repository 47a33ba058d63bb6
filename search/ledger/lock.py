"""One driver per study."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from model.errors import UserError


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file; nothing is made or written. A lock that cannot be read counts as held."""
    try:
        file = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back when the file is closed
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def is_running(folder: Path) -> bool:
    """Whether a driver holds the study of this folder now."""
    # without a holder's name there is no driver, and one that begins just now is not disturbed
    return (folder / "driver").exists() and is_held(folder / ".lock")


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Holds a study for this process; a second one is told who has it."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "driver"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            who = holder.read_text().strip()
        except OSError:  # it begins or ends just now
            who = "another process"
        raise UserError(f"study {folder.name!r} is being run by {who}") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
