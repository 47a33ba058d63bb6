"""Writes a study's report: verdict, claims, tables and plots, as one HTML file that needs no network, and as Markdown.

For a study that has not ended this also brings its leaderboard and its `best.json` up to date.
"""

import argparse
import sys
from pathlib import Path

from model.cli import Parser
from model.errors import Exit, UserError, user_errors
from model.output import print_without_fail
from trainables.errors import OtherVersionError
from trainables.host.arguments import as_folder
from trainables.records import DEFAULT_ROOT, Records, sqlite_uri


def _write(study: str, ledgers: Path, records: Records, out: Path | None) -> None:
    """Write and show all of a study.

    Args:
        ledgers: a database that has it.
    """
    from search.findings.document import write_report
    from search.findings.leaderboard import leaderboard, write_results
    from search.ledger.records import bigram_figures, read_study_record
    from search.ledger.results import load_results
    from search.ledger.trials import SUMMARY
    from search.screen import print_verdict
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
