"""What a study found, as a person reads it and as another program does."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from costless import ask_next
from entries import context_modes
from optuna.trial import FrozenTrial, create_trial
from rich.console import Console

from search.findings.leaderboard import (
    BEST,
    COLUMNS,
    CSV,
    CSV_ONLY,
    as_table,
    config_name,
    failures,
    leaderboard,
    write_results,
)
from search.ledger.ledger import Ledger
from search.ledger.trials import CONFIG, HASH, METRICS, trial_config
from search.spaces import Study
from trainables import metrics as names
from trainables.config import BigramConfig, RunConfig

DIMS = (8, 16)


def base_config() -> RunConfig:
    return RunConfig(
        data="a.jsonl",
        data_fingerprint="d1",
        embedding="bigram",
        embedding_fingerprint="bigram",
        bigram=BigramConfig(),
        context_dim=16,
    )


def grid() -> Study:
    return context_modes(base_config(), DIMS)


def figures(val_ppl: float, **changes: float) -> dict[str, float]:
    """All that the leaderboard shows of a run."""
    base = {
        names.TOTAL_PARAMS: 131_072.0,
        names.SWEEPS: 14.0,
        names.CONVERGENCE: 0.925,
        names.VAL_ER: 79.62,
        names.VAL_PPL: val_ppl,
        names.VAL_ACC: 0.241,
        names.PHASE1_SECONDS: 2.0,
        names.PHASE2_SECONDS: 10.34,
        names.TOTAL_SECONDS: 11.0,  # of one that reused its Phase 1
    }
    return base | changes


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all studies of this file."""
    return tmp_path_factory.mktemp("optuna") / "optuna.db"


@pytest.fixture
def empty(database: Path, request: pytest.FixtureRequest) -> Ledger:
    """A study that has not begun."""
    return Ledger(grid(), request.node.name, database)


@pytest.fixture
def ledger(empty: Ledger) -> Ledger:
    """A study of three results and one failure."""
    for value in (30.0, 20.0, 25.0):
        empty.complete(handed_out(empty), figures(value))
    empty.fail(handed_out(empty), "DivergedError: phase 2's loss became nan")
    return empty


def handed_out(ledger: Ledger) -> int:
    """The number of the trial that comes next."""
    assignment = ledger.next()
    assert assignment is not None
    return assignment.number


def drawn(frame: pd.DataFrame, title: str = "modes: best first") -> list[str]:
    """The table's lines on a terminal of 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(as_table(frame, title))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_best_trial_comes_first(ledger: Ledger) -> None:
    frame = leaderboard(ledger, None)
    assert list(frame["val PPL"]) == [20.0, 25.0, 30.0]
    assert list(frame["trial"]) == [1, 2, 0]


def test_equal_values_stand_in_the_order_of_their_trials(empty: Ledger) -> None:
    for _ in range(4):
        empty.complete(handed_out(empty), figures(20.0))
    assert list(leaderboard(empty, None)["trial"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(("ppl", "place"), [(10.0, 0), (22.0, 1), (27.0, 2), (99.0, 3)])
def test_the_bigram_stands_where_its_perplexity_puts_it(ledger: Ledger, ppl: float, place: int) -> None:
    frame = leaderboard(ledger, (ppl, 0.2))
    assert list(frame["config"]).index("bigram") == place
    assert frame["val PPL"].is_monotonic_increasing


def test_the_bigram_has_a_perplexity_and_an_accuracy_only(ledger: Ledger) -> None:
    row = leaderboard(ledger, (10.0, 0.2)).iloc[0]
    assert (row["val PPL"], row["val acc %"]) == (10.0, 20.0)
    assert all(pd.isna(row[c]) for c in COLUMNS if c not in ("config", "val PPL", "val acc %"))


def test_a_row_says_what_was_run_and_what_came_back(ledger: Ledger) -> None:
    row = leaderboard(ledger, None).iloc[0].to_dict()
    expected = {
        "trial": 1,
        "config": "C2T2",
        "mode": grid().fixed_points[1]["context_mode"],
        "D": grid().fixed_points[1]["context_dim"],
        "params": 131_072,
        "sweeps": 14,
        "conv %": 92.5,
        "ER %": 79.62,
        "val PPL": 20.0,
        "val acc %": 24.1,
        "seconds": 12.34,
        "converged": True,
        "context_layers": 2,
        "token_layers": 2,
        "same model as": "",
    }
    assert row == pytest.approx(expected)


def test_a_repeated_configuration_has_one_row(ledger: Ledger) -> None:
    point = grid().fixed_points[0]
    again = next(m for m in ("final_only", "previous_first") if m != point["context_mode"])
    ask_next(ledger, **point | {"context_mode": again})
    while (assignment := ledger.next()) is not None:
        ledger.complete(assignment.number, figures(40.0))
    frame = leaderboard(ledger, None)
    assert not frame.duplicated(["config", "mode", "D"]).any()
    assert len(frame) == len(ledger.finished()) == len(grid().fixed_points) - 1


@pytest.mark.parametrize("bigram", [None, (40.0, 0.2)])
def test_a_study_without_a_result_has_no_trial_to_show(empty: Ledger, bigram: tuple[float, float] | None) -> None:
    frame = leaderboard(empty, bigram)
    assert list(frame.columns) == [*COLUMNS, *CSV_ONLY]
    assert len(frame) == (bigram is not None)
    assert drawn(frame)


def test_the_csv_has_the_columns_and_the_unrounded_values(ledger: Ledger, tmp_path: Path) -> None:
    write_results(ledger, leaderboard(ledger, (22.123456789, 0.2)), tmp_path / "results", "python search/x.py")
    with (tmp_path / "results" / CSV).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, *CSV_ONLY]
    assert rows[2]["same model as"] == ""
    assert (rows[2]["context_layers"], rows[2]["token_layers"]) == ("2", "2")
    assert [row["config"] for row in rows] == ["C2T2", "bigram", "C2T2", "C2T2"]
    assert (rows[0]["trial"], rows[0]["params"], rows[0]["sweeps"]) == ("1", "131072", "14")
    assert [float(row["val PPL"]) for row in rows] == [20.0, 22.123456789, 25.0, 30.0]
    assert rows[1]["trial"] == rows[1]["seconds"] == ""


def test_the_best_configuration_can_be_read_back(ledger: Ledger, tmp_path: Path) -> None:
    write_results(ledger, leaderboard(ledger, None), tmp_path, "python search/x.py --seed 0")
    best = json.loads((tmp_path / BEST).read_text())
    assert RunConfig.from_flat(best["config"]) == base_config().replace(**grid().fixed_points[1])
    assert best["metrics"] == figures(20.0)
    assert (best["study"], best["trial"], best["command"]) == (ledger.name, 1, "python search/x.py --seed 0")


def test_the_written_files_are_named(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "modes"
    written = write_results(ledger, leaderboard(ledger, None), folder, "")
    assert written == [folder / CSV, folder / BEST]
    assert sorted(folder.iterdir()) == [folder / BEST, folder / CSV]


def test_a_study_without_a_result_has_no_best_configuration(empty: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert write_results(empty, leaderboard(empty, None), folder, "") == [folder / CSV]
    assert not (folder / BEST).exists()


def test_a_newer_result_replaces_the_written_one(ledger: Ledger, tmp_path: Path) -> None:
    write_results(ledger, leaderboard(ledger, None), tmp_path, "")
    ledger.complete(handed_out(ledger), figures(5.0))
    write_results(ledger, leaderboard(ledger, None), tmp_path, "")
    assert json.loads((tmp_path / BEST).read_text())["metrics"][names.VAL_PPL] == 5.0


def frame_of(**changes: Any) -> pd.DataFrame:
    """A leaderboard of one long-named row."""
    row = {
        "trial": 11,
        "config": "C2T2",
        "mode": "prev_and_current",
        "D": 48,
        "params": 321_000,
        "sweeps": 54,
        "conv %": 92.0,
        "ER %": 84.1,
        "val PPL": 33.12,
        "val acc %": 31.7,
        "seconds": 12.3,
    }
    return pd.DataFrame([row | changes], columns=[*COLUMNS, *CSV_ONLY])


SCALES: dict[str, dict[str, Any]] = {
    "demo": {},
    "reports": {
        "trial": 128,
        "mode": "first_layer_only",
        "D": 500,
        "params": 41_822_168,
        "conv %": 100.0,
        "val PPL": 300.84,
        "seconds": 1249.3,
    },
    "poor": {"trial": 128, "D": 1024, "params": 41_822_168, "conv %": 100.0, "val PPL": 50_257.31, "seconds": 98_765.4},
}


@pytest.mark.parametrize("scale", SCALES)
def test_the_table_fits_into_80_columns_and_nothing_is_cut(scale: str) -> None:
    frame = frame_of(**SCALES[scale])
    title, heading, row = drawn(frame)
    assert max(len(line) for line in (title, heading, row)) <= 80
    assert "…" not in heading + row
    assert frame["mode"][0] in row
    assert len(row.split()) == len(heading.replace("val PPL", "x").replace("val acc", "x").split()) == len(COLUMNS)


def test_the_table_rounds_to_what_is_worth_reading() -> None:
    row = drawn(frame_of(params=40_210_540, **{"val PPL": 127.2345, "val acc %": 24.66, "seconds": 1249.31}))[2]
    assert "40.2M" in row
    assert "127.23" in row
    assert "24.7%" in row


def test_the_table_shows_what_the_bigram_has_none_of_as_a_dash(ledger: Ledger) -> None:
    row = next(line for line in drawn(leaderboard(ledger, (22.0, 0.2))) if "bigram" in line)
    assert row.split() == ["–", "bigram", "–", "–", "–", "–", "–", "–", "22.00", "20.0%", "–"]


def test_a_configuration_is_named_as_in_the_reports() -> None:
    assert config_name(base_config().replace(context_layers=2, token_layers=1)) == "C2T1"


def test_names_of_one_model_are_said_under_the_table() -> None:
    frame = frame_of(config="C1T1", mode="layerwise", **{"same model as": "final_only = prev_and_current"})
    assert drawn(frame)[-1].strip() == "Same model: C1T1 layerwise = final_only = prev_and_current."


def test_a_share_below_the_threshold_is_not_rounded_up_to_it() -> None:
    assert " 89% " in drawn(frame_of(**{"conv %": 89.58}))[2]


def test_failures_say_number_configuration_and_reason(ledger: Ledger) -> None:
    point = grid().fixed_points[3]
    name = f"C2T2 D{point['context_dim']} {point['context_mode']}"
    assert failures(ledger) == [(3, name, "DivergedError: phase 2's loss became nan")]


def test_interrupted_trials_are_no_failures(ledger: Ledger) -> None:
    ledger.interrupt(handed_out(ledger))
    assert [number for number, _, _ in failures(ledger)] == [3]


@pytest.fixture
def replicated(database: Path, request: pytest.FixtureRequest) -> Ledger:
    """A grid of ten, of which trial 0 has the best first seed and trial 1 the best mean."""
    ledger = Ledger(grid(), request.node.name, database, seeds=2)
    values = [20.0, 21.0, *[30.0 + n for n in range(8)], 27.0, 21.5]
    for value in values:
        ledger.complete(handed_out(ledger), figures(value))
    return ledger


def test_a_row_is_the_mean_over_seeds(replicated: Ledger) -> None:
    frame = leaderboard(replicated, (25.0, 0.2))
    assert list(frame["trial"].fillna(-1)[:3]) == [1, 0, -1]
    first = frame.iloc[0]
    assert first["val PPL"] == pytest.approx((21.0 * 21.5) ** 0.5)
    assert (first["±"], first["seeds"]) == (0.25, 2)
    assert len(frame) == 11
    assert frame["seeds"].iloc[3] == 1


def test_a_lower_value_of_one_seed_leads_nothing(replicated: Ledger) -> None:
    for value in (28.0, 29.0):  # further seeds of trials 2 and 3, whose first were 30 and 31
        replicated.complete(handed_out(replicated), figures(value))
    frame, best = leaderboard(replicated, None), replicated.best()
    single = frame[frame["seeds"] == 1].iloc[0]
    assert best is not None
    assert best.number == 1
    assert single["val PPL"] == 32.0
    replicated.optuna.add_trial(_lucky(replicated))
    replicated.optuna.refresh()
    assert leaderboard(replicated, None)["val PPL"][0] == 5.0
    assert replicated.best() == best


def _lucky(ledger: Ledger) -> FrozenTrial:
    """A trial of one seed that is far below all others."""
    other = ledger.finished()[-1]
    config = trial_config(other).replace(context_dim=77)
    metrics = other.user_attrs[METRICS] | {names.VAL_PPL: 5.0}
    attrs = other.user_attrs | {HASH: config.config_hash(), CONFIG: config.flat(), METRICS: metrics}
    return create_trial(value=5.0, params=other.params, distributions=other.distributions, user_attrs=attrs)


def test_the_leader_is_the_best_mean_and_not_the_luckiest_seed(replicated: Ledger, tmp_path: Path) -> None:
    write_results(replicated, leaderboard(replicated, None), tmp_path, "c")
    best = json.loads((tmp_path / BEST).read_text())
    assert best["trial"] == 1
    assert best["seeds"]["count"] == 2
    assert best["seeds"]["val_ppl"] == {"0": 21.0, "1": 21.5}
    assert best["seeds"]["mean_val_ppl"] == pytest.approx((21.0 * 21.5) ** 0.5)


@pytest.mark.parametrize("scale", ["demo", "reports"])
def test_the_table_with_seeds_fits_into_80_columns(scale: str) -> None:
    frame = frame_of(**SCALES[scale])
    frame.insert(9, "±", 0.25)
    frame.insert(10, "seeds", 3)
    lines = drawn(frame)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert lines[-1].startswith("n seeds each") or lines[-2].startswith("n seeds each")
