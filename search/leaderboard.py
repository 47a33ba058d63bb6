"""What a study found: a table, a CSV, and the best configuration as `best.json`."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial
from rich.table import Table

from model.modes import same_model_modes
from search.ledger import CONFIG, METRICS, REASON, Ledger, sorted_by_value, trial_config
from trainables import metrics as names
from trainables.config import RunConfig

CSV, BEST = "leaderboard.csv", "best.json"
BIGRAM_ROW = "bigram"
SAME_MODEL = "same model as"
COLUMNS = (
    "trial",
    "config",
    "mode",
    "D",
    "params",
    "sweeps",
    "conv %",
    "ER %",
    "val PPL",
    "val acc %",
    "seconds",
)


CSV_ONLY = ("context_layers", "token_layers", SAME_MODEL)


def config_name(config: RunConfig) -> str:
    """The reports' short name of a configuration, e.g. `C2T1`."""
    return f"C{config.context_layers}T{config.token_layers}"


def trial_name(config: RunConfig) -> str:
    """A trial's name for people, e.g. `C2T1 D48 prev_and_current`."""
    return f"{config_name(config)} D{config.context_dim} {config.context_mode}"


def _other_names(config: RunConfig) -> str:
    """The other context modes that are this very model at these depths."""
    names = same_model_modes(config.context_mode, config.context_layers, config.token_layers)
    return " = ".join(mode for mode in names if mode != config.context_mode)


def _row(trial: FrozenTrial) -> dict[str, Any]:
    config, figures = trial_config(trial), trial.user_attrs[METRICS]
    return {
        "trial": trial.number,
        "config": config_name(config),
        "context_layers": config.context_layers,
        "token_layers": config.token_layers,
        SAME_MODEL: _other_names(config),
        "mode": config.context_mode,
        "D": config.context_dim,
        "params": int(figures[names.TOTAL_PARAMS]),
        "sweeps": int(figures[names.SWEEPS]),
        "conv %": 100 * figures[names.CONVERGENCE],
        "ER %": figures[names.VAL_ER],
        "val PPL": figures[names.VAL_PPL],
        "val acc %": 100 * figures[names.VAL_ACC],
        "seconds": figures[names.TOTAL_SECONDS],
    }


def leaderboard(ledger: Ledger, bigram: tuple[float, float] | None) -> pd.DataFrame:
    """All finished trials, best first, and the bigram's line among them.

    Args:
        bigram: the bigram model's validation PPL and accuracy, where the embedding is one.
    """
    rows = [_row(trial) for trial in sorted_by_value(ledger.finished())]
    if bigram is not None:
        rows.append({"config": BIGRAM_ROW, "val PPL": bigram[0], "val acc %": 100 * bigram[1]})
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *CSV_ONLY])
    integers = dict.fromkeys(("trial", "D", "params", "sweeps", "context_layers", "token_layers"), "Int64")
    return frame.astype(integers).sort_values("val PPL", kind="stable", ignore_index=True)


def _cell(column: str, value: Any) -> str:
    if pd.isna(value):
        return "–"
    if column == "params":
        return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
    if column == "conv %":  # rounded down: 89.6 % has not reached 90
        return f"{math.floor(value)}%"
    if column == "seconds" and value >= 1_000:
        return f"{value:.0f}"
    forms = {"ER %": "{:.1f}%", "val PPL": "{:.2f}", "val acc %": "{:.1f}%", "seconds": "{:.1f}"}
    return forms.get(column, "{}").format(value)


def as_table(frame: pd.DataFrame, title: str) -> Table:
    """The leaderboard for a terminal of 80 columns or more."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        side: Any = "left" if column in ("config", "mode") else "right"
        heading = {"trial": "#", "val acc %": "acc", "seconds": "s"}.get(column, column.removesuffix(" %"))
        table.add_column(heading, justify=side, no_wrap=True, header_style="bold underline")
    for position, row in enumerate(frame.to_dict("records")):
        style = "dim" if row["config"] == BIGRAM_ROW else "bold green" if position == 0 else None
        table.add_row(*(_cell(column, row[column]) for column in COLUMNS), style=style)
    named = {
        f"{row['config']} {row['mode']} = {row[SAME_MODEL]}": None  # a dict keeps their order, once each
        for row in frame.to_dict("records")
        if isinstance(row[SAME_MODEL], str) and row[SAME_MODEL]
    }
    if named:
        table.caption = "Same model: " + "; ".join(named) + "."
        table.caption_justify = "left"
    return table


def write_results(ledger: Ledger, frame: pd.DataFrame, folder: Path, command: str) -> list[Path]:
    """Write the CSV and, if a trial finished, `best.json` into the study's folder; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    csv = folder / CSV
    frame.to_csv(csv, index=False)
    best = ledger.best()
    if best is None:
        return [csv]
    content = {
        "study": ledger.name,
        "trial": best.number,
        "command": command,
        "config": best.user_attrs[CONFIG],
        "metrics": best.user_attrs[METRICS],
    }
    (folder / BEST).write_text(json.dumps(content, indent=1) + "\n")
    return [csv, folder / BEST]


def failures(ledger: Ledger) -> list[tuple[int, str, str]]:
    """Failed trials: number, configuration, reason."""
    found = []
    for trial in ledger.failed():
        config = trial_config(trial)
        found.append((trial.number, trial_name(config), trial.user_attrs[REASON]))
    return found
