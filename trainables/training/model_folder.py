"""A model's folder on disk: what it holds, whose it is, and how a finished model gets there. No torch.

`run.json` says everything about a finished model; while one is trained, `.resume/` holds what it goes on from.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.config import RUN
from trainables.host.preflight import check_folder
from trainables.records import write_whole

WORK, BEGUN = ".resume", "begun.json"
CODE = "code"  # in an identity: `digests.code_digest`


class ModelFolder:
    """One folder, for one run; `identity` names it: the configuration's hash and what else its digits depend on."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.work = path / WORK

    def check(self, overwrite: bool) -> None:
        """Raise ValueError where nothing can be written, or the folder holds something else, unless that is a model
        that may be replaced."""
        check_folder(self.path, f"--out {self.path}")
        if not self.path.exists():
            return
        if not (self.path / RUN).exists() and not (self.work / BEGUN).exists():
            # an empty WORK was left by a run that was killed before it began
            if any(entry.name != WORK for entry in self.path.iterdir()):
                raise ValueError(f"--out {self.path} holds other files, no model: give another folder")
        elif not overwrite and (self.finished() or self.begun()) is None:
            if any(self._of_other_code(path) for path in (self.path / RUN, self.work / BEGUN)):
                raise ValueError(f"{self.path} was trained by other code: --overwrite trains it anew")
            raise ValueError(f"{self.path} holds the model of another run: give another --out, or --overwrite")

    def finished(self) -> dict[str, Any] | None:
        """The record of this very run, if it has ended here."""
        return self._own(self.path / RUN)

    def begun(self) -> dict[str, Any] | None:
        """What this very run left when it was interrupted, if it was."""
        return self._own(self.work / BEGUN)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _own(self, path: Path) -> dict[str, Any] | None:
        content = self._read(path)
        # a record of before the code was kept is taken as this one's
        recorded = {CODE: self.identity.get(CODE), **(content.get("identity") or {})}
        return content if content and recorded == {CODE: None, **self.identity} else None

    def _of_other_code(self, path: Path) -> bool:
        """Whether nothing but the code sets what is in `path` apart from this run."""
        recorded = self._read(path).get("identity") or {}
        return bool(recorded) and {**recorded, CODE: self.identity.get(CODE)} == self.identity

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; one that was made for it and stays empty is removed.

        The lock is a file beside it that stays: one that is removed may be held by who has opened it before.

        Raises:
            ValueError: another process holds it.
        """
        path = self.path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not Path(lock.lock_file).exists():  # a file system that takes no new files
                raise ValueError(f"{self.path}: no file can be made in {path.parent}") from None
            raise ValueError(f"{self.path} is being trained by another process") from None
        made = [self.work] if self.path.exists() else [self.work, self.path]
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            for folder in made:
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()
            lock.release()

    def clear(self) -> None:
        """Forget what an interrupted training left."""
        for entry in self.work.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def begin(self, content: dict[str, Any]) -> None:
        """Mark the folder as this run's."""
        write_whole(self.work / BEGUN, json.dumps({"identity": self.identity, **content}))

    def finish(self, made: Path, record: dict[str, Any]) -> None:
        """Move the files in `made` here; the record, with this run's `identity`, comes last: what has one is whole."""
        (self.path / RUN).unlink(missing_ok=True)
        for file in made.iterdir():
            file.replace(self.path / file.name)
        write_whole(self.path / RUN, json.dumps(record, indent=1) + "\n")
