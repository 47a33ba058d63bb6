"""What a study found: a table, a CSV, and the best configuration as `best.json`."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import TrialState
from rich.table import Table

from model.modes import same_model_modes
from search.ledger.results import Configuration, Results
from search.ledger.trial_files import held_against
from search.ledger.trials import CONFIG, HASH, METRICS, REASON, SEED, trial_config
from trainables import metrics as names
from trainables.config import RunConfig
from trainables.phases.convergence import MARK
from trainables.records import write_whole

CSV, BEST, HTML, MARKDOWN = "leaderboard.csv", "best.json", "report.html", "report.md"  # in a study's folder
BIGRAM_ROW = "bigram"
SAME_MODEL = "same model as"
CONVERGED = "converged"
SPREAD, SEEDS = "±", "seeds"
CODE = "code"  # a letter for each `results.Origin`, where there are several
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
WITH_SEEDS = (*COLUMNS[:-2], SPREAD, SEEDS, *COLUMNS[-2:])  # where there are replicates


CSV_ONLY = ("context_layers", "token_layers", CONVERGED, SAME_MODEL)


def config_name(config: RunConfig) -> str:
    """The reports' short name of a configuration, e.g. `C2T1`."""
    return f"C{config.context_layers}T{config.token_layers}"


def trial_name(config: RunConfig, with_seed: bool = False) -> str:
    """A trial's name for people, e.g. `C2T1 D48 prev_and_current`; a replicate's has its seed."""
    name = f"{config_name(config)} D{config.context_dim} {config.context_mode}"
    return f"{name} seed {config.seed}" if with_seed else name


def _other_names(config: RunConfig) -> str:
    """The other context modes that are this very model at these depths."""
    names = same_model_modes(config.context_mode, config.context_layers, config.token_layers)
    return " = ".join(mode for mode in names if mode != config.context_mode)


def _row(found: Configuration) -> dict[str, Any]:
    config, each = found.config, [trial.user_attrs[METRICS] for trial in found.trials]
    figures = {name: math.fsum(of_seed[name] for of_seed in each) / len(each) for name in each[0]}
    return {
        "trial": found.first.number,
        "config": config_name(config),
        "context_layers": config.context_layers,
        "token_layers": config.token_layers,
        SAME_MODEL: _other_names(config),
        "mode": config.context_mode,
        "D": config.context_dim,
        "params": int(figures[names.TOTAL_PARAMS]),
        "sweeps": round(figures[names.SWEEPS]),
        "conv %": 100 * figures[names.CONVERGENCE],
        CONVERGED: found.converged,
        "ER %": figures[names.VAL_ER],
        "val PPL": found.ppl,
        SPREAD: (max(found.ppls) - min(found.ppls)) / 2 if len(each) > 1 else None,
        SEEDS: len(each),
        "val acc %": 100 * figures[names.VAL_ACC],
        # a Phase 1 that was reused counts in full, so that order makes no model cheap
        "seconds": figures[names.PHASE1_SECONDS] + figures[names.PHASE2_SECONDS],
    }


def leaderboard(results: Results, bigram: tuple[float, float] | None) -> pd.DataFrame:
    """All finished configurations, best first, and the bigram's line among them.

    Where there are replicates a row is the mean over seeds (PPL: geometric), with half the range of the seeds' PPL.

    Args:
        bigram: the bigram model's validation PPL and accuracy, where the embedding is one.
    """
    rows = [_row(found) for found in results.configurations()]
    origins = results.origins()
    if len(origins) > 1:
        letters = {trial.number: origin.label for origin in origins for trial in origin.trials}
        rows = [row | {CODE: letters[row["trial"]]} for row in rows]
    if bigram is not None:
        rows.append({"config": BIGRAM_ROW, "val PPL": bigram[0], "val acc %": 100 * bigram[1]})
    replicated = any(row.get(SEEDS, 1) > 1 for row in rows)
    shown = [*(WITH_SEEDS if replicated else COLUMNS), *([CODE] if len(origins) > 1 else [])]
    frame = pd.DataFrame(rows, columns=[*shown, *CSV_ONLY])
    whole = ("trial", "D", "params", "sweeps", "context_layers", "token_layers", *([SEEDS] if replicated else []))
    frame = frame.astype({**dict.fromkeys(whole, "Int64"), CONVERGED: "boolean"})
    return frame.sort_values("val PPL", kind="stable", ignore_index=True)


def cell(column: str, value: Any) -> str:
    """A value of the leaderboard as a person reads it."""
    if pd.isna(value):
        return "–"
    if column == "params":
        return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
    if column == "conv %":  # rounded down: 89.6 % has not reached 90
        return f"{math.floor(value)}%"
    if column == "seconds" and value >= 1_000:
        return f"{value:.0f}"
    forms = {"ER %": "{:.1f}%", "val PPL": "{:.2f}", SPREAD: "{:.2f}", "val acc %": "{:.1f}%", "seconds": "{:.1f}"}
    return forms.get(column, "{}").format(value)


def cells(row: Mapping[Any, Any], shown: Iterable[str]) -> list[str]:
    """A row's values as a person reads them; the share of one whose Phase 1 did not converge is marked."""
    return [cell(column, row[column]) + (MARK if column == "conv %" and _at_cap(row) else "") for column in shown]


def _at_cap(row: Mapping[Any, Any]) -> bool:
    return not pd.isna(row[CONVERGED]) and not row[CONVERGED]


def at_cap_note(frame: pd.DataFrame) -> str | None:
    """How many of a leaderboard's rows the mark is on, and what it says; None where it is on none."""
    count = sum(map(_at_cap, frame.to_dict("records")))
    said = f"{MARK} Phase 1 of {count} did not converge: it ended at its cap of sweeps."
    return said if count else None


def heading(column: str) -> str:
    """A column's short heading."""
    return {"trial": "#", "val acc %": "acc", "seconds": "s", SEEDS: "n"}.get(column, column.removesuffix(" %"))


def same_models(frame: pd.DataFrame) -> list[str]:
    """What a leaderboard's configurations are also called."""
    named = {
        f"{row['config']} {row['mode']} = {row[SAME_MODEL]}": None  # a dict keeps their order, once each
        for row in frame.to_dict("records")
        if isinstance(row[SAME_MODEL], str) and row[SAME_MODEL]
    }
    return list(named)


def as_table(frame: pd.DataFrame, title: str, best: int | None = None) -> Table:
    """The leaderboard for a terminal of 80 columns or more; the row of trial `best` stands out."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    shown = [column for column in frame.columns if column in (*WITH_SEEDS, CODE)]
    if SEEDS in shown:
        shown.remove("seconds")  # 80 columns do not hold it as well
    for column in shown:
        side: Any = "left" if column in ("config", "mode") else "right"
        table.add_column(heading(column), justify=side, no_wrap=True, header_style="bold underline")
    for row in frame.to_dict("records"):
        style = "dim" if row["config"] == BIGRAM_ROW else "bold green" if row["trial"] == best else None
        table.add_row(*cells(row, shown), style=style)
    notes = ["n seeds each: mean, ± half their range."] if SEEDS in shown else []
    notes += [note] if (note := at_cap_note(frame)) else []
    notes += ["Same model: " + "; ".join(named) + "."] if (named := same_models(frame)) else []
    if notes:
        table.caption = " ".join(notes)
        table.caption_justify = "left"
    return table


def write_results(
    results: Results, frame: pd.DataFrame, folder: Path, command: str, out: Path | None = None
) -> list[Path]:
    """Write the CSV and, if a trial finished, `best.json` into the study's folder, or into `out`; the files written."""
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    csv = out / CSV
    write_whole(csv, frame.to_csv(index=False))
    leader = results.leader()
    if leader is None:
        return [csv]
    config_hash = leader.first.user_attrs[HASH]
    record = held_against(leader.first, folder / "trials" / f"{config_hash}.json").record
    content = {
        "study": results.name,
        "study_id": results.study_id,
        "trial": leader.first.number,
        "config_hash": config_hash,
        "runtime": record.runtime if record else {},
        "command": command,
        "config": leader.first.user_attrs[CONFIG],
        "metrics": leader.first.user_attrs[METRICS],
        CONVERGED: leader.converged,
        "seeds": {
            "count": len(leader.trials),
            "mean_val_ppl": leader.ppl,  # exp of the mean loss; it, not the best seed, made this the leader
            "val_ppl": {str(t.user_attrs[CONFIG]["seed"]): t.value for t in leader.trials},
        },
    }
    write_whole(out / BEST, json.dumps(content, indent=1) + "\n")
    return [csv, out / BEST]


def origins_told(results: Results) -> list[str]:
    """What each letter of the leaderboard's `CODE` stands for, and what counts in no mean or for nothing.

    Empty where all figures can be compared.
    """
    found = results.origins()
    told = [f"code {o.label}: {len(o.trials)} trial(s), {o.shown}" for o in found] if len(found) > 1 else []
    for origin in found:
        parts = origin.parts()
        if len(parts) > 1:
            named = "; ".join(f"{shown}: trials {', '.join(map(str, numbers))}" for shown, numbers in parts.items())
            told.append(f"counted as one, since a trial trained again gave the same figures: {named}")
    if apart := results.apart():
        numbers = ", ".join(str(trial.number) for trial in apart)
        told.append(f"{len(apart)} replicate(s) of other code than their first seed count in no mean: trials {numbers}")
    of_none = results.no_replicates() | {number: what for number, (_, what) in results.left_out.items()}
    return [*told, *(f"trial {number} counts for nothing: {what}" for number, what in sorted(of_none.items()))]


def failures(results: Results) -> list[tuple[int, str, str]]:
    """Failed trials, replicates among them: number, configuration, reason."""
    found = []
    for trial in [*results.failed(), *results.replicates(TrialState.FAIL)]:
        name = trial_name(trial_config(trial), SEED in trial.user_attrs)
        found.append((trial.number, name, trial.user_attrs[REASON]))
    return found
