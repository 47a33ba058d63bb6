"""Writes down what becomes of each trial, as Tune tells it."""

import re
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from search.execution.searcher import LedgerSearcher, PicklesEmpty
from search.findings.leaderboard import trial_name
from search.ledger.ledger import MAX_FAILURES, Assignment, Ledger
from search.ledger.records import TrialRecord, write_trial_record
from search.ledger.trials import INTERRUPTED, LOST
from search.screen import Display
from trainables.config import RunConfig
from trainables.errors import OtherCodeError, unwritable
from trainables.metrics import EPOCH_VAL_PPL
from trainables.phases.convergence import with_converged
from trainables.records import Records
from trainables.reports import Collapsed, Failed, Finished, Report, report_of
from trainables.tracking.operations import FailRun, FinishRun, LogFile, LogPoints, PruneRun, StartRun
from trainables.tracking.tags import COMPUTE_TAG, DEVICE_TAG, provenance_tags, trial_tags
from trainables.tracking.writer import BackgroundWriter
from trainables.two_phase import TASK

MAX_SAME_ERRORS = 3  # trials in a row that failed alike, none having succeeded since: a bug, not bad luck
# What a worker or a node that died leaves behind.
LOSSES = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.ObjectLostError)


Method = TypeVar("Method", bound=Callable[..., Any])


def _remembered(method: Method) -> Method:
    """Keep the error that writing something down ends with, for Tune takes it for the trial's own."""

    @wraps(method)
    def call(self: "Recorder", *args: Any, **kwargs: Any) -> Any:
        if self.broken is not None:
            raise self.broken
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.broken = error
            raise

    return cast(Method, call)


class Recorder(PicklesEmpty, Callback):
    """Writes what happens to each trial into its record, the ledger, MLflow and the display, in that order."""

    def __init__(
        self,
        ledger: Ledger,
        writer: BackgroundWriter,
        display: Display,
        searcher: LedgerSearcher,
        runtime: dict[str, Any],
        records: Records,
        timeout: float,
    ) -> None:
        self._records = records
        self._seen: dict[int, TrialRecord] = {}  # by trial number
        self._ledger, self._writer, self._display, self._searcher = ledger, writer, display, searcher
        self._runtime = runtime  # params of every run that are no part of the configuration
        self._runs: dict[int, str] = {}  # config hash, which finds the MLflow run, by trial number
        self._open: set[int] = set()
        self._best: dict[int, tuple[float, int]] = {}  # trial -> lowest validation PPL and its epoch
        self._stopped: dict[int, str] = {}  # why a trial was stopped in Phase 2
        self._timeout = timeout  # seconds
        self._heard: dict[int, float] = {}  # when each trial last showed a sign of life
        self._killed: set[int] = set()  # for having shown none
        self._alike: list[int] = []  # the last failed trials, all for the same reason
        self._error = ""  # that reason, without its numbers
        self.bug: str | None = None
        self.broken: Exception | None = None  # what no more could be written down for

    @_remembered
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = self._searcher.assigned[trial.trial_id]
        config, number = assignment.config, assignment.number
        name = trial_name(config, assignment.replicate_of is not None)
        params = config.flat() | self._runtime
        self._seen[number] = TrialRecord(config.config_hash(), number, config.seed, config=config.flat())
        self._runs[number] = config.config_hash()
        tags = trial_tags(number, assignment.replicate_of)
        self._writer.put(StartRun(self._runs[number], name=name, params=params, tags=tags))
        self._open.add(number)
        self._heard[number] = time.monotonic()
        self._display.start(number, name, config)

    @_remembered
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number = self._searcher.assigned[trial.trial_id].number
        self._heard[number] = time.monotonic()
        report = report_of(result)
        assert report is not None  # trials report nothing else
        self._seen[number].add(report.points)
        if report.points:
            self._writer.put(LogPoints(self._runs[number], points=report.points))
        self._display.update(number, report)

    @_remembered
    def stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to be stopped for what a report of it shows.

        Tune asks before it hands on the report, and the trial waits in its report meanwhile: one that is stopped ends
        there, and its worker is free for the next.
        """
        number = self._searcher.assigned[trial_id].number
        report = report_of(result)
        if report is None or result.get("done") or number in self._stopped:  # Tune shows the last report once more
            return number in self._stopped
        patience = self._searcher.assigned[trial_id].config.phase2.patience
        for name, epoch, value in report.points:  # all of them are recorded, as in MLflow
            if name != EPOCH_VAL_PPL:
                continue
            best = min(self._best.get(number, (value, epoch)), (value, epoch))
            self._best[number] = best
            reason = self._ledger.epoch(number, epoch, value, vars(report.provenance))
            # The epoch after which the trial ends by itself is not scored: nothing is left to be saved.
            if reason and epoch < report.at.total and epoch - best[1] < patience:
                self._stopped.setdefault(number, reason)
        return number in self._stopped

    @_remembered
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = self._searcher.assigned[trial.trial_id]
        number, config = assignment.number, assignment.config
        self._searcher.ended.add(trial.trial_id)
        last = report_of(trial.last_result)
        if number in self._stopped:
            self._prune(number, config, self._stopped[number], {}, last)
            return
        match last and last.end:
            case Collapsed(reason, metrics):
                self._prune(number, config, reason, metrics, last)
            case Failed(reason):
                self._fail(number, reason, "", last)
            case Finished() as end:
                assert last is not None
                self._finish(assignment, end, last, trial.config[TASK].profile)
            case None:
                pass  # it was stopped from outside: `interrupt_open` records it

    def _finish(self, assignment: Assignment, end: Finished, last: Report, profile: Path | None) -> None:
        self._alike, number, place = [], assignment.number, _place(last)
        kept = {"metrics": end.metrics, "runtime": self._runtime | place, "phase1_by": end.phase1_by}
        left = self._keep(number, "finished", result={**vars(end.documents), **kept})
        self._ledger.complete(number, end.metrics, last.provenance.compute, vars(last.provenance), left)
        self._open.discard(number)
        operation = FinishRun(
            self._runs[number],
            figures=with_converged(assignment.config, end.metrics),
            place=place,
            phase1_by=end.phase1_by,
            traces=self._records.inside(profile) if profile else None,
        )
        self._writer.put(operation)
        self._display.finish(number, end.metrics, may_lead=assignment.replicate_of is None)

    @_remembered
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._searcher.ended.add(trial.trial_id)
        number = self._searcher.assigned[trial.trial_id].number
        if number not in self._runs:
            self.on_trial_start(iteration, trials, trial)  # it failed before it started
        error, last = _error(trial), report_of(trial.last_result)
        if number in self._killed:
            reason: str | None = f"no progress for {self._timeout / 60:g} min"
        elif isinstance(error, LOSSES):
            reason = self._ledger.on_worker_lost(number, _provenance(last))
        else:
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[-1]}"
        if reason is None:
            self._open.discard(number)
            self._writer.put(FailRun(self._runs[number], reason=LOST, status="KILLED"))
            self._display.on_worker_lost(number)
            return
        self._fail(number, reason, _story(trial), last)
        # neither a full disk nor a host with another version is a trial's own fault
        self._count(number, reason, stop=bool(unwritable(error)) or isinstance(error, OtherCodeError))

    def _fail(self, number: int, reason: str, details: str, last: Report | None) -> None:
        place = _place(last)
        left = self._keep(number, "failed", reason, {"runtime": self._runtime | place})
        if not self._ledger.has_ended(number):
            self._ledger.fail(number, reason, _provenance(last), left)
        self._open.discard(number)
        self._writer.put(FailRun(self._runs[number], reason=reason, details=details, place=place))
        self._display.fail(number, reason)

    def _prune(
        self, number: int, config: RunConfig, reason: str, figures: dict[str, float], last: Report | None
    ) -> None:
        self._alike, place = [], _place(last)
        left = self._keep(number, "pruned", reason, {"runtime": self._runtime | place})
        self._ledger.prune(number, reason, figures, _provenance(last), left)
        self._open.discard(number)
        all_figures = with_converged(config, figures)
        self._writer.put(PruneRun(self._runs[number], reason=reason, figures=all_figures, place=place))
        self._display.prune(number, reason)

    def _keep(self, number: int, status: str, reason: str = "", result: dict[str, Any] | None = None) -> str:
        """Write the trial's record, before the ledger has its end, so that what has ended has one; its digest."""
        record = self._seen.pop(number).ended(status, reason, result)
        path = self._records.trial_record(self._ledger.name, record.config_hash)
        digest = write_trial_record(path, record)
        self._writer.put(LogFile(self._runs[number], file=self._records.inside(path)))
        return digest

    def _count(self, number: int, reason: str, stop: bool) -> None:
        """Stop asking where one error after the other is the same, or at once with `stop`."""
        kind = re.sub(r"\d+", "0", reason)
        self._alike = [*self._alike, number] if kind == self._error else [number]
        self._error = kind
        if stop or len(self._alike) >= MAX_SAME_ERRORS:
            again = self._ledger.run_again(self._alike, always=stop)
            left_out = f"goes on without these trials, which have failed {MAX_FAILURES} times"
            then = "runs these trials again and continues" if again else left_out
            self._searcher.stopped, self.bug = True, f"{reason}; mend it, and the same command {then}"

    @_remembered
    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Kill the workers of trials that hang; their trials then end with an error."""
        for trial in trials:
            assignment = self._searcher.assigned.get(trial.trial_id)
            if assignment is None or assignment.number not in self._open or assignment.number in self._killed:
                continue
            actor = trial.temporary_state.ray_actor
            if actor is not None and time.monotonic() - self._heard[assignment.number] > self._timeout:
                self._killed.add(assignment.number)
                ray.kill(actor)

    def interrupt_open(self) -> int:
        """Record the trials that never ended as interrupted, to be asked for again; how many there were."""
        pending = {a.number for a in self._searcher.assigned.values()} - set(self._runs)
        cut_off = [number for number in sorted(self._open | pending) if not self._ledger.has_ended(number)]
        for number in cut_off:
            self._ledger.interrupt(number)
            if number in self._runs:
                self._writer.put(FailRun(self._runs[number], reason=INTERRUPTED, status="KILLED"))
        return len(cut_off)


def _provenance(last: Report | None) -> dict[str, Any] | None:
    return None if last is None else vars(last.provenance)


def _place(last: Report | None) -> dict[str, str]:
    """Where and by what code a trial ran, by its last report; empty where it made none."""
    if last is None:
        return {}
    made = last.provenance
    return {COMPUTE_TAG: made.compute, DEVICE_TAG: last.device_name, **provenance_tags(vars(made))}


def _unpickled(trial: Trial) -> Exception:
    if trial.pickled_error_file is None:  # Tune keeps what trials raise; this is Ray's own, of a worker that is lost
        lost: Exception = ray.exceptions.WorkerCrashedError()
        return lost
    with open(trial.pickled_error_file, "rb") as file:
        error: Exception = ray.cloudpickle.load(file)
    return error


def _error(trial: Trial) -> Exception:
    """What a trial raised, or how its worker was lost."""
    error = _unpickled(trial)
    return getattr(error, "cause", None) or error


def _story(trial: Trial) -> str:
    return str(_unpickled(trial))
