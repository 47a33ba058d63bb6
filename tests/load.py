"""How the records bear many trials: studies of costless ones without Ray, opened again, and the whole store examined.

python tests/load.py [--trials 1000] [--runs 5000] [--traced] [--json]

Exit code 1 says that a bound is missed: 50 KB a trial in the driver; of CPU time 2 s for ledger and MLflow's runs of
1,000 trials opened again, and 30 s for a look at 5,000 runs. Of other sizes they are in proportion, but for what
opening costs.
"""

import argparse
import gc
import json
import sys
import tempfile
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from overhead import FIGURES, RUNTIME, Watch, wide_study
from rich.console import Console

from search.audit.mending import mend_leaderboard
from search.doctor import examine
from search.execution.reconcile import complete_mlflow
from search.execution.recorder import Recorder
from search.execution.searcher import LedgerSearcher
from search.ledger.budgets import Budgets
from search.ledger.ledger import Ledger
from search.ledger.results import load_results
from search.screen import Display
from trainables import metrics as names
from trainables.host.digests import Provenance
from trainables.progress import Progress
from trainables.records import Records
from trainables.reports import DocumentLosses, Finished, Point, Report
from trainables.tracking.operations import EndStudy
from trainables.tracking.study_runs import StudyRuns
from trainables.tracking.writer import BackgroundWriter
from trainables.two_phase import TASK

OPENING, LOOKING = 0.5, 1.5  # CPU seconds, whatever the size
MOST_KB, MOST_AGAIN, MOST_LOOK = 50.0, (2 - OPENING) / 1_000, (30 - LOOKING) / 5_000  # of a trial, a trial, a run
WARM = 50  # trials after which what is kept once is there: memory grows by what is kept of each
VALIDATION_DOCUMENTS, SWEEPS, EPOCHS = 200, 20, 5


@dataclass
class _Trial:
    """What the recorder looks at of Tune's."""

    trial_id: str
    config: dict[str, Any]
    last_result: dict[str, Any] | None = None


def _memory(traced: bool) -> int:
    """Bytes that this process has: Python's own allocations if they are traced, else all resident."""
    gc.collect()
    if traced:
        return tracemalloc.get_traced_memory()[0]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def reports(config: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """A trial's two reports: its curves, then its figures and losses by document."""
    ppl = 20 + config[TASK].config.context_dim / 100 + number / 1e5
    targets = np.full(VALIDATION_DOCUMENTS, 100)
    made = Provenance(code="none", torch="none", device="none", compute="none")
    sweeps = [
        Point(name, sweep, sweep / SWEEPS)
        for sweep in range(SWEEPS)
        for name in (names.SWEEP_CONVERGENCE, names.SWEEP_LOSS)
    ]
    epochs = [
        Point(name, epoch, ppl + EPOCHS - epoch)
        for epoch in range(1, EPOCHS + 1)
        for name in (names.EPOCH_TRAIN_PPL, names.EPOCH_VAL_PPL, names.EPOCH_VAL_ACC)
    ]
    losses = DocumentLosses((targets * np.log(ppl)).tolist(), targets.tolist(), [])
    at = Progress("phase 2", EPOCHS, EPOCHS)
    curves = Report(at=at, points=sweeps + epochs, device_name="none", provenance=made)
    end = Finished(FIGURES | {names.VAL_PPL: ppl}, losses, "")
    return [report.as_result() for report in (curves, replace(curves, points=[], end=end))]


def _open_writer(records: Records, ledger: Ledger) -> tuple[BackgroundWriter, dict[str, set[str]]]:
    records.study(ledger.name).mkdir(parents=True, exist_ok=True)
    runs = StudyRuns(records, ledger.name, ledger.study_id)
    writer, ended = BackgroundWriter(runs, records.journal(ledger.name, None), print), runs.ended_hashes()
    records.use_write_ahead_logs()
    return writer, ended


def _close(writer: BackgroundWriter) -> None:
    writer.put(EndStudy(status="FINISHED", figures={}, files=[]))
    assert writer.close(600.0) == 0


def run_study(name: str, trials: int, records: Records, traced: bool = False) -> dict[str, float]:
    """A study from its first proposal until MLflow has all of it: seconds a trial, and bytes that the driver keeps."""
    ledger = Ledger(wide_study(trials), name, records.optuna_database)
    (writer, _), searcher = _open_writer(records, ledger), LedgerSearcher(ledger, None, Budgets())
    with open("/dev/null", "w") as sink:
        display = Display(Console(file=sink), trials, 0, None)
        recorder = Recorder(ledger, writer, display, searcher, RUNTIME, records, 3600.0)
        watch, before = Watch(), 0
        for number in range(trials):
            if number == min(WARM, trials // 2):
                before, first = _memory(traced), number
            config = searcher.suggest(str(number))
            assert isinstance(config, dict)
            trial: Any = _Trial(str(number), config)
            recorder.on_trial_start(0, [], trial)
            for report in reports(config, number):
                recorder.on_trial_result(0, [], trial, report)
                assert not recorder.stop(trial.trial_id, report)
                trial.last_result = report
            recorder.on_trial_complete(0, [], trial)
        driver = watch.read()
        _close(writer)
        whole = watch.read()
    grown = _memory(traced) - before
    assert len(ledger.finished()) == trials
    mend_leaderboard(load_results(name, records.optuna_database), records)
    return {
        "driver_s_per_trial": driver.wall / trials,
        "whole_s_per_trial": whole.wall / trials,
        "kb_per_trial": grown / 1000 / (trials - first),
    }


def open_again(name: str, trials: int, records: Records) -> dict[str, float]:
    """Seconds to read a whole study back, and to hold MLflow's runs against it, none of which is missing."""
    watch = Watch()
    ledger = Ledger(wide_study(trials), name, records.optuna_database)
    assert ledger.nothing_to_run(Budgets())
    opened = watch.read()
    watch = Watch()
    writer, ended = _open_writer(records, ledger)
    assert len(ended["FINISHED"]) == trials
    complete_mlflow(ledger, writer, ended, records, RUNTIME)
    reconciled = watch.read()
    _close(writer)
    cpu = opened.cpu + reconciled.cpu
    return {"ledger_s": opened.wall, "reconcile_s": reconciled.wall, "again_cpu_s": cpu}


def look(records: Records) -> dict[str, float]:
    """Seconds that a look at all of it takes; nothing is wrong."""
    watch = Watch()
    seen = examine(records)
    assert not seen.findings, seen.findings[:3]
    cost = watch.read()
    return {"doctor_s": cost.wall, "doctor_cpu_s": cost.cpu, "runs": sum(map(len, seen.runs.values()))}


def missed(found: dict[str, float], trials: int) -> list[str]:
    """Which bounds are missed, for people."""
    bounds = {
        "kb_per_trial": MOST_KB,
        "again_cpu_s": OPENING + MOST_AGAIN * trials,
        "doctor_cpu_s": LOOKING + MOST_LOOK * found["runs"],
    }
    return [f"{name} is {found[name]:.2f}, at most {most:.2f}" for name, most in bounds.items() if found[name] > most]


def main() -> int:
    """Print what it takes; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000, help="in each study")
    parser.add_argument("--runs", type=int, default=5_000, help="in the store, of as many studies as it takes")
    parser.add_argument("--traced", action="store_true", help="memory is Python's own (slower), not what is resident")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.traced:
        tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        records = Records.at(Path(folder))
        found = run_study("first", args.trials, records, args.traced)
        tracemalloc.stop()
        found |= open_again("first", args.trials, records)
        for further in range(1, -(-args.runs // args.trials)):
            run_study(f"further-{further}", args.trials, records)
        found |= look(records)
    over = missed(found, args.trials)
    if args.json:
        print(json.dumps(found | {"missed": over}))
        return 1 if over else 0
    kept = "Python's own" if args.traced else "resident"
    print(
        f"{args.trials} trials in one study: {found['driver_s_per_trial']:.3f} s each in the driver, "
        f"{found['whole_s_per_trial']:.3f} s until MLflow has it, {found['kb_per_trial']:.1f} KB each kept ({kept})"
    )
    print(f"opened again: ledger {found['ledger_s']:.2f} s, reconciled with MLflow {found['reconcile_s']:.2f} s")
    print(f"{found['runs']:.0f} runs in the store: doctor {found['doctor_s']:.1f} s")
    print(*(f"missed: {each}" for each in over), sep="\n", end="\n" if over else "")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
