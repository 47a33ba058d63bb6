"""Reports of studies whose losses are made up, so that their verdicts are known; one of them drawn in a browser."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import made_up
import numpy as np
import pytest
from entries import asym_layers, context_modes
from made_up import BASE, modes, run
from rich.console import Console
from scipy import stats

from model.modes import same_model_modes
from search.findings import claims, evidence
from search.findings.claims import evaluate
from search.findings.document import write_report
from search.findings.evidence import (
    AHEAD,
    BEHIND,
    CONTRADICTED,
    NO_LOSSES,
    ON_DOCUMENTS,
    TIE,
    Comparison,
    Evidence,
    Row,
    compare,
    documents,
    load_evidence,
)
from search.findings.leaderboard import BEST, HTML, MARKDOWN, trial_name
from search.findings.optuna_plots import contour_pairs, readable_study
from search.findings.plots import front
from search.findings.verdict import Losses
from search.ledger.ledger import Ledger
from search.ledger.records import read_study_record, write_study_record
from search.ledger.trials import SUMMARY
from search.screen import print_verdict
from trainables import metrics as names
from trainables.host.provenance import git_state
from trainables.phases.convergence import MARKED
from trainables.records import Records

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def verdict_of(ledger: Ledger, records: Records) -> tuple[Comparison, dict[str, str]]:
    found = load_evidence(ledger, records)
    return compare(ledger, found), {claim.text: claim.verdict for claim in evaluate(found)}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records.at(tmp_path)


def test_without_replicates_nobody_is_called_a_winner(records: Records) -> None:
    clear = {"layerwise": 2.0}
    ledger = run(context_modes(BASE, (16,)), records, lambda c: clear.get(c.context_mode, modes(c)))
    comparison, said = verdict_of(ledger, records)
    assert comparison.headline.startswith("C2T2 D16 layerwise (val PPL")
    assert comparison.headline.endswith(f"is ahead {ON_DOCUMENTS}.")
    assert "inner" not in comparison.headline
    assert {row.verdict for row in comparison.rows} == {f"{BEHIND} {ON_DOCUMENTS}"}
    assert said[claims.LAYERWISE] == f"{claims.SUPPORTED} {ON_DOCUMENTS}"


def test_the_number_of_documents_stands_beside_the_intervals(records: Records) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes)
    number = "60 documents, so few that the interval is rough"
    expected = f"Intervals over {number}. One seed: this is about these trained models only."
    assert verdict_of(ledger, records)[0].over == expected
    write_report(ledger, records)
    for name in (HTML, MARKDOWN):
        assert expected in (records.study(ledger.name) / name).read_text()
    assert documents(60) == number
    assert documents(99) == number.replace("60", "99")
    assert documents(100) == "100 documents"


def test_with_replicates_there_is_a_winner(records: Records) -> None:
    ledger = run(
        context_modes(BASE, (16,)), records, lambda c: 2.0 if c.context_mode == "layerwise" else modes(c), seeds=3
    )
    comparison, said = verdict_of(ledger, records)
    assert comparison.headline.startswith("Winner: C2T2 D16 layerwise")
    assert {row.verdict for row in comparison.rows} == {BEHIND}
    assert said[claims.LAYERWISE] == claims.SUPPORTED


def test_a_better_one_with_fewer_seeds_is_ahead_and_nobody_the_winner(records: Records) -> None:
    best = {"previous_only": 2.0}
    ledger = run(
        context_modes(BASE, (16,)), records, lambda c: best.get(c.context_mode, modes(c)), seeds=3,
        fails=lambda c: c.context_mode == "previous_only" and c.seed > 0,
    )  # fmt: skip
    comparison, _ = verdict_of(ledger, records)
    assert comparison.headline.startswith("C2T2 D16 prev_and_current")
    assert comparison.headline.endswith("is lowest of those with 3 seeds; with fewer, C2T2 D16 previous_only is lower.")
    verdicts = {row.other.name: row.verdict for row in comparison.rows}
    assert verdicts["C2T2 D16 previous_only"] == f"{AHEAD} {ON_DOCUMENTS}"
    assert verdicts["C2T2 D16 layerwise"] == BEHIND


@pytest.mark.parametrize(
    ("loss", "ends"),
    [
        (1.998, f"C2T2 D16 previous_only is lower, but not told apart {ON_DOCUMENTS}."),
        (2.001, "; 1 more have one seed, not tested (1 of them not told apart on these documents)."),
    ],
)
def test_one_with_fewer_seeds_that_is_not_told_apart_is_said(records: Records, loss: float, ends: str) -> None:
    best = {"previous_only": loss, "prev_and_current": 2.0}
    ledger = run(
        context_modes(BASE, (16,)), records, lambda c: best.get(c.context_mode, modes(c)), seeds=3, seed_spread=0.0,
        fails=lambda c: c.context_mode == "previous_only" and c.seed > 0,
    )  # fmt: skip
    comparison, _ = verdict_of(ledger, records)
    assert comparison.headline.removeprefix("Winner: ").startswith("C2T2 D16 prev_and_current")
    assert comparison.headline.startswith("Winner") == (loss > 2.0)
    assert comparison.headline.endswith(ends)


def test_seeds_that_differ_more_than_configurations_are_a_tie(records: Records) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes, seeds=3, seed_spread=0.5)
    comparison, said = verdict_of(ledger, records)
    assert comparison.headline.startswith("Tie: ")
    assert TIE in {row.verdict for row in comparison.rows}
    assert said[claims.LAYERWISE] == claims.NOT_SUPPORTED


def test_a_claim_that_lies_on_the_other_side_is_contradicted(records: Records) -> None:
    worse = {"layerwise": 3.5}
    ledger = run(context_modes(BASE, (16,)), records, lambda c: worse.get(c.context_mode, modes(c)), seeds=2)
    said = verdict_of(ledger, records)[1]
    assert said[claims.LAYERWISE] == claims.CONTRADICTED
    assert said[claims.FIRST_CELL] == said[claims.AVOID] == said[claims.HALF] == claims.NOT_TESTED


def test_a_contradiction_by_one_of_several_needs_more_than_its_own_interval(records: Records) -> None:
    """Three others: below zero at 95 % for itself, but not where three intervals are to hold at once."""
    rng = np.random.default_rng(0)
    targets = np.full(20, 100.0)
    noise = rng.normal(0, 1, 20)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    ledger = run(asym_layers(BASE, (8, 16), "random", 4), records, lambda c: 3.0)
    found = load_evidence(ledger, records)[:4]

    def cells(t: float) -> dict[tuple[int, int], Evidence]:
        """The first of the cells is above another by `t` standard errors, and the other two equal to it."""
        first = 3.0 * targets
        other = first - (t / 20**0.5 + noise) * targets
        losses = {(1, 1): first, (1, 2): other, (2, 1): first, (2, 2): first}
        return {
            cell: Evidence(e.found, Losses(nats[None], targets))
            for e, (cell, nats) in zip(found, losses.items(), strict=True)
        }

    assert stats.t.ppf(0.975, 19) < 2.3 < stats.t.ppf(1 - 0.025 / 3, 19) < 2.8
    said = {t: claims._claim(claims.FIRST_CELL, "", claims._first_cell, cells(t)).verdict for t in (2.3, 2.8)}
    assert said[2.3].startswith(claims.NOT_SUPPORTED)
    assert said[2.8].startswith(claims.CONTRADICTED)


CELL_LOSSES = {
    "as the reports say": ({(1, 1): 2.0, (1, 2): 4.0}, claims.SUPPORTED, claims.SUPPORTED),
    "the other way round": ({(1, 1): 4.0, (1, 2): 2.0}, claims.CONTRADICTED, claims.CONTRADICTED),
    "no difference": ({}, claims.NOT_SUPPORTED, claims.NOT_SUPPORTED),
}


@pytest.mark.parametrize("case", CELL_LOSSES)
def test_the_cells_are_judged_together(records: Records, case: str) -> None:
    losses, first_cell, avoid = CELL_LOSSES[case]
    study = asym_layers(BASE, (8, 16), "random", 4)
    ledger = run(study, records, lambda c: losses.get((c.context_layers, c.token_layers), 3.0), seeds=3)
    said = verdict_of(ledger, records)[1]
    assert (said[claims.FIRST_CELL], said[claims.AVOID]) == (first_cell, avoid)
    assert said[claims.HALF] == claims.SUPPORTED  # 15 sweeps against 30, 31 and 32
    assert said[claims.LAYERWISE] == claims.NOT_TESTED


HALVES = {
    "all near a half": ([(30, 14), (30, 15), (30, 16)], claims.SUPPORTED),
    "from a third to a little above": ([(30, 10), (30, 15), (30, 22)], claims.NOT_SUPPORTED),
    "all as many": ([(30, 30), (30, 29), (30, 31)], claims.CONTRADICTED),
    "all far fewer": ([(60, 6), (60, 7), (60, 8)], claims.CONTRADICTED),
    "far apart, above and below": ([(30, 3), (30, 15), (30, 60)], claims.NOT_SUPPORTED),
    "two seeds near a half, of which one is not enough": ([(30, 14), (30, 16)], claims.NOT_SUPPORTED),
    "one seed, a half": ([(30, 15)], f"{claims.SUPPORTED}, one seed"),
    "one seed, two thirds": ([(30, 20)], f"{claims.SUPPORTED}, one seed"),
    "one seed, just under a third": ([(30, 9)], f"{claims.CONTRADICTED}, one seed"),
    "one seed, just over two thirds": ([(30, 21)], f"{claims.CONTRADICTED}, one seed"),
}


@pytest.mark.parametrize("case", HALVES)
def test_half_of_the_sweeps_is_from_a_third_to_two_thirds(case: str) -> None:
    pairs, verdict = HALVES[case]
    assert claims._half_at(16, [(float(one), float(two)) for one, two in pairs]).verdict == verdict


def test_the_interval_of_a_share_of_sweeps_is_students_t_of_the_logs() -> None:
    pairs = [(30.0, 12.0), (31.0, 16.0), (32.0, 15.0), (30.0, 18.0)]
    logs = np.log([two / one for one, two in pairs])
    low, high = np.exp(stats.t.interval(0.95, len(pairs) - 1, logs.mean(), stats.sem(logs)))
    claim = claims._half_at(16, pairs)
    shown = "12 against 30, 16 against 31, 15 against 32, 18 against 30 sweeps"
    expected = f"{shown}: {np.exp(logs.mean()):.2f} of them [{low:.2f}, {high:.2f}] (about half: 0.33 to 0.67)"
    assert (claim.where, claim.detail) == ("D=16", expected)


def test_all_who_are_compared_with_the_leader_count_in_its_intervals(records: Records) -> None:
    """Five modes are ten pairs; with one seed an interval's width is its documents' by the quantiles of Student's t."""
    comparison, _ = verdict_of(run(context_modes(BASE, (16,)), records, modes), records)
    assert len(comparison.rows) == 4
    found = [comparison.leader, *(row.other for row in comparison.rows)]
    (sizes,) = {each.losses.targets.tobytes(): each.losses.targets for each in found}.values()
    freedom = sizes.sum() ** 2 / (sizes**2).sum() - 1
    expected = stats.t.isf(0.025 / 10, freedom) / stats.t.isf(0.025, freedom)
    for row in comparison.rows:
        plain, wide = row.difference.documents, row.difference.combined
        assert (wide.high - wide.low) / (plain.high - plain.low) == pytest.approx(expected)


def test_configurations_without_losses_count_in_the_leader_s_intervals_too(records: Records) -> None:
    """The leader was chosen among them: a file that is lost makes no interval narrower."""
    ledger = run(context_modes(BASE, (16,)), records, modes)
    before = {row.other.name: row.difference for row in verdict_of(ledger, records)[0].rows}
    lost = ledger.configurations()[-1]
    records.trial_record(ledger.name, lost.config.config_hash()).unlink()
    after = {row.other.name: row.difference for row in verdict_of(ledger, records)[0].rows}
    assert [name for name, difference in after.items() if difference is None] == [trial_name(lost.config)]
    for name, difference in after.items():
        assert difference is None or difference.combined == before[name].combined


def test_where_records_do_not_name_equal_documents_that_is_said(records: Records) -> None:
    loss = lambda c: 3.0 + c.token_layers / 10  # noqa: E731
    ledger = run(asym_layers(BASE, (8, 16), "random", 4), records, loss, digests=False)
    number = "60 documents (equal documents not known), so few"
    comparison, told = compare(ledger, load_evidence(ledger, records)), evaluate(load_evidence(ledger, records))
    assert not any("not known" in text for text in (comparison.over, *(claim.detail for claim in told)))
    path = records.trial_record(ledger.name, ledger.configurations()[-1].config.config_hash())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"units": []}))
    comparison, told = compare(ledger, load_evidence(ledger, records)), evaluate(load_evidence(ledger, records))
    assert comparison.over.startswith(f"Intervals over {number}")
    assert any(number in claim.detail for claim in told)


def test_the_headline_says_that_the_leader_did_not_converge(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made_up.figures
    monkeypatch.setattr(made_up, "figures", lambda *of: whole(*of) | {names.CONVERGENCE: 0.5})
    comparison, _ = verdict_of(run(context_modes(BASE, (16,)), records, modes), records)
    assert f", {MARKED})" in comparison.headline


def rival(dim: int, losses: Losses | None = None) -> Evidence:
    found: Any = SimpleNamespace(config=BASE.replace(context_dim=dim), converged=True, ppl=20.0, trials=(None,))
    return Evidence(found, losses)


@pytest.mark.parametrize(
    ("number", "named"),
    [
        (1, "C1T1 D1 prev_and_current"),
        (2, "C1T1 D1 prev_and_current and C1T1 D2 prev_and_current"),
        (5, ", ".join(f"C1T1 D{dim} prev_and_current" for dim in range(1, 5)) + " and 1 more"),
    ],
)
def test_rivals_are_listed_in_a_sentence(number: int, named: str) -> None:
    rows = [Row(rival(dim), None, f"{TIE} {ON_DOCUMENTS}") for dim in range(1, number + 1)]
    leader = "C1T1 D9 prev_and_current (val PPL 20.00)"
    assert evidence._headline(rival(9), rows) == f"{leader} is lowest, but not told apart from {named} {ON_DOCUMENTS}."


@pytest.mark.parametrize(
    ("documents", "rivals", "why"),
    [
        (1, 1, "with one validation document nothing can be said of the differences"),
        (2, 1, f"{NO_LOSSES}, so nothing can be said of the differences"),
        (2, 0, "there is no other configuration to compare it with"),
    ],
)
def test_why_nothing_is_compared(documents: int, rivals: int, why: str) -> None:
    leader = rival(9, Losses(np.ones((1, documents)), np.ones(documents)))
    assert evidence._why_not(leader, [rival(8)] * rivals) == why


def test_a_trial_without_a_usable_record_is_said_to_have_no_losses(records: Records) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes)
    found = ledger.configurations()
    path = records.trial_record(ledger.name, found[1].config.config_hash())
    path.write_text(path.read_text()[:-100])
    records.trial_record(ledger.name, found[2].config.config_hash()).unlink()
    comparison = verdict_of(ledger, records)[0]
    assert [row.verdict == NO_LOSSES for row in comparison.rows] == [True, True, False, False]
    files, _, _ = write_report(ledger, records)
    assert f"{NO_LOSSES}" in files[1].read_text()
    for left in records.study(ledger.name).glob("trials/*.json"):
        left.unlink()
    comparison = verdict_of(ledger, records)[0]
    assert NO_LOSSES in comparison.headline
    write_report(ledger, records)


def test_a_file_that_contradicts_the_ledger_is_used_for_nothing_and_said(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes)
    other = ledger.configurations()[1]
    path = records.trial_record(ledger.name, other.config.config_hash())
    content = json.loads(path.read_text())
    content["nats"][0] += 5
    content["nats"][1] -= 5
    path.write_text(json.dumps(content))
    comparison = verdict_of(ledger, records)[0]
    assert [row.verdict for row in comparison.rows].count(CONTRADICTED) == 1
    told = f"trial {other.first.number} ({path.name} is not as the trial wrote it)"
    assert comparison.notes == (f"The ledger and files contradict each other: {told}. search/doctor.py looks closer.",)
    files, found, told_claims = write_report(ledger, records)
    for file in files:
        assert told in file.read_text()
    print_verdict(Console(width=200), found, told_claims)
    assert comparison.notes[0] in capsys.readouterr().out
    leader = records.trial_record(ledger.name, ledger.configurations()[0].config.config_hash())
    leader.write_text(leader.read_text().replace('"seed": 0', '"seed": 9', 1))
    assert f"; {CONTRADICTED}, so nothing can be said" in verdict_of(ledger, records)[0].headline


def test_a_validation_text_that_is_largely_in_training_is_said_from_a_fifth_on(records: Records) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes)
    for share, said in ((0.19, False), (0.2, True), (None, False)):
        ledger.optuna.set_user_attr(SUMMARY, {"val_overlap": share})
        notes = verdict_of(ledger, records)[0].notes
        assert (len(notes) == 1) == said
        assert not said or notes[0].startswith("The validation text is largely in the training text (20.0 % of")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Ledger]:
    """A study of twelve trials, replicates and a failure, reported."""
    records = Records.at(tmp_path_factory.mktemp("reported"))
    study = asym_layers(BASE, (8, 16), "random", 12)
    ledger = run(study, records, lambda c: 3 - 0.1 * c.token_layers + c.context_dim / 1000, seeds=2)
    more = Ledger(asym_layers(BASE, (8, 16), "random", 13), "made-up", records.optuna_database)
    failed = more.next()
    assert failed is not None
    more.fail(failed.number, "DivergedError: <b>loss</b> became nan")
    about = {
        "command": "asym_layers.py --name 'a <b>'", "data": "a.jsonl", "embedding": "bigram", "hardware": "2 x cpu",
        "compute": "fp32", "train_tokens": 1000, "val_tokens": 200, "test_tokens": 100, "vocab_size": 512,
        "embedding_dim": 192, "bigram_val_ppl": 30.0, "bigram_val_acc": 0.1, "version_torch": "2", "git_commit": None,
        "git_dirty": None, "started_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    write_study_record(records.study_record("made-up"), about)
    more.keep_summary({"inputs": "i", "bigram_val_ppl": 30.0, "bigram_val_acc": 0.1})
    write_report(more, records)
    return records, ledger


def test_the_page_is_one_file_that_fetches_nothing(reported: tuple[Records, Ledger]) -> None:
    page = (reported[0].study("made-up") / HTML).read_text()
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.S)  # plotly.js itself
    assert len(own) < len(page) / 2
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", own)
    assert not re.search(r"@import|url\(", own)
    assert "<b>loss</b>" not in own
    assert "&lt;b&gt;loss&lt;/b&gt;" in own


def test_the_markdown_has_every_configuration_and_the_failure(reported: tuple[Records, Ledger]) -> None:
    records, ledger = reported
    text = (records.study("made-up") / MARKDOWN).read_text()
    for found in ledger.configurations():
        assert f" {found.first.number} | " in text.replace("*", "")
    assert "loss</b> became nan" in text
    assert "asym_layers.py" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in tables)


def test_plots_show_d_itself_and_no_replicate(reported: tuple[Records, Ledger]) -> None:
    study = readable_study(reported[1])
    assert len(study.trials) == len(reported[1].finished()) == 12
    assert {t.params["context_dim"] for t in study.trials} <= {8, 16}
    assert all(set(pair) <= {"context_layers", "token_layers", "context_dim"} for pair in contour_pairs(study))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert front([(3, 1), (1, 3), (2, 2), (2, 3), (3, 2), (1, 4)]) == [1, 2, 0]


def test_a_plot_that_cannot_be_says_why(records: Records) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes)
    page = write_report(ledger, records)[0][0].read_text()
    assert "Fewer than two parameters vary" in page
    assert "no bigram model" in page


def test_a_study_without_a_result_is_reported(records: Records) -> None:
    ledger = Ledger(context_modes(BASE, (16,)), "made-up", records.optuna_database)
    assignment = ledger.next()
    assert assignment is not None
    ledger.fail(assignment.number, "ValueError: no")
    files, comparison, _ = write_report(ledger, records)
    assert comparison.headline == "No trial has finished."
    assert "ValueError: no" in files[1].read_text()


def command(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "search/report.py"), *options]
    return forked.run(line)


def test_an_unknown_study_is_one_sentence_with_the_known_names(
    reported: tuple[Records, Ledger], tmp_path: Path
) -> None:
    done = command("other", "--mlruns", str(reported[0].root))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "made-up" in done.stderr
    assert command("other", "--mlruns", str(tmp_path / "none")).returncode == 2
    assert not (tmp_path / "none").exists()


def test_the_command_writes_the_report_and_tells_the_verdict(reported: tuple[Records, Ledger]) -> None:
    records, _ = reported
    done = command("made-up", "--mlruns", str(records.root))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "claims of the earlier reports" in done.stdout
    assert compare(reported[1], load_evidence(reported[1], records)).over in done.stdout
    assert str(records.study("made-up") / HTML) in done.stdout
    best = json.loads((records.study("made-up") / BEST).read_text())  # of a study that may be running still
    leader = reported[1].best()
    assert leader is not None
    assert best["trial"] == leader.number
    assert str(records.study("made-up") / BEST) in done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_without_a_network_draws_the_page(reported: tuple[Records, Ledger], tmp_path: Path) -> None:
    page = reported[0].study("made-up") / HTML
    options = "--headless --no-sandbox --disable-gpu --virtual-time-budget=15000 --enable-logging=stderr --dump-dom"
    offline = ["--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path}", "--window-size=1000,800"]
    done = subprocess.run(
        [str(CHROMIUM), *options.split(), *offline, page.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    body = done.stdout[done.stdout.rindex("</style>") :] if "<body>" not in done.stdout else done.stdout
    assert 'id="leaderboard"' in body
    assert 'class="best"' in body
    drawn = re.findall(r'id="plot-([a-z_-]+)"', body)
    assert {"learning", "convergence", "pareto-parameters", "parallel", "slice", "importances"} <= set(drawn)
    assert body.count('class="main-svg"') >= 2 * len(drawn)
    widths = {float(width) for width in re.findall(r'class="main-svg"[^>]* width="([0-9.]+)"', body)}
    assert 0 < max(widths) <= 1000  # no wider than the window
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_commit_is_named_only_in_a_checkout(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("1\n")
    assert git_state(source) == {"git_commit": None, "git_dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    state = git_state(source)
    assert re.fullmatch(r"[0-9a-f]{40}", str(state["git_commit"]))
    assert state["git_dirty"] is False
    source.write_text("2\n")
    assert git_state(source)["git_dirty"] is True


def test_a_study_record_that_is_damaged_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    assert read_study_record(path) == {}
    write_study_record(path, {"a": [1]})
    assert read_study_record(path) == {"a": [1]} == json.loads(path.read_text())
    path.write_text("{")
    assert read_study_record(path) == {}


def test_modes_that_are_one_model_are_one_configuration(records: Records) -> None:
    ledger = run(context_modes(BASE, (16,)), records, modes)
    assert same_model_modes("prev_and_current", 2, 2) == ("prev_and_current", "previous_first")
    assert len(ledger.configurations()) == 5
    assert "prev_and_current = previous_first" in write_report(ledger, records)[0][1].read_text()
