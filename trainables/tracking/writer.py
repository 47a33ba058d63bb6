"""A background writer with a write-ahead journal: no outage of MLflow holds a study or a training up.

Who has something to record appends it to the journal on disk, and goes on. What MLflow has taken leaves the journal;
what a killed process left there is replayed when it is opened again. Applying an operation twice changes nothing.
"""

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mlflow.exceptions import MlflowException

from model.errors import first_line
from trainables.host.signals import defer_signals
from trainables.tracking.operations import Operation, encode, read_journal
from trainables.tracking.runs import ExperimentRuns
from trainables.tracking.store import is_outage, reached, reason_of

RETRY_SECONDS = 3.0  # before what an MLflow that is away did not take is tried again
GRACE_SECONDS = 10.0  # that the end waits for an MLflow that is away


class BackgroundWriter:
    """Applies operations to `runs`, in order and in a thread of its own; each is in the journal until MLflow has it."""

    def __init__(self, runs: ExperimentRuns, journal: Path, say: Callable[[str], None], work: str = "study") -> None:
        """Replay what an earlier process left in the journal; what is new is written in the background.

        Args:
            journal: the file of operations; its folder exists.
            say: shows the user a sentence; called from the thread.
            work: what goes on meanwhile, in a word.

        Raises:
            AwayError: MLflow is away.
            ValueError: the journal is damaged.
        """
        self.runs, self._journal, self._say, self._work = runs, journal, say, work
        self._queue: deque[Operation] = deque()
        self._changed = threading.Condition()
        self._closing = self._over = False  # nothing more is put; nobody waits any more
        self._away = False
        self.refused = False  # whether MLflow will never have all of it
        self._bug: BaseException | None = None
        # A store that has none of these runs was emptied since: the journal's have no beginning there.
        left_behind = [] if runs.is_new else read_journal(journal)
        with reached():
            for operation in left_behind:
                self._apply(operation)
        journal.unlink(missing_ok=True)
        self._file = journal.open("ab", buffering=0)
        threading.Thread(target=self._write, name="mlflow", daemon=True).start()

    def put(self, operation: Operation) -> None:
        """Append an operation; it is on disk when this returns.

        Raises:
            OSError: the journal cannot be written.
        """
        with defer_signals(), self._changed:
            if self._bug is not None:
                raise self._bug
            self._append(encode(operation))
            self._queue.append(operation)
            self._changed.notify_all()

    def _append(self, line: str) -> None:
        """Write a line that no kill of this process loses; on a full disk all of it or nothing."""
        data, end = line.encode(), self._file.seek(0, os.SEEK_END)
        if self._file.write(data) < len(data):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal))

    def _apply(self, operation: Operation) -> None:
        try:
            self.runs.apply(operation)
        except Exception as error:
            if is_outage(error) or not isinstance(error, MlflowException | OSError):
                raise
            self.refused = True
            what = f"{operation.verb} of {operation.key or 'the study'}"
            self._say(f"MLflow refused {what}, the {self._work} goes on without it: {first_line(error)}")

    def _write(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._closing)
                    if not self._queue or self._over:
                        return
                    operation = self._queue[0]
                try:
                    self._apply(operation)
                except Exception as error:
                    if not is_outage(error):
                        raise
                    self._pause(error)
                    continue
                if self._away:
                    self._say("MLflow is back: it is told what it missed")
                with self._changed:
                    self._away = False
                    self._queue.popleft()
                    if not self._queue:
                        self._file.truncate(0)
                    self._changed.notify_all()
        except BaseException as error:  # a bug: who puts the next operation raises it
            with self._changed:
                self._bug = error
                self._changed.notify_all()

    def _pause(self, error: Exception) -> None:
        """Before the same operation is tried again, which alone shows whether MLflow is back."""
        self.runs.forget()
        if not self._away:
            then = f"the {self._work} goes on, its records are kept and handed over later"
            self._say(f"MLflow is away: {then} ({reason_of(error)})")
            self._away = True
        time.sleep(RETRY_SECONDS)

    def close(self, grace: float = GRACE_SECONDS) -> int:
        """Wait while MLflow takes what is left, but not for one that is away; how many runs it lacks."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            left, since = len(self._queue), time.monotonic()
            while self._queue and self._bug is None:
                self._changed.wait(0.2)
                if len(self._queue) < left:
                    left, since = len(self._queue), time.monotonic()
                # an MLflow that is slow is waited for longer than one that is known to be away
                if time.monotonic() - since > (grace if self._away else 6 * grace):
                    break
            self._over = True  # what is left is in the journal
            if self._bug is not None:
                raise self._bug
            return len({operation.key for operation in self._queue})
