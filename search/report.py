"""A study's report: verdict, claims, tables and plots, as one HTML file that needs no network, and as Markdown.

For a study that has not ended this also brings its leaderboard and its `best.json` up to date.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.cli import Parser
from model.errors import Exit, UserError, user_errors
from model.output import print_without_fail
from trainables.errors import OtherVersionError
from trainables.host.arguments import as_folder
from trainables.records import DEFAULT_ROOT, Records, sqlite_uri

if TYPE_CHECKING:
    from rich.console import Console

    from search.findings.claims import Claim
    from search.findings.evidence import Comparison
    from search.ledger.records import TrialRecord
    from search.ledger.results import Results

HTML, MARKDOWN = "report.html", "report.md"
RUNNERS_UP = 5  # shown on the terminal
HOW = (
    "Differences are in PPL, per cent of the leader's, with 95 % intervals. Documents: over validation documents, the "
    "same for both sides, equal ones counted once (jackknife, Student's t). Seeds: these documents, other seeds "
    "(Welch). Both: documents, and seeds where both sides have several, multiplicity-corrected since the leader is the "
    "best of many (Bonferroni over all pairs); it decides the verdict."
)


def write_report(
    results: "Results", records: Records, out: Path | None = None
) -> tuple[list[Path], "Comparison", list["Claim"]]:
    """Write both files into the study's folder, or into `out`; the files, and what the terminal tells of them."""
    from search.findings.claims import evaluate
    from search.findings.evidence import comparable, compare, load_evidence
    from trainables.records import write_whole

    evidence = load_evidence(results, records)
    comparison, claims = compare(results, evidence), evaluate(comparable(results, evidence))
    content = _content(results, records, comparison, claims)
    folder = out or records.study(results.name)
    for name in (HTML, MARKDOWN):
        write_whole(folder / name, _rendered(f"{name}.j2", content))
    return [folder / HTML, folder / MARKDOWN], comparison, claims


def _rendered(template: str, content: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "findings"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def _content(results: "Results", records: Records, comparison: "Comparison", claims: list["Claim"]) -> dict[str, Any]:
    """All that the templates show."""
    from plotly.offline import get_plotlyjs

    from search.findings.leaderboard import at_cap_note, leaderboard, origins_told, same_models
    from search.findings.plots import all_plots
    from search.ledger.records import bigram_figures, read_study_record
    from search.ledger.trials import SUMMARY
    from trainables.inputs.overlap import SEQUENCES, describe_overlap

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
        "rows": [_row(row) for row in comparison.rows],
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


def _trial_records(results: "Results", records: Records) -> tuple[dict[int, "TrialRecord"], list[int]]:
    """Records of trials that ended, by number; numbers of finished ones that have none."""
    from search.ledger.trial_files import read_trial_file

    found, unreadable = {}, []
    finished = {t.number: t for c in results.configurations() for t in c.trials}
    for trial in [*finished.values(), *results.failed(), *results.pruned()]:
        record = read_trial_file(trial, results.name, records).record
        if record is not None:
            found[trial.number] = record
        elif trial.number in finished:
            unreadable.append(trial.number)
    return found, sorted(unreadable)


def _table(frame: Any, best: int | None, comparison: "Comparison") -> dict[str, Any]:
    """The leaderboard as text: headings, and rows with what marks them."""
    from search.findings.evidence import TIE
    from search.findings.leaderboard import BIGRAM_ROW, CODE, WITH_SEEDS, cells, heading

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


def _row(row: Any) -> dict[str, str]:
    """One comparison with the leader as text."""
    from search.findings.evidence import TIE, absolute, percent

    told = {"name": row.other.marked, "seeds": str(row.other.num_seeds), "verdict": row.verdict}
    difference = row.difference
    blank = dict.fromkeys(("documents", "ppl", "only_seeds", "combined"), "–")
    if difference is None:
        return told | blank | {"kind": ""}
    return told | {
        "documents": percent(difference.documents),
        "ppl": absolute(difference.documents_ppl),
        "only_seeds": percent(difference.seeds) if difference.seeds else "–",
        "combined": percent(difference.combined),
        "kind": "tie" if row.verdict.startswith(TIE) else "",
    }


def _ended(results: "Results") -> list[tuple[int, str, str, str]]:
    """Trials without a result: number, configuration, how they ended and why."""
    from optuna.trial import TrialState

    from search.findings.leaderboard import trial_name
    from search.ledger.trials import REASON, SEED, trial_config

    ways = (
        ("failed", [*results.failed(), *results.replicates(TrialState.FAIL)]),
        ("pruned", [*results.pruned(), *results.replicates(TrialState.PRUNED)]),
    )
    return [
        (t.number, trial_name(trial_config(t), SEED in t.user_attrs), how, t.user_attrs.get(REASON, ""))
        for how, trials in ways
        for t in trials
    ]


def _counts(results: "Results") -> str:
    from optuna.trial import TrialState

    parts = {
        "finished": len(results.finished()),
        "replicates": len(results.replicates(TrialState.COMPLETE)),
        "failed": len(results.failed()),
        "pruned": len(results.pruned()),
    }
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count or name == "finished")


def print_verdict(console: "Console", comparison: "Comparison", claims: list["Claim"]) -> None:
    """Leader against runners-up, then the claims, in a few lines."""
    from rich.table import Table
    from rich.text import Text

    from trainables.phases.convergence import MARK, MARKED

    console.print(f"\n{comparison.headline}", style="bold")
    for note in comparison.notes:
        console.print(note, style="bold", soft_wrap=True)
    shown = [row for row in comparison.rows if row.difference is not None][:RUNNERS_UP]
    if shown:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        seeds = any(row.difference.seeds_tested for row in shown if row.difference)
        corrected = "corrected, with seeds" if seeds else "corrected 95 % CI"
        for name in ("PPL against the leader", "documents [95 %]", corrected, "verdict"):
            table.add_column(name, no_wrap=name != "verdict")
        for row in map(_row, shown):
            both = row["combined"]
            table.add_row(row["name"], row["documents"], both, row["verdict"])
        console.print(table)
        console.print(comparison.over, style="dim", soft_wrap=True)
    seen = [comparison.leader, *(row.other for row in shown)]
    if any(each is not None and not each.found.converged for each in seen):
        console.print(f"{MARK} {MARKED}: it ended at its cap of sweeps", style="bold")
    console.print("claims of the earlier reports", style="dim")
    for claim in claims:
        where = f" ({claim.where})" if claim.where else ""
        console.print(Text.assemble(f"  {claim.text}{where}: ", (claim.verdict, "bold")), soft_wrap=True)


def _write(study: str, ledgers: Path, records: Records, out: Path | None) -> None:
    """Write and show all of a study.

    Args:
        ledgers: a database that has it.
    """
    from search.findings.leaderboard import leaderboard, write_results
    from search.ledger.records import bigram_figures, read_study_record
    from search.ledger.results import load_results
    from search.ledger.trials import SUMMARY
    from trainables.host.console import open_console

    results = load_results(study, ledgers)
    about, folder = read_study_record(records.study_record(study)), records.study(study)
    board = leaderboard(results, bigram_figures(results.optuna.user_attrs.get(SUMMARY, {})))
    files = write_results(results, board, folder, about.get("command", ""), out)
    reports, comparison, claims = write_report(results, records, out)
    print_verdict(open_console(), comparison, claims)
    print("\n" + "\n".join(map(str, [*files, *reports])))


def _report(args: argparse.Namespace) -> None:
    """Write the report from a copy of the ledger, which may be someone else's or written to meanwhile.

    Raises:
        ValueError: there is no such study, it cannot be read, or its report cannot be written.
    """
    from search.audit.lost_studies import find_lost, study_ids
    from trainables.host.preflight import check_folder
    from trainables.tracking.places import snapshots

    records = Records.at(args.mlruns)
    with snapshots(records.optuna_database) as (ledgers,):
        try:
            known = study_ids(ledgers)
        except OtherVersionError as error:
            raise error.at(sqlite_uri(records.optuna_database)) from None
        if lost := find_lost(records, args.study, known):
            raise ValueError(f"{records.study(args.study)} {lost.what}: {lost.remedy}")
        if ledgers is None or args.study not in known:
            names = f"there are {', '.join(known)}" if known else "there is none yet"
            raise ValueError(f"no study {args.study!r} in {args.mlruns}/: {names}")
        if args.out is None:
            check_folder(records.study(args.study), "give --out FOLDER")
        else:
            check_folder(args.out, f"--out {args.out}")
        _write(args.study, ledgers, records, args.out)


def main() -> int:
    """Write the report of a study on record; 2 if there is none of that name, or it cannot be written."""
    print_without_fail()
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("study", metavar="STUDY", help="its name, as the study printed it")
    root = "as given to the study (default: %(default)s)"
    parser.add_argument("--mlruns", type=as_folder, default=Path(DEFAULT_ROOT), metavar="DIR", help=root)
    out = "where all files go, so that nothing in DIR is written to (default: the study's folder)"
    parser.add_argument("--out", type=as_folder, metavar="FOLDER", help=out)
    try:
        with user_errors():
            _report(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER_ERROR
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
