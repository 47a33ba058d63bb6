"""Runs a study's trials on Ray Tune; the ledger decides what runs, Tune only where and when."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from search.execution.cluster import Resources
from search.execution.recorder import Recorder
from search.execution.searcher import LedgerSearcher, PicklesEmpty
from search.ledger.budgets import Budgets
from search.ledger.ledger import Ledger
from search.screen import Display
from trainables.errors import StoppedError
from trainables.host.digests import ROOT, own_code
from trainables.host.signals import tune_ended
from trainables.records import Records
from trainables.tracking.writer import BackgroundWriter
from trainables.two_phase import two_phase

# Tune prints each failed trial's traceback; ours is one line on the screen and the whole story in MLflow.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


MAX_RESTARTS = 3  # of Tune within one run of a study


@dataclass(frozen=True)
class Outcome:
    """How running a study's trials ended."""

    cut_off: int  # trials that were interrupted
    bug: str | None  # the error of the last trials, if that is why no more were asked for


class _Stopper(PicklesEmpty, tune.Stopper):
    """Asks the recorder about each report."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._recorder.stop(trial_id, result)

    def stop_all(self) -> bool:
        """The searcher ends a study, by asking for nothing more."""
        return False


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)  # the default spells out the whole configuration


def run_trials(
    ledger: Ledger,
    writer: BackgroundWriter,
    display: Display,
    inputs: ray.ObjectRef,
    records: Records,
    resources: Resources,
    runtime: dict[str, Any],
    profile: Path | None,
    budgets: Budgets,
    timeout: float,
    train: Callable[..., None] = two_phase,
) -> Outcome:
    """Run trials until the ledger has no more, a budget is used up, a signal ends them, or they all fail alike.

    Args:
        profile: a folder that the first one is recorded into, if given.
        timeout: a trial that is silent for so many minutes is ended.
        train: what a trial is; tests/overhead.py gives one that returns at once.

    Raises:
        StoppedError: Ray broke off again and again.
    """
    trainable = tune.with_parameters(
        train,
        inputs=[inputs],
        cache=str(records.cache),
        threads=resources.threads,
        gpus=resources.gpus,
        code=(own_code(), str(ROOT)),
    )
    restarts = 0
    with display:
        while True:
            searcher = LedgerSearcher(ledger, profile, budgets)
            recorder = Recorder(ledger, writer, display, searcher, runtime, records, 60 * timeout)
            try:
                return _run_tune(trainable, searcher, recorder, resources)
            except StoppedError as error:
                if restarts == MAX_RESTARTS:
                    raise
                restarts += 1
                display.on_restart(str(error))


def _run_tune(
    trainable: Callable[..., None], searcher: LedgerSearcher, recorder: Recorder, resources: Resources
) -> Outcome:
    """As `run_trials`, until an error ends Tune itself; what ran is then on record as interrupted.

    Raises:
        StoppedError: it is one of Ray's that Tune takes neither for a trial's nor for a lost worker, such as that of a
            worker which Ray's watch over the host's memory has ended.
    """
    request = {"cpu": resources.cpus, "gpu": resources.gpus}
    # Tune's own state: nothing of it is needed again
    with tempfile.TemporaryDirectory(prefix="tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable, request),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=resources.max_concurrent,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name="study", storage_path=scratch, verbose=0, callbacks=[recorder], stop=_Stopper(recorder),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except Exception as error:
            if recorder.broken is None:  # else Tune has made an error of its own of it
                if isinstance(error.__cause__, ray.exceptions.RayError):
                    raise StoppedError(f"Ray: {str(error.__cause__).strip().partition('. ')[0]}") from error
                raise
        finally:
            tune_ended()
            cut_off = recorder.interrupt_open()
    if recorder.broken is not None:
        raise recorder.broken
    return Outcome(cut_off, recorder.bug)
