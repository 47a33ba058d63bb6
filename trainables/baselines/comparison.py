"""A two-phase model and its baselines: each training in a process of its own, all on record in MLflow.

A baseline is trained once for each learning rate, and the best by validation loss counts: more than the two-phase
model is given.
"""

import multiprocessing
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from model.errors import user_errors
from trainables import metrics as names
from trainables.baselines.candidate import TWO_PHASE, ComparedModel, train_and_score
from trainables.config import RunConfig
from trainables.errors import DivergedError, NoResultError
from trainables.pipeline import Inputs
from trainables.reports import Point
from trainables.tracking.model_runs import ModelRuns
from trainables.tracking.operations import FailRun, FinishRun, LogPoints, StartRun
from trainables.tracking.tags import ROLE_TAG
from trainables.tracking.writer import BackgroundWriter
from trainables.training.options import TrainingSettings
from trainables.training.run import params_and_tags, prepare_training, say_start, trial_of
from trainables.training.view import comparison_table

LEARNING_RATES = (0.0005, 0.001, 0.002, 0.004)  # of a baseline
FURTHER = 6  # times that they are halved or doubled where the best is at an end


def run_comparison(settings: TrainingSettings, console: Console) -> list[ComparedModel]:
    """Train the configuration and the baselines of `settings`, and show them in one table; no model is kept.

    Raises:
        UserError: what the user can mend.
        NoResultError: a model diverged, collapsed or does not fit, or its process died; those before it are shown.
    """
    with user_errors():
        runs = ModelRuns(settings.records, settings.destination.uri)
        place, inputs, _ = prepare_training(settings, console)
        params, tags = params_and_tags(settings, place, inputs, trial_of(settings, runs))
    say_start(settings, place, inputs, console)
    kinds = [TWO_PHASE, *settings.baselines]
    found: list[ComparedModel] = []
    with tempfile.TemporaryDirectory() as scratch:  # what MLflow lacks at the end is not handed over later
        writer = BackgroundWriter(runs, Path(scratch) / "journal", console.print, "comparison")

        def start(kind: str, name: str, own: dict[str, object]) -> str:
            token = uuid.uuid4().hex
            role = {ROLE_TAG: f"compared: {kind}"}
            writer.put(StartRun(token, name=name, params=params | {"model": kind} | own, tags=tags | role))
            return token

        try:
            for each in compared(settings.config, inputs, kinds, float(place.device == "cuda"), place.threads):
                found.append(each)
                own = {"shape": each.shape, "phase2_learning_rate": each.rate, "learning_rates_tried": each.rates}
                token = start(each.kind, f"{each.kind} {each.shape}", own)
                writer.put(LogPoints(token, points=[Point(*point) for point in each.points]))
                writer.put(FinishRun(token, figures=each.metrics))
        except NoResultError as error:
            kind = kinds[len(found)]
            writer.put(FailRun(start(kind, kind, {}), reason=str(error)))
            raise
        finally:
            if found:  # those before an error were trained for nothing otherwise
                console.print(comparison_table(found))
            if lacking := writer.close():
                console.print(f"MLflow is away and lacks {lacking} run(s)")
    return found


def compared(
    config: RunConfig, inputs: Inputs, kinds: Sequence[str], gpus: float, threads: int
) -> Iterator[ComparedModel]:
    """One model after the other, a baseline with its best learning rate.

    Raises:
        NoResultError: a model diverged, collapsed or does not fit, or its process died.
    """
    for kind in kinds:

        def attempt(rate: float, kind: str = kind) -> ComparedModel:
            return _alone(kind, config.replace(phase2_learning_rate=rate), inputs, gpus, threads)

        try:
            yield attempt(config.phase2.learning_rate) if kind == TWO_PHASE else best_of_rates(attempt)
        except NoResultError as error:
            raise NoResultError(f"{kind}: {error}") from None


def best_of_rates(attempt: Callable[[float], ComparedModel]) -> ComparedModel:
    """The best by validation PPL of `LEARNING_RATES`, and beyond them while the best is the lowest or highest tried.

    Beyond an end rates are halved or doubled, `FURTHER` times at most. One that diverges is worse than any other.

    Raises:
        DivergedError: with each of the rates.
    """
    tried: dict[float, ComparedModel | None] = {}

    def ppl(rate: float) -> float:
        model = tried[rate]
        return float("inf") if model is None else model.metrics[names.VAL_PPL]

    waiting = list(LEARNING_RATES)
    while waiting:
        rate = waiting.pop(0)
        try:
            tried[rate] = attempt(rate)
        except DivergedError:
            tried[rate] = None
        if not waiting and len(tried) < len(LEARNING_RATES) + FURTHER:
            best = min(sorted(tried), key=ppl)
            waiting = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
    rates = tuple(sorted(tried))
    kept = tried[min(rates, key=ppl)]
    if kept is None:
        raise DivergedError(f"diverged with each learning rate from {rates[0]:g} to {rates[-1]:g}")
    return replace(kept, rates=rates)


def _alone(kind: str, config: RunConfig, inputs: Inputs, gpus: float, threads: int) -> ComparedModel:
    """`train_and_score` in a fresh process: what a training leaves in memory or has made once is not another's."""
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_hand_over, args=(send, kind, config, inputs, gpus, threads), daemon=True)
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        process.join()
        raise NoResultError(f"its process ended with exit code {process.exitcode}") from None
    finally:  # Ctrl-C included
        process.terminate()
        process.join()
    if isinstance(found, Exception):
        raise found
    model: ComparedModel = found
    return model


def _hand_over(send: Connection, kind: str, config: RunConfig, inputs: Inputs, gpus: float, threads: int) -> None:
    """What `train_and_score` returns, or why there is nothing, to the process that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits ends this one
    try:
        send.send(train_and_score(kind, config, inputs, gpus, threads))
    except NoResultError as error:
        send.send(error)
