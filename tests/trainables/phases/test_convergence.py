"""A Phase 1 that ended at its cap is marked wherever its result is shown."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from entries import asym_layers, context_modes
from made_up import BASE, figures, modes, run
from rich.console import Console

from search.execution.reconcile import complete_mlflow
from search.execution.recorder import Recorder
from search.execution.searcher import LedgerSearcher
from search.findings import claims
from search.findings.claims import evaluate
from search.findings.document import write_report
from search.findings.evidence import load_evidence
from search.findings.leaderboard import BEST, CSV, HTML, MARKDOWN, as_table, leaderboard, write_results
from search.findings.plots import convergence_curves, efficiency
from search.ledger.budgets import Budgets
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord
from search.ledger.trials import HASH, METRICS
from search.screen import Display, print_verdict, say_end
from trainables import metrics as names
from trainables.host.digests import Provenance
from trainables.phases.convergence import MARK, MARKED, converged, shortfall, with_converged
from trainables.progress import Progress
from trainables.records import Records
from trainables.reports import Collapsed, Point, Report
from trainables.tracking.destination import Destination
from trainables.tracking.operations import FinishRun, Operation, PruneRun

WANTED = BASE.phase1.converged_share
SHORT = {names.CONVERGENCE: 0.495, names.SWEEPS: 60.0}
MADE = Provenance(code="c", torch="2.11.0", device="cpu", compute="fp32")
REPORT = Report(at=Progress("phase 1", 60, 60), device_name="a machine", provenance=MADE)


def wide() -> Console:
    return Console(width=200, record=True, file=io.StringIO())


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records.at(tmp_path)


@pytest.fixture
def ledger(records: Records, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A study of five modes, of which the leader, previous_only, and final_only did not converge."""

    def some(config: Any, ppl: float) -> dict[str, float]:
        short = config.context_mode in ("previous_only", "final_only")
        return figures(config, ppl) | (SHORT if short else {})

    monkeypatch.setattr("made_up.figures", some)
    return run(context_modes(BASE, (16,)), records, lambda c: 2.0 if c.context_mode == "previous_only" else modes(c))


def test_the_share_that_was_asked_for_decides() -> None:
    assert converged(BASE, {names.CONVERGENCE: WANTED})
    assert not converged(BASE, {names.CONVERGENCE: WANTED - 1e-9})
    assert converged(BASE.replace(phase1_converged_share=0.4), SHORT)
    assert shortfall(BASE, SHORT) == (
        "Phase 1 did not converge: 49% of positions at its cap of 60 sweeps, 90% asked for"
    )
    assert shortfall(BASE, {names.CONVERGENCE: WANTED}) is None


def test_mlflows_figures_say_it_where_phase_1_has_figures() -> None:
    assert with_converged(BASE, SHORT) == SHORT | {names.CONVERGED: 0.0}
    assert with_converged(BASE, {names.CONVERGENCE: 1.0})[names.CONVERGED] == 1.0
    assert with_converged(BASE, {names.VAL_PPL: 3.0}) == {names.VAL_PPL: 3.0}


def test_the_table_marks_the_share_and_says_how_many(ledger: Ledger) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(as_table(leaderboard(ledger, (30.0, 0.1)), "best first"))
    lines = console.export_text().splitlines()
    for line in lines:
        if "C2T2" in line and "Same" not in line and "=" not in line:
            assert (f" 49%{MARK} " in line) == ("previous_only" in line or "final_only" in line)
    assert sum(f"49%{MARK}" in line for line in lines) == 2
    assert f"{MARK} Phase 1 of 2 did not converge: it ended at its cap of sweeps." in " ".join(map(str.strip, lines))
    assert max(map(len, lines)) <= 80


def test_the_files_for_scripts_say_it(ledger: Ledger, tmp_path: Path) -> None:
    write_results(ledger, leaderboard(ledger, (30.0, 0.1)), tmp_path / "out", "c")
    with (tmp_path / "out" / CSV).open(newline="") as file:
        said = {row["mode"]: row["converged"] for row in csv.DictReader(file)}
    assert said[""] == ""  # the bigram's
    assert {mode for mode, value in said.items() if value == "False"} == {"previous_only", "final_only"}
    assert {value for value in said.values() if value} == {"True", "False"}
    assert json.loads((tmp_path / "out" / BEST).read_text())["converged"] is False


def test_one_seed_at_its_cap_marks_the_configuration(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "made_up.figures", lambda config, ppl: figures(config, ppl) | (SHORT if config.seed == 1 else {})
    )
    ledger = run(context_modes(BASE, (16,)), records, modes, seeds=2)
    frame = leaderboard(ledger, None)
    assert [not found.converged for found in ledger.configurations()] == [s > 1 for s in frame["seeds"]]
    assert list(frame["converged"]) == [s == 1 for s in frame["seeds"]]


def test_the_verdicts_lines_say_it(ledger: Ledger, records: Records) -> None:
    _, comparison, made = write_report(ledger, records)
    console = wide()
    print_verdict(console, comparison, made)
    text = console.export_text()
    assert re.search(rf"previous_only \(val PPL [\d.]+, {MARKED}\) is", text)
    assert f"C2T2 D16 final_only{MARK}" in text
    assert f"layerwise{MARK}" not in text
    assert f"{MARK} {MARKED}" in text


@pytest.mark.parametrize("name", [HTML, MARKDOWN])
def test_the_report_says_it(ledger: Ledger, records: Records, name: str) -> None:
    write_report(ledger, records)
    text = re.sub(r"<script>.*?</script>", "", (records.study(ledger.name) / name).read_text(), count=1, flags=re.S)
    assert text.count(f"49%{MARK}") == 2
    assert "Phase 1 of 2 did not converge" in text
    assert f"C2T2 D16 final_only{MARK}" in text
    assert f", {MARKED})" in text


def test_a_points_hover_text_says_it(ledger: Ledger, records: Records) -> None:
    write_report(ledger, records)
    page = (records.study(ledger.name) / HTML).read_text()
    for anchor in ("learning", "pareto-parameters", "pareto-seconds"):
        plot = page.split(f'id="plot-{anchor}"')[1].split("</script>")[0]
        assert f"previous_only, {MARKED}" in plot
        assert f"layerwise, {MARKED}" not in plot


def test_what_was_gained_per_parameter_says_it(ledger: Ledger) -> None:
    plot = efficiency(ledger.configurations(), 30.0).html
    assert f"previous_only, {MARKED}" in plot
    assert f"layerwise, {MARKED}" not in plot


def test_a_curve_of_convergence_says_it_by_its_last_sweep(ledger: Ledger) -> None:
    (one, other), curve = ledger.finished()[:2], [(sweep, sweep / 100) for sweep in range(2, 50)]
    left = [
        TrialRecord(t.user_attrs[HASH], t.number, 0, series={names.SWEEP_CONVERGENCE: points})
        for t, points in ((one, curve), (other, [*curve, (50, WANTED)]))
    ]
    for record, marked in zip(left, (True, False), strict=True):  # both are of one Phase 1: a curve each
        plot = convergence_curves(ledger, {record.trial: record}).html
        assert "C2 D16 seed 0" in plot
        assert (f"C2 D16 seed 0, {MARKED}" in plot) == marked


def test_the_end_of_a_study_says_it_of_the_best(ledger: Ledger, tmp_path: Path) -> None:
    settings: Any = SimpleNamespace(shown_root=tmp_path, budgets=SimpleNamespace(used_up=lambda ended: ""))
    console = wide()
    say_end(
        console,
        settings,
        Destination(None, None),
        ledger,
        ran=5,
        seconds=1.0,
        cut_off=False,
        profiled=False,
        reported=True,
    )
    lines = console.export_text().splitlines()
    best = next(n for n, line in enumerate(lines) if line.startswith("best configuration:"))
    assert lines[best + 1] == ("its Phase 1 did not converge: 49% of positions at its cap of 60 sweeps, 90% asked for")


def test_a_trials_line_is_marked(records: Records) -> None:
    console = wide()
    with Display(console, 1, 0, None) as display:
        display.start(0, "C1T1", BASE)
        display.finish(0, SHORT | {names.VAL_PPL: 3.0, names.PHASE1_SHARED: 0.0})
    assert f"60 sweeps, 49%{MARK} converged" in console.export_text()


@pytest.mark.parametrize(("share", "mark"), [(0.495, MARK), (WANTED, "")])
def test_a_running_trials_line_is_marked_once_phase_1_has_ended(share: float, mark: str) -> None:
    console = wide()
    with Display(console, 1, 0, None) as display:
        display.start(0, "C1T1", BASE)
        sweep = Point(names.SWEEP_CONVERGENCE, 60, share)
        display.update(0, replace(REPORT, points=[sweep]))
        assert MARK not in console.export_text(clear=False)
        display.update(0, replace(REPORT, at=Progress("phase 2", 0, 5)))
    assert f"phase 1 done, converged {math.floor(100 * share)}%{mark}; phase 2" in console.export_text()


@pytest.mark.parametrize("final", [SHORT, {names.CONVERGENCE: WANTED}])
def test_a_trial_that_collapsed_says_in_mlflow_whether_phase_1_converged(
    records: Records, final: dict[str, float]
) -> None:
    ledger = Ledger(context_modes(BASE, (16,)), "s", records.optuna_database)
    searcher = LedgerSearcher(ledger, None, Budgets())
    put: list[Operation] = []
    writer: Any = SimpleNamespace(put=put.append)
    recorder = Recorder(ledger, writer, Display(wide(), 1, 0, None), searcher, {}, records, 60.0)
    searcher.suggest("a")
    last = replace(REPORT, end=Collapsed("collapsed", final)).as_result()
    trial: Any = SimpleNamespace(trial_id="a", last_result=last)
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_complete(0, [], trial)
    assert isinstance(put[-1], PruneRun)
    assert put[-1].figures == with_converged(BASE, final)
    assert ledger.pruned()[0].user_attrs[METRICS] == final  # derived, and so MLflow's alone


def test_runs_that_are_made_later_in_mlflow_are_told(ledger: Ledger, records: Records) -> None:
    put: list[Operation] = []
    writer: Any = SimpleNamespace(put=put.append)
    kept = [t.user_attrs | {"compute": "fp32"} for t in ledger.finished()]
    complete_mlflow(ledger, writer, {"FINISHED": set(), "FAILED": set()}, records, {})
    told = {end.key: end.figures[names.CONVERGED] for end in put if isinstance(end, FinishRun)}
    assert len(told) == len(kept) == 5
    assert sorted(told.values()) == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_sweeps_to_a_cap_are_no_evidence_of_convergence(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("made_up.figures", lambda config, ppl: figures(config, ppl) | SHORT)
    ledger = run(asym_layers(BASE, (8, 16), "random", 4), records, lambda c: 3.0, seeds=2)
    said = {claim.text: claim.verdict for claim in evaluate(load_evidence(ledger, records))}
    assert said[claims.HALF] == claims.NOT_TESTED
