"""Processes of tests that may write where their files' permissions let them, as root too."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def obey_permissions() -> None:
    """Linux' root may write anywhere: give that up; others have nothing to give up."""
    if sys.platform == "linux":
        drop_from_bounding_set, dac_override = 24, 1
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override)


def run_obeying(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, preexec_fn=obey_permissions, capture_output=True, text=True, check=False, timeout=300, **options
    )


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
