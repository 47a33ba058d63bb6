"""MLflow's writer: a thread that takes operations from a journal on disk, so that no outage holds a study up.

The driver appends what MLflow should be told, and goes on. What MLflow has taken leaves the journal; what a killed
driver left there is told first when the study is opened again. Telling an operation twice changes nothing.
"""

import errno
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.tracking.store import is_outage, reason_of
from trainables.tracking.study_runs import Tracker

RETRY_SECONDS = 3.0  # before what an MLflow that is away did not take is tried again
GRACE_SECONDS = 10.0  # that a study's end waits for an MLflow that is away

Operation = tuple[str, str, dict[str, Any]]  # the tracker's method, the trial's config hash or "", arguments


def read_journal(journal: Path) -> list[Operation]:
    """What MLflow was not told yet; a last line that a kill cut off is left out.

    Raises:
        ValueError: it holds something else.
    """
    if not journal.exists():
        return []
    whole = journal.read_text().split("\n")[:-1]  # behind the last line's end there is nothing, or half a line
    try:
        return [(verb, key, arguments) for verb, key, arguments in map(json.loads, whole)]
    except ValueError as error:
        raise ValueError(f"{journal} is damaged: delete it, and the same command ends MLflow's runs again") from error


class Spool:
    """Tells `tracker`, in order and in the background, what it was handed."""

    def __init__(self, tracker: Tracker, journal: Path, say: Callable[[str], None], look: bool = True) -> None:
        """Tell MLflow what an earlier driver could not; `start` begins with what is new.

        Args:
            journal: the file of operations; its folder exists.
            say: shows the user a sentence; called from the thread.
            look: whether to find out which trials MLflow has as ended: it reads all their runs.

        Raises:
            ValueError: MLflow is away.
        """
        self.tracker, self.journal, self._say = tracker, journal, say
        self._runs: dict[str, str] = {}  # run by config hash; a trial's first operation finds or makes it
        self._all_mine = tracker.began  # no trial has a run that is not among these
        self._queue: deque[Operation] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._away = False
        self.refused = False  # whether MLflow will never have all that it was told
        self._bug: BaseException | None = None
        # A store that has nothing of this study was emptied since: the journal's trials have no beginning there.
        left_behind = [] if tracker.began else read_journal(journal)
        try:
            for operation in left_behind:
                self._tell(operation)
            if left_behind:  # the study's end may have been among it
                tracker.reopen()
            self.ended = {status: tracker.ended_hashes(status) for status in ("FINISHED", "FAILED")} if look else None
        except Exception as error:
            if not is_outage(error):
                raise
            raise ValueError(f"MLflow cannot be reached: {reason_of(error)}") from error
        journal.unlink(missing_ok=True)
        self._file = journal.open("ab", buffering=0)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to tell; until then the tracker is the caller's."""
        self._thread.start()

    def put(self, verb: str, key: str = "", **arguments: Any) -> None:
        """Have the tracker's method `verb` called, for the trial `key` (a config hash) or for the study."""
        with self._changed:
            if self._bug is not None:
                raise self._bug
            self._append(json.dumps([verb, key, arguments]) + "\n")
            self._queue.append((verb, key, arguments))
            self._changed.notify_all()

    def _append(self, line: str) -> None:
        """Write a line that no kill of this process loses; on a full disk all of it or nothing."""
        data, end = line.encode(), self._file.seek(0, os.SEEK_END)
        if self._file.write(data) < len(data):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.journal))

    def _tell(self, operation: Operation) -> None:
        verb, key, arguments = operation
        try:
            if verb == "start_trial":
                first = self._all_mine and key not in self._runs
                self._runs[key] = self.tracker.start_trial(config_hash=key, first=first, **arguments)
            elif key:
                if key not in self._runs:
                    self._runs[key] = self.tracker.find_trial(key)
                getattr(self.tracker, verb)(self._runs[key], **arguments)
            else:
                getattr(self.tracker, verb)(**arguments)
        except Exception as error:
            if is_outage(error):
                raise
            if not self.tracker.refusal(error):
                raise
            self.refused = True
            what = f"{verb} of {self._runs.get(key, key) or 'the study'}"
            self._say(f"MLflow refused {what}, the study goes on without it: {str(error).splitlines()[0]}")

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._closing)
                    if not self._queue:
                        return
                    operation = self._queue[0]
                try:
                    self._tell(operation)
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
        except BaseException as error:  # a bug: the study's thread raises it
            with self._changed:
                self._bug = error
                self._changed.notify_all()

    def _pause(self, error: Exception) -> None:
        """Before the same operation is tried again, which alone shows whether MLflow is back."""
        self._runs.clear()  # found anew, with the points that got through
        self._all_mine = False  # a run may have been made and the answer lost
        if not self._away:
            self._say(
                f"MLflow is away: the study goes on, its records are kept and handed over later ({reason_of(error)})"
            )
            with self._changed:
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
            if self._bug is not None:
                raise self._bug
            return len({key for _, key, _ in self._queue})
