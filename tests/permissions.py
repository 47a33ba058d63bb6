"""Processes of tests that may write where their files' permissions let them, as root too."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked

DROP_FROM_BOUNDING_SET, DAC_OVERRIDE = 24, 1
CAPABILITIES = 0x20080522  # the version of the two calls' structures


def obey_permissions() -> None:
    """Linux' root may write anywhere: give that up; others have nothing to give up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, DAC_OVERRIDE)


def obey_permissions_at_once() -> None:
    """As `obey_permissions`, which lets the process itself go on as before until it starts another program."""
    obey_permissions()
    if sys.platform == "linux":
        header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capget(header, sets) == 0
        for which in range(3):  # effective, permitted, inherited
            sets[which] &= ~(1 << DAC_OVERRIDE)
        assert ctypes.CDLL(None).capset(header, sets) == 0


def run_obeying(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return forked.run(command, obeying=True, **options)


def start_obeying(command: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command, preexec_fn=obey_permissions, text=True, **options)


@contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """Nothing in `folder` may be written meanwhile; what it holds is as before afterwards."""
    before = everything(folder)
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert everything(folder) == before


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file and folder's time of change and size."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
