"""One driver per study."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from model.errors import BadInputError


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
        raise BadInputError(f"study {folder.name!r} is being run by {who}") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
