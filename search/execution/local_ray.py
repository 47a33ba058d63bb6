"""Starts Ray on this machine with what this process may use of it; says what keeps it from starting, and what helps."""

import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from model.errors import first_line
from trainables.host.digests import ROOT
from trainables.host.machine import MB, free_memory, memory_limit, usable_cpus

START_ATTEMPTS = 3  # on a busy machine Ray's own half a minute may not be enough
LEAST_MEMORY = 600 * MB  # what Ray's processes and a study's driver take before the first trial
LEAST_STORE = 80 * MB  # of shared memory; Ray asks for 75 MiB
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a Unix socket's path
PORT = "RAY_GCS_SERVER_PORT"  # the only port of a local Ray that can be given
SHARED_MEMORY = Path("/dev/shm")
BUSY = 4.0  # processes that wait for a CPU, for each there is

_leaving = False  # whether processes that are forked now leave this process's group


def _leave() -> None:
    if _leaving:
        os.setpgrp()


os.register_at_fork(after_in_child=_leave)


def start_local(quiet: dict[str, Any]) -> None:
    """Start Ray on this machine.

    Raises:
        ValueError: it cannot be started; the sentence says why and what to do about it.
    """
    if cause := _foreseen():
        raise ValueError(f"Ray cannot start on this machine: {cause}")
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            # "local", or a cluster that a dead process left behind would be joined.
            with _groups_of_their_own(), at_own_code():
                ray.init(address="local", include_dashboard=False, num_cpus=usable_cpus(), **quiet)
        except Exception as error:  # Ray raises nothing narrower where its processes are late or die
            ray.shutdown()
            cause = _cause(error) or (_too_busy() if attempt == START_ATTEMPTS else "")
            if cause:
                raise ValueError(f"Ray cannot start on this machine: {cause}") from error
            if attempt == START_ATTEMPTS:
                logs = _folder() / "ray/session_latest/logs"
                raise ValueError(
                    f"Ray does not start on this machine ({first_line(error)}): its logs lie in {logs}"
                ) from error
        else:
            return


@contextmanager
def at_own_code() -> Iterator[None]:
    """This process in the folder of its own code: Ray puts the working folder before all else that workers import from.

    From the user's own, a `model.py` or another version of the project would be run in place of this one.
    """
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Processes that are forked meanwhile leave this one's group.

    `timeout` and process managers send SIGTERM to the whole group: Ray would be gone before the study can end cleanly.
    """
    global _leaving
    _leaving = True
    try:
        yield
    finally:
        _leaving = False


def _folder() -> Path:
    """Where Ray keeps its sockets and logs, by its own rule."""
    named = os.environ.get("RAY_TMPDIR")
    if named is None and sys.platform == "linux":
        named = os.environ.get("TMPDIR")
    return Path("/tmp" if named is None else named)


def _foreseen() -> str | None:
    """What would keep Ray from starting, slowly and with nothing said, or break its workers later; None if nothing."""
    return _socket_too_long() or _port_taken() or _too_little_memory(memory_limit().amount) or _no_shared_memory()


def _cause(error: Exception) -> str | None:
    """What kept it from starting, and what helps; None where that cannot be told."""
    if isinstance(error, OSError) and (cause := _unwritable(error)):
        return cause
    return _too_little_memory(free_memory())


def _too_busy() -> str | None:
    waiting, cpus = os.getloadavg()[0], usable_cpus()
    if waiting > BUSY * cpus:
        return (
            f"it is too busy ({waiting:.0f} processes want its {cpus} CPU(s)): run this again when there is less to do"
        )
    return None


def _socket_too_long() -> str | None:
    folder = _folder()
    path = folder / f"ray/session_{time.strftime('%Y-%m-%d_%H-%M-%S')}_000000_{os.getpid()}/sockets/plasma_store"
    length = len(os.fsencode(path))
    if length <= LONGEST_SOCKET:
        return None
    return (
        f"its sockets below {folder} would have a path of {length} bytes, and the system takes {LONGEST_SOCKET}: "
        "set RAY_TMPDIR to a shorter folder, such as /tmp"
    )


def _port_taken() -> str | None:
    given = os.environ.get(PORT, "0")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Ray itself: one that has just closed is free
        try:
            probe.bind(("", int(given)))
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "no port number"
            if given == "0":
                return (
                    f"no port can be opened ({reason}): end processes that hold many, or ask whoever runs this machine"
                )
            return f"{PORT}={given} ({reason}): unset it, or name a port that is free"
    return None


def _too_little_memory(there: int) -> str | None:
    if there >= LEAST_MEMORY:
        return None
    by = memory_limit().by
    return (
        f"it has {there // MB} MB of memory for this process{f' ({by})' if by else ''}, and Ray alone takes "
        f"{LEAST_MEMORY // MB}: end other processes, or ask for more"
    )


def _no_shared_memory() -> str | None:
    """Ray's object store lies in shared memory, or where that is small with its sockets."""
    folders = [folder for folder in (SHARED_MEMORY, _folder()) if folder.is_dir()]
    room = {folder: shutil.disk_usage(folder).free for folder in folders}
    if not room or max(room.values()) >= LEAST_STORE:
        return None
    found = " and ".join(f"{folder} has {free // MB} MB" for folder, free in room.items())
    return (
        f"{found} free, and its object store takes {LEAST_STORE // MB}: make {SHARED_MEMORY} larger "
        "(docker run --shm-size=1g), or set RAY_TMPDIR to a folder with room"
    )


def _unwritable(error: OSError) -> str | None:
    if error.errno == errno.ENOSPC:
        return f"the disk of {error.filename or _folder()} is full: make room, or set RAY_TMPDIR to a folder with room"
    if error.filename is None:
        return None
    what = f"{error.filename} cannot be written ({error.strerror})"
    if Path(error.filename).is_relative_to(Path.home()) or Path.home().is_relative_to(error.filename):
        return (
            f"{what}, and it keeps its token in ~/.ray/auth_token: set HOME to a folder of your own, "
            "or RAY_AUTH_TOKEN to a secret"
        )
    return f"{what}: set RAY_TMPDIR to a folder of your own" if Path(error.filename).is_relative_to(_folder()) else None
