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
from pathlib import Path
from typing import Any

from search.driver import QUIET

os.environ.update(QUIET)

import ray
from ray import tune
from rich.console import Console

from model.modes import CONTEXT_MODES
from search.budgets import Budgets
from search.cluster import plan_resources, start_ray
from search.driver import complete_mlflow
from search.leaderboard import leaderboard, write_results
from search.ledger import Ledger
from search.progress import Display
from search.spaces import Space, Study
from search.tuner import run_trials
from trainables import metrics as names
from trainables.config import BigramConfig, RunConfig
from trainables.records import Records
from trainables.tracking import Tracker
from trainables.two_phase import COLLAPSED, COMPUTE, DIVERGED, FINAL, PHASE, SERIES, STEP, TOTAL

NAMES = [value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)]
FIGURES = {name: 1.0 for name in NAMES if not name.startswith(names.SERIES)}  # of a trial
RUNTIME = {"device_name": "none", "threads": 1, "gpus": 0.0}


def at_once(config: dict[str, Any], **_: Any) -> None:
    """A trial that does nothing: three epochs and its figures in two reports."""
    epochs = [(names.EPOCH_VAL_PPL, epoch, 30.0 - epoch) for epoch in (1, 2, 3)]
    report = {PHASE: "phase 2", STEP: 3, TOTAL: 3, DIVERGED: "", COLLAPSED: "", COMPUTE: "none"}
    tune.report({**report, SERIES: epochs, FINAL: {}})
    figures = FIGURES | {names.VAL_PPL: 20 + config["context_dim"] / 100}
    tune.report({**report, SERIES: [], FINAL: figures})


def wide_study(trials: int) -> Study:
    """A random search over so many models that few proposals repeat."""
    inputs = {"data": "none", "data_fingerprint": "none", "embedding": "bigram", "embedding_fingerprint": "none"}
    base = RunConfig(**inputs, bigram=BigramConfig(), context_dim=8)
    dims = tuple(range(8, 8 + max(64, trials // 2)))
    space = Space(context_layers=(1, 4), token_layers=(1, 4), context_dims=dims, context_modes=CONTEXT_MODES)
    return Study(entry="overhead", base=base, space=space, fixed_points=(), sampler="random", trials=trials)


def time_trials(trials: int, records: Records) -> float:
    """Seconds from the first proposal to the last record."""
    ledger, tracker = Ledger(wide_study(trials), "quick", records.optuna_database), Tracker(records, "quick")
    records.use_write_ahead_logs()
    with open(os.devnull, "w") as sink:
        display = Display(Console(file=sink), trials, 0, None)
        inputs, resources = ray.put(None), plan_resources(1, 0, None)
        began = time.perf_counter()
        run_trials(ledger, tracker, display, inputs, records.cache, resources, RUNTIME, None, Budgets(), at_once)
        seconds = time.perf_counter() - began
    tracker.end_study("FINISHED", {}, [])
    assert len(ledger.finished()) == trials
    return seconds


def fill(trials: int, records: Records) -> None:
    """A study of that many finished trials, in the ledger and in MLflow."""
    ledger, tracker = Ledger(wide_study(trials), "study", records.optuna_database), Tracker(records, "study")
    records.use_write_ahead_logs()
    while (assignment := ledger.next()) is not None:
        figures = FIGURES | {names.VAL_PPL: 20 + assignment.number / 100}
        config = assignment.config
        run = tracker.start_trial(assignment.number, config.config_hash(), "trial", config.flat())
        ledger.complete(assignment.number, figures)
        tracker.finish_trial(run, figures)
    tracker.end_study("FINISHED", {}, [])


def time_opening(trials: int, records: Records) -> float:
    """Seconds from opening a study's records to its next proposal, and of its tables at the end."""
    began = time.perf_counter()
    ledger = Ledger(wide_study(trials + 1), "study", records.optuna_database)
    assert not ledger.enough(Budgets())
    tracker = Tracker(records, "study")
    complete_mlflow(ledger, tracker, RUNTIME)
    ledger.next()
    write_results(ledger, leaderboard(ledger, None), records.study("study"), "")
    tracker.end_study("FINISHED", {}, [])
    return time.perf_counter() - began


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
            seconds = time_trials(args.trials, Records.at(Path(folder) / "trials"))
            profiler.disable()
            ray.shutdown()
            print(f"{args.trials} trials that return at once: {seconds:.1f} s, {seconds / args.trials:.3f} s each")
        if args.finished:
            empty, full = Records.at(Path(folder) / "empty"), Records.at(Path(folder) / "full")
            fill(0, empty)
            fill(args.finished, full)
            nothing = min(time_opening(0, empty) for _ in range(3))
            if args.profile:
                profiler.enable()
            much = time_opening(args.finished, full)
            profiler.disable()
            print(f"opening {args.finished} finished trials: {much:.2f} s, an empty study: {nothing:.2f} s")
    if args.profile:
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(70)
        print(text.getvalue())


if __name__ == "__main__":
    main()
