"""Hold everything under a records folder against each other, and say in plain words what is wrong.

Ends with 0 if nothing is, 1 if anything is, 2 if there is no such folder or --repair may not write to it. Looking
writes nothing.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from model.cli import Parser
from model.errors import Exit
from model.output import print_in_any_encoding
from trainables.errors import OtherVersionError
from trainables.records import DEFAULT_ROOT, Records, sqlite_uri

if TYPE_CHECKING:
    from search.audit.findings import Finding, Skipped
    from search.audit.mlflow_checks import Ranges, Runs
    from search.audit.trial_checks import Trials
    from search.ledger.results import Results
    from trainables.tracking.store import StoredRun, StoreView


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a look at a records folder found."""

    findings: list["Finding"] = field(default_factory=list)
    skipped: list["Skipped"] = field(default_factory=list)
    studies: list[str] = field(default_factory=list)
    runs: dict[str, list["StoredRun"]] = field(default_factory=dict)  # of MLflow, by study
    wrong_runs: dict[str, "Runs"] = field(default_factory=dict)  # what was found of them, by study
    trials: dict[str, "Trials"] = field(default_factory=dict)  # and of the trials, by study
    ailing: dict[str, set[str]] = field(default_factory=dict)  # kinds of repairable findings, by study


def examine(records: Records) -> Diagnosis:
    """Check every study, the cache and the registry."""
    from search.audit.findings import Finding
    from search.audit.store_checks import check_cache, check_registry
    from trainables.host.collection import no_collection
    from trainables.tracking.places import rewrite, snapshots

    seen = Diagnosis()
    try:
        copies = snapshots(records.optuna_database, records.mlflow_database)
        with no_collection(), copies as (optuna_copy, mlflow_copy):
            if mlflow_copy is not None:
                rewrite(mlflow_copy, records.root)  # a folder that was moved has its files where it is now
            _examine_databases(seen, records, optuna_copy, mlflow_copy)
            if mlflow_copy is not None:
                seen.findings.extend(check_registry(_view(mlflow_copy)))
    except OSError as error:
        what, remedy = f"cannot be read ({error.strerror})", "look as the user who may read it"
        where = str(error.filename or records.root)
        seen.findings.append(Finding(kind="database", where=where, what=what, remedy=remedy, repairable=False))
    except OtherVersionError as error:  # whose address is a copy's
        database = records.optuna_database if error.library == "optuna" else records.mlflow_database
        remedy = error.remedy(sqlite_uri(database))
        found = Finding(kind="database", where=str(database), what=error.what, remedy=remedy, repairable=False)
        seen.findings.append(found)
    except Exception as error:  # whatever a damaged database makes Optuna, MLflow or SQLAlchemy raise
        what = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        remedy = "bring optuna.db or mlflow.db back from a backup; a lost mlflow.db is made again by --repair"
        found = Finding(kind="database", where=str(records.root), what=what, remedy=remedy, repairable=False)
        seen.findings.append(found)
    seen.findings.extend(check_cache(records.cache))
    return seen


def _view(database: Path) -> "StoreView":
    from trainables.tracking.store import StoreView

    return StoreView(sqlite_uri(database))


def _examine_databases(seen: Diagnosis, records: Records, ledgers: Path | None, runs: Path | None) -> None:
    from search.audit.findings import Finding, Skipped
    from search.audit.lost_studies import find_lost, study_ids
    from search.ledger.lock import is_running
    from search.ledger.results import load_results
    from trainables.tracking.store import curve_ranges

    store = _view(runs) if runs is not None else None
    ranges = curve_ranges(runs) if runs is not None else {}
    known = study_ids(ledgers)
    folders = {folder.name for folder in records.studies.glob("*/")}
    lost = {name: found for name in sorted(folders | known.keys()) if (found := find_lost(records, name, known))}
    for name in sorted(known):
        seen.studies.append(name)
        if is_running(records.study(name)):
            seen.skipped.append(Skipped(where=f"study {name}", why="it is running: look again when it has ended"))
        elif name not in lost and ledgers is not None:
            _examine_study(seen, load_results(name, ledgers), records, store, ranges)
    for name, found in lost.items():
        where = str(records.study(name))
        finding = Finding(kind="ledger", where=where, what=found.what, remedy=found.remedy, repairable=False)
        seen.findings.append(finding)


def _examine_study(
    seen: Diagnosis, results: "Results", records: Records, store: "StoreView | None", ranges: "Ranges"
) -> None:
    from search.audit.findings import Skipped
    from search.audit.mlflow_checks import MLFLOW, check_mlflow, elsewhere
    from search.audit.study_checks import check_leaderboard, check_study_record
    from search.audit.trial_checks import check_trials

    name = results.name
    seen.runs[name] = runs = store.runs(name, results.study_id) if store is not None else []
    seen.trials[name] = trials = check_trials(results, runs, records)
    found = list(trials.findings)
    if away := elsewhere(results, runs, records):
        seen.skipped.append(Skipped(where=f"study {name}", why=away))
    else:
        seen.wrong_runs[name] = of_runs = check_mlflow(results, runs, records, trials, ranges)
        found += of_runs.findings
    found += check_leaderboard(results, records) + check_study_record(results, records)
    seen.findings.extend(found)
    kinds = {finding.kind for finding in found if finding.repairable}
    # telling MLflow again beside two runs of one trial would write into one of them
    if any(finding.kind == MLFLOW and not finding.repairable for finding in found):
        kinds -= {MLFLOW}
    seen.ailing[name] = kinds


def repair(seen: Diagnosis, records: Records) -> list["Skipped"]:
    """Mend what can be; what could not, and why."""
    from model.errors import UserError
    from search.audit.findings import Skipped
    from search.audit.mending import mend_cache
    from search.audit.store_checks import CACHE
    from search.ledger.lock import study_lock
    from search.ledger.results import load_results
    from trainables.tracking.places import in_use

    skipped = []
    for name, kinds in seen.ailing.items():
        if not kinds:
            continue
        try:
            with study_lock(records.study(name)), in_use(records):
                _mend_study(seen, load_results(name, records.optuna_database), kinds, records)
        except (UserError, ValueError, OSError) as error:
            skipped.append(Skipped(where=f"study {name}", why=f"not mended: {error}"))
    damaged = [finding for finding in seen.findings if finding.kind == CACHE and finding.repairable]
    return skipped + mend_cache(damaged)


def _mend_study(seen: Diagnosis, results: "Results", kinds: set[str], records: Records) -> None:
    from search.audit.mending import mend_leaderboard, mend_mlflow, mend_study_record, mend_trial_files
    from search.audit.mlflow_checks import MLFLOW
    from search.audit.study_checks import LEADERBOARD, STUDY_RECORD
    from search.audit.trial_checks import TRIAL_FILE

    name, runs = results.name, seen.runs[results.name]
    if TRIAL_FILE in kinds:
        mend_trial_files(results, runs, records)
    if MLFLOW in kinds:
        wrong, trials = seen.wrong_runs[name], seen.trials[name]
        mend_mlflow(results, runs, wrong, trials, records, lambda said: print(said, file=sys.stderr))
    if LEADERBOARD in kinds:
        mend_leaderboard(results, records)
    if STUDY_RECORD in kinds:
        mend_study_record(results, records)


def _print(seen: Diagnosis, mended: list["Finding"]) -> None:
    from rich.text import Text

    from trainables.host.console import open_console

    console = open_console()

    def say(first: str, style: str, rest: str, its_style: str = "") -> None:
        console.print(Text.assemble((first, style), (rest, its_style)), soft_wrap=True)

    for finding in mended:
        say("mended", "green", f" {finding.kind}: {finding.where}: {finding.what}")
    for finding in seen.findings:
        say(finding.kind, "red", f" {finding.where}: {finding.what}")
        say("  ", "", finding.remedy, "dim")
    for left in seen.skipped:
        say("skipped", "yellow", f" {left.where}: {left.why}")
    count = len(seen.findings)
    told = f"{count} thing{'s are' if count != 1 else ' is'} wrong" if count else "nothing is wrong"
    told += " with what was looked at" if seen.skipped and not count else ""
    console.print(f"{len(seen.studies)} studies: {told}", style="bold")


def main() -> int:
    """Check a records folder, and mend it if asked to; 2 where what was found cannot be printed."""
    if sys.stdout is None:  # what is printed is the result
        print("error: standard output is closed", file=sys.stderr)
        return Exit.USER_ERROR
    print_in_any_encoding()
    parser = Parser(description=__doc__, allow_abbrev=False)
    root = "as given to the studies (default: %(default)s)"
    parser.add_argument("--mlruns", type=Path, default=Path(DEFAULT_ROOT), metavar="DIR", help=root)
    parser.add_argument("--repair", action="store_true", help="mend what can be, from the ledger; deletes no result")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args()
    if not args.mlruns.is_dir():
        print(f"error: there is no folder {args.mlruns}/: give --mlruns", file=sys.stderr)
        return Exit.USER_ERROR
    try:
        records = Records.at(args.mlruns)
        if args.repair:
            from trainables.host.preflight import check_folder

            check_folder(records.root, "--repair")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER_ERROR
    seen, mended = examine(records), []
    if args.repair and any(finding.repairable for finding in seen.findings):
        before = seen.findings
        failed = repair(seen, records)
        seen = examine(records)
        seen.skipped.extend(failed)
        mended = [finding for finding in before if finding not in seen.findings]
    try:
        if args.json:
            told = {
                "studies": seen.studies,
                "findings": [asdict(finding) for finding in seen.findings],
                "skipped": [asdict(left) for left in seen.skipped],
                "mended": [asdict(finding) for finding in mended],
            }
            print(json.dumps(told, indent=1))
        else:
            _print(seen, mended)
        sys.stdout.flush()
    except OSError as error:  # a full disk, or nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain once more at its end
        print(f"error: standard output: {error}", file=sys.stderr)
        return Exit.USER_ERROR
    return Exit.FAILED if seen.findings else Exit.OK


if __name__ == "__main__":
    sys.exit(main())
