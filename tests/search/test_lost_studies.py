"""Studies that other programs deleted or renamed in Optuna's database: nothing is written over what they left."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import optuna
import pytest
from entries import context_modes
from made_up import BASE, modes, run
from permissions import everything
from studies import ROOT, start

from search.audit.lost_studies import find_lost, study_ids
from search.audit.mending import mend_leaderboard
from search.doctor import examine, repair
from search.ledger.results import load_results
from trainables.records import Records, sqlite_uri

STUDY, NEW = "made-up", "other-name"


def delete(records: Records) -> None:
    optuna.delete_study(study_name=STUDY, storage=sqlite_uri(records.optuna_database))


def rename(records: Records) -> None:
    uri = sqlite_uri(records.optuna_database)
    optuna.copy_study(from_study_name=STUDY, from_storage=uri, to_storage=uri, to_study_name=NEW)
    delete(records)


def make_anew(records: Records) -> None:
    delete(records)
    optuna.create_study(study_name=STUDY, storage=sqlite_uri(records.optuna_database))


def delete_the_database(records: Records) -> None:
    records.optuna_database.unlink()


BACK, NAME_IT = "bring back the optuna.db that has it", f"it is named '{NEW}' there now: name this folder so too"


@pytest.fixture
def records(earlier_records: Path, tmp_path: Path) -> Records:
    records = Records.at(Path(shutil.copytree(earlier_records, tmp_path / "mlruns")))
    run(context_modes(BASE, (16,)), records, modes)
    mend_leaderboard(load_results(STUDY, records.optuna_database), records)
    return records


def report(records: Records, study: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "search/report.py"), study, "--mlruns", str(records.root)]
    return forked.run(line)


@pytest.mark.parametrize(
    ("happened", "remedy"),
    [(delete, BACK), (rename, NAME_IT), (make_anew, BACK), (delete_the_database, BACK)],
)
def test_every_command_says_so_and_writes_nothing(
    records: Records, chat_file: Path, happened: Callable[[Records], None], remedy: str
) -> None:
    happened(records)
    folder = records.study(STUDY)
    before = {name: seen for name, seen in everything(folder).items() if not name.startswith(".")}
    begun = start("search/context_modes.py", chat_file, records.root, "--name", STUDY)
    assert (begun.returncode, begun.stderr.count("\n")) == (2, 1)
    assert begun.stderr.startswith(f"error: {folder} has results of a study that is not the one of its name")
    assert remedy in begun.stderr
    assert begun.stderr.endswith("; or, to begin anew, move this folder away\n")
    reported = report(records, STUDY)
    assert (reported.returncode, reported.stderr.count("\n")) == (2, 1)
    assert remedy in reported.stderr
    seen = examine(records)
    told = [finding for finding in seen.findings if finding.kind == "ledger"]
    assert [(finding.where, finding.repairable) for finding in told] == [(str(folder), False)]
    assert remedy in told[0].remedy
    repair(seen, records)
    assert {name: seen for name, seen in everything(folder).items() if not name.startswith(".")} == before


def test_a_folder_named_as_the_study_is_now_goes_with_it(records: Records) -> None:
    rename(records)
    records.study(STUDY).rename(records.study(NEW))
    assert report(records, NEW).returncode == 0
    assert "ledger" not in {finding.kind for finding in examine(records).findings}


def test_results_of_before_studies_had_ids_belong_to_the_one_of_their_name(records: Records) -> None:
    best = records.study(STUDY) / "best.json"
    best.write_text(best.read_text().replace('"study_id"', '"no_id"'))
    assert find_lost(records, STUDY, study_ids(records.optuna_database)) is None
