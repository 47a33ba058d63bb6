"""A content-addressed folder of things that cost time to make: token ids, embeddings, Phase-1 results.

An artefact is a folder `ROOT/<kind>-<key>/` whose `manifest.json` lists every file with its SHA-256.
It appears by one atomic rename, so a reader sees all of it or none. Whatever does not match its
manifest (half-written, truncated, tampered) is a miss: it is removed and made again.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
WAIT = 30.0  # seconds between two signs of life of one that waits for another's artefact


def content_key(value: object) -> str:
    """A 16-hex-digit key of any JSON-serialisable value; the order of dict keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArtifactStore:
    """Artefacts under one folder, shared by processes (file locks) and by studies."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_or_make(
        self, kind: str, key: str, make: Callable[[Path], None], waiting: Callable[[], None] = lambda: None
    ) -> tuple[Path, bool]:
        """The folder of artefact (`kind`, `key`), and whether it was there already.

        `make(folder)` writes its files into an empty folder. Whoever asks for the same artefact at the
        same time waits for the first, calling `waiting` now and then, and shares its result. If `make` raises, nothing
        is kept.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        folder = self.root / f"{kind}-{key}"
        lock = FileLock(self.root / f".{folder.name}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=WAIT)
            except Timeout:
                waiting()
        with lock:
            if self._intact(folder):
                return folder, True
            shutil.rmtree(folder, ignore_errors=True)
            for left_behind in self.root.glob(f".{folder.name}.*/"):  # by a process that was killed meanwhile
                shutil.rmtree(left_behind, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=self.root))
            scratch.chmod(0o755)  # others may read a shared cache
            try:
                make(scratch)
                self._seal(scratch)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return folder, False

    @staticmethod
    def _seal(folder: Path) -> None:
        files = {p.name: file_sha256(p) for p in sorted(folder.iterdir())}
        manifest = folder / MANIFEST
        manifest.write_text(json.dumps(files, indent=1))
        for name in files:  # safetensors makes files for their owner alone
            (folder / name).chmod(manifest.stat().st_mode)

    @staticmethod
    def _intact(folder: Path) -> bool:
        if not folder.exists():
            return False
        try:
            files = json.loads((folder / MANIFEST).read_text())
            present = {p.name: file_sha256(p) for p in folder.iterdir() if p.name != MANIFEST}
            intact = bool(present == files)
        except (OSError, ValueError):
            intact = False
        if not intact:
            log.warning("cached %s does not match its manifest: it is made again", folder.name)
        return intact
