"""A study's report: verdict, claims, tables and plots, as one HTML file that needs no network, and as Markdown."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from search.findings.claims import Claim, evaluate
from search.findings.evidence import TIE, Comparison, as_text, comparable, compare, load_evidence
from search.findings.leaderboard import (
    BIGRAM_ROW,
    CODE,
    HTML,
    MARKDOWN,
    WITH_SEEDS,
    at_cap_note,
    cells,
    heading,
    leaderboard,
    origins_told,
    same_models,
    trial_name,
)
from search.findings.plots import all_plots
from search.ledger.records import TrialRecord, bigram_figures, read_study_record
from search.ledger.results import Results
from search.ledger.trial_files import read_trial_file
from search.ledger.trials import REASON, SEED, SUMMARY, trial_config
from trainables.inputs.overlap import SEQUENCES, describe_overlap
from trainables.records import Records, write_whole

HOW = (
    "Differences are in PPL, per cent of the leader's, with 95 % intervals. Documents: over validation documents, the "
    "same for both sides, equal ones counted once (jackknife, Student's t). Seeds: these documents, other seeds "
    "(Welch). Both: documents, and seeds where both sides have several, multiplicity-corrected since the leader is the "
    "best of many (Bonferroni over all pairs); it decides the verdict."
)


def write_report(
    results: Results, records: Records, out: Path | None = None
) -> tuple[list[Path], Comparison, list[Claim]]:
    """Write both files into the study's folder, or into `out`; the files, and what the terminal tells of them."""
    evidence = load_evidence(results, records)
    comparison, claims = compare(results, evidence), evaluate(comparable(results, evidence))
    content = _content(results, records, comparison, claims)
    folder = out or records.study(results.name)
    for name in (HTML, MARKDOWN):
        write_whole(folder / name, _rendered(f"{name}.j2", content))
    return [folder / HTML, folder / MARKDOWN], comparison, claims


def _rendered(template: str, content: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def _content(results: Results, records: Records, comparison: Comparison, claims: list[Claim]) -> dict[str, Any]:
    """All that the templates show."""
    summary: dict[str, Any] = results.optuna.user_attrs.get(SUMMARY, {})
    about = read_study_record(records.study_record(results.name))
    about |= summary if about else {}  # figures are the ledger's; command and versions are in the file alone
    bigram = bigram_figures(summary)
    frame = leaderboard(results, bigram)
    best = comparison.leader.found.first.number if comparison.leader else None
    seen, unreadable = _trial_records(results, records)
    for key, of_trial in (("hardware", "device_name"), ("compute", "compute")):  # nodes of a cluster may differ
        if found := sorted({record.runtime[of_trial] for record in seen.values() if of_trial in record.runtime}):
            about[key] = ", ".join(found)
    return {
        "study": results.name,
        "headline": comparison.headline,
        "notes": comparison.notes,
        "table": _table(frame, best, comparison),
        "at_cap": at_cap_note(frame),
        "same_models": same_models(frame),
        "origins": origins_told(results),
        "rows": [as_text(row) for row in comparison.rows],
        "several_seeds": any(row.difference and row.difference.seeds_tested for row in comparison.rows),
        "how": f"{HOW} {comparison.over}".strip(),
        "claims": claims,
        "plots": all_plots(results, seen, bigram[0] if bigram else None),
        "unreadable": unreadable,
        "ended": _ended(results),
        "counts": _counts(results),
        "about": about,
        "overlap": (SEQUENCES, describe_overlap(about)),
        "versions": {key.removeprefix("version_"): about[key] for key in sorted(about) if key.startswith("version_")},
        "plotly": get_plotlyjs(),
    }


def _trial_records(results: Results, records: Records) -> tuple[dict[int, TrialRecord], list[int]]:
    """Records of trials that ended, by number; numbers of finished ones that have none."""
    found, unreadable = {}, []
    finished = {t.number: t for c in results.configurations() for t in c.trials}
    for trial in [*finished.values(), *results.failed(), *results.pruned()]:
        record = read_trial_file(trial, results.name, records).record
        if record is not None:
            found[trial.number] = record
        elif trial.number in finished:
            unreadable.append(trial.number)
    return found, sorted(unreadable)


def _table(frame: Any, best: int | None, comparison: Comparison) -> dict[str, Any]:
    """The leaderboard as text: headings, and rows with what marks them."""
    shown = [column for column in frame.columns if column in (*WITH_SEEDS, CODE)]
    tied = {row.other.found.first.number for row in comparison.rows if row.verdict.startswith(TIE)}
    rows = [
        {
            "cells": cells(row, shown),
            "kind": "line" if row["config"] == BIGRAM_ROW else "best" if row["trial"] == best else "",
            "tied": row["config"] != BIGRAM_ROW and row["trial"] in tied,
        }
        for row in frame.to_dict("records")
    ]
    return {
        "headings": [heading(column) for column in shown],
        "left": [c in ("config", "mode") for c in shown],
        "rows": rows,
    }


def _ended(results: Results) -> list[tuple[int, str, str, str]]:
    """Trials without a result: number, configuration, how they ended and why."""
    ways = (
        ("failed", [*results.failed(), *results.replicates(TrialState.FAIL)]),
        ("pruned", [*results.pruned(), *results.replicates(TrialState.PRUNED)]),
    )
    return [
        (t.number, trial_name(trial_config(t), SEED in t.user_attrs), how, t.user_attrs.get(REASON, ""))
        for how, trials in ways
        for t in trials
    ]


def _counts(results: Results) -> str:
    parts = {
        "finished": len(results.finished()),
        "replicates": len(results.replicates(TrialState.COMPLETE)),
        "failed": len(results.failed()),
        "pruned": len(results.pruned()),
    }
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count or name == "finished")
