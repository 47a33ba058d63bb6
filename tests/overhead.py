"""What the platform itself costs: trials that return at once, and opening a study of many finished trials.

python tests/overhead.py [--trials 200] [--finished 1000] [--profile]
"""

import argparse
import cProfile
import io
import os
import pstats
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search.execution.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import ray
from ray import tune
from rich.console import Console

from model.modes import CONTEXT_MODES
from search.execution.cluster import plan_resources, start_ray
from search.execution.reconcile import complete_mlflow
from search.execution.tuner import run_trials
from search.findings.leaderboard import leaderboard, trial_name, write_results
from search.ledger.budgets import Budgets
from search.ledger.ledger import Ledger
from search.screen import Display
from search.spaces import Space, Study
from trainables import metrics as names
from trainables.config import BigramConfig, RunConfig
from trainables.host.digests import Provenance
from trainables.progress import Progress
from trainables.records import Records
from trainables.reports import DocumentLosses, Finished, Point, Report
from trainables.tracking.operations import EndStudy
from trainables.tracking.study_runs import StudyRuns
from trainables.tracking.writer import BackgroundWriter
from trainables.two_phase import TASK

NAMES = [value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)]
FIGURES = {name: 1.0 for name in NAMES if not name.startswith(names.SERIES)}  # of a trial
RUNTIME = {"threads": 1, "gpus": 0.0}


def at_once(config: dict[str, Any], **_: Any) -> None:
    """A trial that does nothing: three epochs and its figures in two reports."""
    epochs = [Point(names.EPOCH_VAL_PPL, epoch, 30.0 - epoch) for epoch in (1, 2, 3)]
    made = Provenance(code="none", torch="none", device="none", compute="none")
    report = Report(at=Progress("phase 2", 3, 3), points=epochs, device_name="none", provenance=made)
    tune.report(report.as_result())
    figures = FIGURES | {names.VAL_PPL: 20 + config[TASK].config.context_dim / 100}
    tune.report(replace(report, points=[], end=Finished(figures, DocumentLosses([], [], []), "")).as_result())


def wide_study(trials: int) -> Study:
    """A random search over so many models that few proposals repeat."""
    inputs = {"data": "none", "data_fingerprint": "none", "embedding": "bigram", "embedding_fingerprint": "none"}
    base = RunConfig(**inputs, bigram=BigramConfig(), context_dim=8)
    dims = tuple(range(8, 8 + max(64, trials // 2)))
    space = Space(context_layers=(1, 4), token_layers=(1, 4), context_dims=dims, context_modes=CONTEXT_MODES)
    return Study(entry="overhead", base=base, space=space, fixed_points=(), sampler="random", trials=trials)


@dataclass(frozen=True)
class Cost:
    """On the clock, and CPU time of this process with all its threads, which other processes disturb less."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s (CPU {self.cpu:.2f} s)"


class Watch:
    """Measures from its making."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        """What has passed since."""
        return Cost(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def open_writer(records: Records, name: str) -> tuple[StudyRuns, BackgroundWriter]:
    """MLflow's writer, as the driver opens it."""
    folder = records.study(name)
    folder.mkdir(parents=True, exist_ok=True)
    runs = StudyRuns(records, name, "id")
    writer = BackgroundWriter(runs, records.journal(name, None), print)
    records.use_write_ahead_logs()
    return runs, writer


def time_trials(trials: int, records: Records) -> tuple[Cost, Cost]:
    """From the first proposal to the last trial's end, and until MLflow has all of it."""
    ledger, (runs, writer) = Ledger(wide_study(trials), "quick", records.optuna_database), open_writer(records, "quick")
    with open(os.devnull, "w") as sink:
        display = Display(Console(file=sink), trials, 0, None)
        inputs, resources = ray.put(None), plan_resources(1, 0, None)
        watch = Watch()
        run_trials(
            ledger, writer, display, inputs, records, resources, RUNTIME, None, Budgets(), 60.0, at_once
        )  # fmt: skip
        ran = watch.read()
        writer.put(EndStudy(status="FINISHED", figures={}, files=[]))
        assert writer.close() == 0
        whole = watch.read()
    assert len(ledger.finished()) == trials
    assert len(runs.ended_hashes()["FINISHED"]) == trials
    return ran, whole


def fill(trials: int, records: Records) -> None:
    """A study of that many finished trials, in the ledger and in MLflow."""
    ledger, (runs, writer) = Ledger(wide_study(trials), "study", records.optuna_database), open_writer(records, "study")
    while (assignment := ledger.next()) is not None:
        figures = FIGURES | {names.VAL_PPL: 20 + assignment.number / 100}
        ledger.complete(assignment.number, figures)
    complete_mlflow(ledger, writer, runs.ended_hashes(), records, RUNTIME)
    writer.put(EndStudy(status="FINISHED", figures={}, files=[]))
    assert writer.close() == 0
    ledger.mark_synced(runs.ending)


def time_opening(trials: int, records: Records) -> tuple[Cost, Cost]:
    """From opening a study's records to its first proposal, and its tables at the end."""
    watch = Watch()
    ledger = Ledger(wide_study(trials + 1), "study", records.optuna_database)
    assert not ledger.nothing_to_run(Budgets())
    made = len(ledger.made_with_replicates())
    runs, writer = open_writer(records, "study")
    if not ledger.is_synced(runs.ending):
        complete_mlflow(ledger, writer, runs.ended_hashes(), records, RUNTIME)
    leader = ledger.leader()
    known = (leader.ppl, trial_name(leader.config)) if leader else None
    Display(Console(), ledger.study.trials + ledger.planned_replicates(), made, known)
    assignment = ledger.next()
    opened = watch.read()
    assert made == trials
    assert assignment is not None
    watch = Watch()
    write_results(ledger, leaderboard(ledger, None), records.study("study"), "")
    writer.put(EndStudy(status="FINISHED", figures={}, files=[]))
    writer.close()
    return opened, watch.read()


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--finished", type=int, default=1_000)
    parser.add_argument("--profile", action="store_true", help="also where the driver's time goes")
    args = parser.parse_args()
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        if args.trials:
            start_ray(None)
            time_trials(4, Records.at(Path(folder) / "warm"))
            if args.profile:
                profiler.enable()
            ran, whole = time_trials(args.trials, Records.at(Path(folder) / "trials"))
            profiler.disable()
            ray.shutdown()
            print(f"{args.trials} trials that return at once: {ran}, {ran.wall / args.trials:.3f} s each")
            print(f"until MLflow has them: {whole}")
        if args.finished:
            empty, full = Records.at(Path(folder) / "empty"), Records.at(Path(folder) / "full")
            fill(0, empty)
            fill(args.finished, full)
            nothing, _ = time_opening(0, empty)
            if args.profile:
                profiler.enable()
            much, tables = time_opening(args.finished, full)
            profiler.disable()
            print(f"opening {args.finished} finished trials: {much}, an empty study: {nothing}; the end: {tables}")
    if args.profile:
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(70)
        print(text.getvalue())


if __name__ == "__main__":
    main()
