"""A content-addressed folder of things that cost time to make: token ids, embeddings, Phase-1 results.

An artefact is a folder `ROOT/<kind>-<key>/` whose `manifest.json` has that name and every file with its SHA-256.
It appears by one atomic rename, so a reader sees all of it or none. Whatever does not match its
manifest (half-written, truncated, tampered, renamed) is a miss: it is removed and made again.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def matches_manifest(folder: Path) -> bool:
    """Whether an artefact's folder holds what its manifest says, byte by byte."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        present = {p.name: file_sha256(p) for p in folder.iterdir() if p.name != MANIFEST}
        return bool(manifest == {"name": folder.name, "files": present})
    except (OSError, ValueError):
        return False


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
        with self._locked(folder, waiting):
            if self._intact(folder):
                return folder, True
            if folder.is_symlink() or folder.is_file():
                folder.unlink()
            shutil.rmtree(folder, ignore_errors=True)
            for left_behind in self.root.glob(f".{folder.name}.*/"):  # by a process that was killed meanwhile
                shutil.rmtree(left_behind, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=self.root))
            scratch.chmod(0o755)  # others may read a shared cache
            try:
                make(scratch)
                self._seal(scratch, folder.name)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return folder, False

    def intact(self, kind: str) -> Iterator[Path]:
        """The folders of all artefacts of a kind that are as their manifests say, whatever they were made by."""
        return filter(matches_manifest, sorted(self.root.glob(f"{kind}-*")))

    @contextmanager
    def _locked(self, folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
        """Held for one artefact, however long another process takes for it."""
        lock = FileLock(self.root / f".{folder.name}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=WAIT)
            except Timeout:
                waiting()
        try:
            yield
        finally:
            lock.release()

    @staticmethod
    def _seal(scratch: Path, name: str) -> None:
        files = {p.name: file_sha256(p) for p in sorted(scratch.iterdir())}
        manifest = scratch / MANIFEST
        manifest.write_text(json.dumps({"name": name, "files": files}, indent=1))
        for file in files:  # safetensors makes files for their owner alone
            (scratch / file).chmod(manifest.stat().st_mode)

    @staticmethod
    def _intact(folder: Path) -> bool:
        if not folder.exists():
            return False
        intact = matches_manifest(folder)
        if not intact:
            log.warning("cached %s does not match its manifest: it is made again", folder.name)
        return intact
