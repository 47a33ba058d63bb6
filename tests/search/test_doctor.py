"""Records folders damaged by hand: what is wrong is found, mended, and found no more."""

import errno
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import forked
import pytest
from costless import handed_out
from entries import context_modes
from made_up import BASE, modes, run
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial

from model.errors import Exit
from search.audit.mending import mend_leaderboard, mend_mlflow
from search.audit.mlflow_checks import Runs
from search.audit.study_checks import check_study_record
from search.audit.trial_checks import Trials
from search.doctor import examine, main, repair
from search.findings.document import write_report
from search.findings.evidence import compare, load_evidence
from search.findings.leaderboard import origins_told
from search.ledger.ledger import Ledger
from search.ledger.lock import study_lock
from search.ledger.records import TrialRecord, read_study_record, write_study_record, write_trial_record
from search.ledger.results import load_results
from search.ledger.trials import HASH, METRICS, RECORD, REPLICATE_OF
from trainables import metrics as names
from trainables.records import Records
from trainables.tracking.places import in_use
from trainables.tracking.study_runs import STUDY_ID_TAG
from trainables.tracking.tags import HASH_TAG, PARENT_TAG, PHASE1_TAG

ROOT = Path(__file__).parents[2]
STUDY = "made-up"
NO_RUNS, NO_TRIALS = Runs([], set(), set()), Trials([], {}, frozenset())


@pytest.fixture(scope="module")
def healthy(earlier_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A records folder with a study of costless trials that ended."""
    records = Records.at(Path(shutil.copytree(earlier_records, tmp_path_factory.mktemp("healthy") / "mlruns")))
    ledger = run(context_modes(BASE, (16,)), records, modes, fails=lambda config: config.context_mode == "final_only")
    (failed,) = ledger.failed()
    left = TrialRecord(failed.user_attrs[HASH], failed.number, BASE.seed).ended("failed", "diverged")
    write_trial_record(records.trial_record(STUDY, left.config_hash), left)
    results = load_results(STUDY, records.optuna_database)
    mend_mlflow(results, [], NO_RUNS, NO_TRIALS, records, pytest.fail)
    mend_leaderboard(results, records)
    return records.root


@pytest.fixture
def records(healthy: Path, tmp_path: Path) -> Records:
    records = Records.at(Path(shutil.copytree(healthy, tmp_path / "mlruns")))
    with in_use(records):  # its places are those of the copy
        pass
    return records


def told(records: Records) -> list[str]:
    return [f"{finding.kind}: {finding.what}" for finding in examine(records).findings]


def first_hash(records: Records) -> str:
    return str(load_results(STUDY, records.optuna_database).finished()[0].user_attrs[HASH])


def child(records: Records) -> tuple[MlflowClient, str]:
    """A client, and the run of the first trial."""
    client = MlflowClient(records.tracking_uri)
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.{HASH_TAG} = '{first_hash(records)}'")
    return client, run.info.run_id


def parent(records: Records) -> tuple[MlflowClient, str]:
    client, of_trial = child(records)
    return client, client.get_run(of_trial).data.tags[PARENT_TAG]


def test_nothing_is_wrong_with_a_whole_folder(records: Records) -> None:
    assert told(records) == []
    assert examine(records).studies == [STUDY]


def delete_run(records: Records) -> None:
    client, run_id = child(records)
    client.delete_run(run_id)


def end_otherwise(records: Records) -> None:
    client, run_id = child(records)
    client.set_terminated(run_id, "FAILED")


def other_figure(records: Records) -> None:
    client, run_id = child(records)
    client.log_metric(run_id, "phase2/val_ppl", 1.0)


def delete_parent(records: Records) -> None:
    client, run_id = parent(records)
    client.delete_run(run_id)


def leave_running(records: Records) -> None:
    client, run_id = parent(records)
    client.update_run(run_id, status="RUNNING")


def other_parent(records: Records) -> None:
    client, run_id = child(records)
    client.set_tag(run_id, PARENT_TAG, "0" * 32)


def lose_mlflow(records: Records) -> None:
    records.mlflow_database.unlink()


def wait_in_journal(records: Records) -> None:
    line = ["log_series", first_hash(records), {"points": [["epoch/val_ppl", 5, 3.0]]}]
    records.journal(STUDY, None).write_text(json.dumps(line) + "\n")


def lose_trial_file(records: Records) -> None:
    records.trial_record(STUDY, first_hash(records)).unlink()


def damage_trial_file(records: Records) -> None:
    records.trial_record(STUDY, first_hash(records)).write_text("{")


def change_losses(records: Records) -> None:
    path = records.trial_record(STUDY, first_hash(records))
    content = json.loads(path.read_text())
    content["nats"][0] += 1
    path.write_text(json.dumps(content))


def change_losses_and_keep_their_sum(records: Records) -> None:
    path = records.trial_record(STUDY, first_hash(records))
    content = json.loads(path.read_text())
    content["nats"][0] += 1
    content["nats"][1] -= 1
    path.write_text(json.dumps(content))


def change_a_curve(records: Records) -> None:
    path = records.trial_record(STUDY, first_hash(records))
    content = json.loads(path.read_text())
    content["series"][names.EPOCH_VAL_PPL][1][1] = 1.0
    path.write_text(json.dumps(content))


def change(field: str, value: object) -> Callable[[Records], None]:
    """A damage that changes one field of a trial's file."""

    def damage(records: Records) -> None:
        path = records.trial_record(STUDY, first_hash(records))
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    damage.__name__ = f"change_{field}"
    return damage


def other_param(records: Records) -> None:
    _, run_id = child(records)
    with closing(sqlite3.connect(records.mlflow_database)) as database, database:
        database.execute("UPDATE params SET value = '999' WHERE run_uuid = ? AND key = 'context_dim'", (run_id,))


def lose_a_param(records: Records) -> None:
    _, run_id = child(records)
    with closing(sqlite3.connect(records.mlflow_database)) as database, database:
        database.execute("DELETE FROM params WHERE run_uuid = ? AND key = 'threads'", (run_id,))


def other_tag(records: Records) -> None:
    client, run_id = child(records)
    client.set_tag(run_id, PHASE1_TAG, "0" * 16)


def say_otherwise_that_it_converged(records: Records) -> None:
    client, run_id = child(records)
    client.log_metric(run_id, names.CONVERGED, 0.0)


def other_last_epoch(records: Records) -> None:
    client, run_id = child(records)
    client.log_metric(run_id, names.EPOCH_VAL_PPL, 99.0, step=6)


def other_best_epoch(records: Records) -> None:
    client, run_id = child(records)
    client.log_metric(run_id, names.EPOCH_VAL_PPL, 1.0, step=3)


def lose_leaderboard(records: Records) -> None:
    (records.study(STUDY) / "leaderboard.csv").unlink()


def change_leaderboard(records: Records) -> None:
    path = records.study(STUDY) / "leaderboard.csv"
    path.write_text(path.read_text().replace("layerwise", "final_only", 1))


def other_leader(records: Records) -> None:
    path = records.study(STUDY) / "best.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trial": 99}))


def other_best_figures(records: Records) -> None:
    path = records.study(STUDY) / "best.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {}}))


def damage_entry(records: Records) -> None:
    entry = next(path for path in sorted(records.cache.iterdir()) if not path.name.startswith("."))
    next(path for path in sorted(entry.iterdir()) if path.name != "manifest.json").write_bytes(b"")


def leave_scratch(records: Records) -> None:
    (records.cache / ".phase1-0123.abc").mkdir()
    (records.cache / ".phase1-0123.abc" / "half").write_text("")


def leave_lock(records: Records) -> None:
    (records.cache / ".phase1-0123.lock").touch()


DAMAGES: list[tuple[Callable[[Records], None], str]] = [
    (delete_run, "mlflow: MLflow has no run of it"),
    (end_otherwise, "mlflow: MLflow's run has ended as FAILED, by the ledger it is FINISHED"),
    (other_figure, "mlflow: MLflow's run has other figures than the ledger: phase2/val_ppl"),
    (delete_parent, "mlflow: its parent run in MLflow is deleted"),
    (leave_running, "mlflow: MLflow says that it is running, and no driver is"),
    (other_parent, "mlflow: 1 runs in MLflow are children of another or a deleted parent"),
    (lose_mlflow, "mlflow: MLflow has no parent run of it"),
    (wait_in_journal, "mlflow: MLflow was not told 1 operations"),
    (lose_trial_file, "trial file: {hash}.json is missing"),
    (damage_trial_file, "trial file: {hash}.json is damaged"),
    (change_losses, "trial file: {hash}.json has losses by document that do not add up"),
    (change_losses_and_keep_their_sum, "trial file: {hash}.json is not as the trial wrote it"),
    (change_a_curve, "trial file: {hash}.json is not as the trial wrote it"),
    (change("seed", 7), "trial file: {hash}.json has seed 7, the ledger 0"),
    (change("config", {"data": "other"}), "trial file: {hash}.json has another configuration than the ledger"),
    (change("runtime", {"threads": 9}), "trial file: {hash}.json is not as the trial wrote it"),
    (change("phase1_by", "0" * 16), "trial file: {hash}.json is not as the trial wrote it"),
    (change("metrics", {names.VAL_PPL: 1.0}), "trial file: {hash}.json has other figures than the ledger"),
    (other_param, "mlflow: MLflow's run has other params than the ledger: context_dim"),
    (lose_a_param, "mlflow: MLflow's run has other params than the ledger: threads"),
    (other_tag, "mlflow: MLflow's run has other tags than the ledger: phase1_trained_by"),
    (say_otherwise_that_it_converged, "mlflow: MLflow's run has other figures than the ledger: phase1/converged"),
    (other_last_epoch, "mlflow: MLflow's run has other curves than the ledger: epoch/val_ppl"),
    (other_best_epoch, "mlflow: MLflow's run has other curves than the ledger: epoch/val_ppl"),
    (lose_leaderboard, "leaderboard: is missing"),
    (change_leaderboard, "leaderboard: is not what the ledger says"),
    (other_leader, "leaderboard: names trial 99, by the ledger trial"),
    (other_best_figures, "leaderboard: has other figures than the ledger: metrics"),
    (damage_entry, "cache: is half made or damaged"),
    (leave_scratch, "cache: is scratch of a process that is gone"),
    (leave_lock, "cache: is the lock of an entry that was never made"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damage_is_found_mended_and_found_no_more(
    records: Records, damage: Callable[[Records], None], said: str
) -> None:
    damage(records)
    seen = examine(records)
    found = [f"{finding.kind}: {finding.what}" for finding in seen.findings]
    assert found[0].startswith(said.format(hash=first_hash(records)))
    assert all(finding.repairable and finding.remedy for finding in seen.findings)
    assert repair(seen, records) == []
    assert told(records) == []


def test_two_runs_of_one_trial_are_left_to_the_user(records: Records) -> None:
    client, run_id = child(records)
    twin = client.get_run(run_id)
    tags = {key: twin.data.tags[key] for key in (HASH_TAG, STUDY_ID_TAG, PARENT_TAG)}
    client.create_run(twin.info.experiment_id, tags=tags)
    seen = examine(records)
    assert [finding.repairable for finding in seen.findings] == [False]
    assert "2 runs of it" in seen.findings[0].what
    repair(seen, records)
    assert len(told(records)) == 1


def test_what_belongs_to_no_trial_is_named_and_kept(records: Records) -> None:
    orphan = records.trial_record(STUDY, "f" * 16)
    orphan.write_text("{}")
    client, run_id = parent(records)
    other = client.get_run(run_id)
    tags = {HASH_TAG: "f" * 16, STUDY_ID_TAG: other.data.tags[STUDY_ID_TAG], PARENT_TAG: run_id}
    client.create_run(other.info.experiment_id, tags=tags)
    seen = examine(records)
    assert [finding.what for finding in seen.findings] == ["is of no trial of the ledger"] * 2
    repair(seen, records)
    assert orphan.exists()


def test_a_running_study_is_named_and_left_alone(records: Records) -> None:
    lose_leaderboard(records)
    with study_lock(records.study(STUDY)):
        seen = examine(records)
        assert seen.findings == []
        assert [left.where for left in seen.skipped] == [f"study {STUDY}"]
    assert told(records) == ["leaderboard: is missing"]


@pytest.mark.parametrize("uri", ["http://elsewhere", "sqlite:////elsewhere.db"])
def test_runs_of_another_store_are_skipped_by_name(records: Records, uri: str) -> None:
    lose_mlflow(records)
    records.journal(STUDY, None).unlink()
    records.journal(STUDY, uri).touch()
    seen = examine(records)
    assert seen.findings == []
    assert seen.skipped[0].why.startswith("its runs went to another tracking server or database")


def test_a_study_that_never_began_lacks_nothing(earlier_records: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(earlier_records, tmp_path / "mlruns")))
    Ledger(context_modes(BASE, (16,)), STUDY, records.optuna_database)
    seen = examine(records)
    assert (seen.studies, seen.findings) == ([STUDY], [])


def test_pruned_trials_and_replicates_are_as_right_as_others(earlier_records: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(earlier_records, tmp_path / "mlruns")))
    study = context_modes(BASE, (16,))
    first = Ledger(study, STUDY, records.optuna_database, 2)
    assignment = handed_out(first)
    left = TrialRecord(assignment.config.config_hash(), assignment.number, BASE.seed).ended("pruned", "collapsed")
    write_trial_record(records.trial_record(STUDY, left.config_hash), left)
    first.epoch(assignment.number, 1, 90.0)
    first.prune(assignment.number, "collapsed", {names.CONVERGENCE: 0.5})
    ledger = run(study, records, modes, seeds=2)
    assert (len(ledger.pruned()), len(ledger.replicates())) == (1, len(ledger.finished()))
    results = load_results(STUDY, records.optuna_database)
    mend_mlflow(results, [], NO_RUNS, NO_TRIALS, records, pytest.fail)
    mend_leaderboard(results, records)
    assert told(records) == []
    client, _ = child(records)
    (experiment,) = client.search_experiments(filter_string=f"name = '{STUDY}'")
    for key in (left.config_hash, ledger.replicates()[0].user_attrs[HASH]):
        (of_trial,) = client.search_runs([experiment.experiment_id], f"tags.{HASH_TAG} = '{key}'")
        client.set_terminated(of_trial.info.run_id, "FAILED")
    seen = examine(records)
    assert len(seen.findings) == 2
    assert repair(seen, records) == []
    assert told(records) == []


def forbidden(monkeypatch: pytest.MonkeyPatch, method: str, path: Path) -> None:
    """Have a method of `path` refused, as the system refuses it to whoever has not the right; root has every right."""
    allowed = getattr(Path, method)

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(self, *args, **options)

    monkeypatch.setattr(Path, method, refuse)


def here(monkeypatch: pytest.MonkeyPatch, records: Records, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["doctor.py", "--mlruns", str(records.root), *options])
    return main()


def test_a_cache_that_may_not_be_read_is_said_and_kept(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(records.cache)
    forbidden(monkeypatch, "iterdir", records.cache)
    assert here(monkeypatch, records, "--repair") == Exit.FAILED
    said = capsys.readouterr()
    assert f"cache {records.cache}: cannot be read (Permission denied)" in said.out
    assert said.err == ""
    assert everything(records.cache) == before


def test_an_entry_of_the_cache_that_may_not_be_read_is_not_taken_for_damaged(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = next(path for path in sorted(records.cache.iterdir()) if not path.name.startswith("."))
    forbidden(monkeypatch, "open", entry / "manifest.json")
    seen = examine(records)
    assert [(f.where, f.what, f.repairable) for f in seen.findings] == [
        (str(entry), "cannot be read (Permission denied)", False)
    ]
    repair(seen, records)
    assert entry.exists()


def test_a_study_that_may_not_be_read_is_said(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    board = records.study(STUDY) / "leaderboard.csv"
    forbidden(monkeypatch, "read_text", board)
    (finding,) = examine(records).findings
    assert (finding.where, finding.what, finding.repairable) == (
        str(board), "cannot be read (Permission denied)", False
    )  # fmt: skip


def test_what_may_not_be_written_is_not_mended(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_leaderboard(records)
    before = everything(records.root)
    with monkeypatch.context() as patch:
        patch.setattr("trainables.host.preflight.os.access", lambda path, mode: False)
        assert here(patch, records, "--repair") == Exit.USER_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: --repair: {records.root} is not a folder that can be written to\n"
    assert everything(records.root) == before
    with monkeypatch.context() as patch:  # the study's own folder alone
        forbidden(patch, "write_text", records.study(STUDY) / "driver")
        assert here(patch, records, "--repair") == Exit.FAILED
    said = capsys.readouterr()
    assert f"skipped study {STUDY}: not mended: " in said.out
    assert "Permission denied" in said.out
    assert "leaderboard" in said.out


def test_scratch_that_may_not_be_removed_is_said(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_scratch(records)
    scratch = records.cache / ".phase1-0123.abc"

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("search.audit.mending.shutil.rmtree", refuse)
    (left,) = repair(examine(records), records)
    assert (left.where, "Permission denied" in left.why) == (str(scratch), True)


def test_records_that_may_only_be_read_are_examined_without_writing(records: Records) -> None:
    records.use_write_ahead_logs()
    paths = [records.root, *records.root.rglob("*")]
    modes_before = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = everything(records.root)
    try:
        done = command("--mlruns", str(records.root), "--json")
    finally:
        for path, mode in modes_before.items():
            path.chmod(mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert everything(records.root) == before


def test_a_ledger_that_is_no_database_is_said(records: Records) -> None:
    records.optuna_database.write_bytes(b"no database" * 100)
    assert told(records)[0].startswith("database: ")


def test_a_registered_version_without_its_files_is_named(records: Records) -> None:
    client, run_id = child(records)
    client.create_registered_model("bob")
    source = records.artifacts / "nowhere"
    client.create_model_version("bob", source.as_uri(), run_id)
    (finding,) = examine(records).findings
    assert (finding.kind, finding.where, finding.repairable) == ("registry", "bob version 1", False)
    assert "weights" in finding.what or "MLmodel" in finding.what


def everything(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def command(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "search/doctor.py"), *options]
    return forked.run(line)


def test_the_command_looks_without_writing_and_mends_when_asked(records: Records, tmp_path: Path) -> None:
    records.use_write_ahead_logs()
    other_leader(records)
    before = everything(records.root)
    done = command("--mlruns", str(records.root), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert [finding["kind"] for finding in json.loads(done.stdout)["findings"]] == ["leaderboard"]
    assert everything(records.root) == before
    mended = command("--mlruns", str(records.root), "--repair")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "mended leaderboard" in mended.stdout
    missing = command("--mlruns", str(tmp_path / "none"))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "none").exists()


def test_a_moved_folder_is_as_healthy_as_before(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "moved")
    moved = Records.at(tmp_path / "moved")
    for file in Records.at(healthy).artifacts.rglob("*.json"):
        assert (moved.root / file.relative_to(healthy)).exists()
    (run_file,) = moved.artifacts.rglob(f"{first_hash(moved)}.json")
    moved.trial_record(STUDY, first_hash(moved)).unlink()
    assert told(moved) == [f"trial file: {first_hash(moved)}.json is missing"]
    repair(examine(moved), moved)
    assert moved.trial_record(STUDY, first_hash(moved)).read_bytes() == run_file.read_bytes()


def in_ledger(records: Records, statement: str, *values: object) -> None:
    """Change the ledger's database by hand."""
    with closing(sqlite3.connect(records.optuna_database)) as database, database:
        database.execute(statement, values)


def edit_attribute(records: Records, number: int, key: str, change: Callable[[Any], Any]) -> None:
    where = "key = ? AND trial_id = (SELECT trial_id FROM trials WHERE number = ?)"
    with closing(sqlite3.connect(records.optuna_database)) as database, database:
        select = f"SELECT value_json FROM trial_user_attributes WHERE {where}"
        (content,) = database.execute(select, (key, number)).fetchone()
        changed = json.dumps(change(json.loads(content)))
        database.execute(f"UPDATE trial_user_attributes SET value_json = ? WHERE {where}", (changed, key, number))


def edit_value(records: Records, number: int, value: float) -> None:
    where = "trial_id = (SELECT trial_id FROM trials WHERE number = ?)"
    in_ledger(records, f"UPDATE trial_values SET value = ? WHERE {where}", value, number)


def second(records: Records) -> FrozenTrial:
    """A finished trial that does not lead."""
    results = load_results(STUDY, records.optuna_database)
    best = results.best()
    return next(trial for trial in results.finished() if best is None or trial.number != best.number)


def test_an_edited_result_in_the_ledger_is_named_and_mended_into_nothing(records: Records) -> None:
    number, key = second(records).number, second(records).user_attrs[HASH]
    edit_value(records, number, 1.5)
    edit_attribute(records, number, METRICS, lambda figures: figures | {names.VAL_PPL: 1.5})
    seen = examine(records)
    of_ledger = next(finding for finding in seen.findings if finding.kind == "ledger")
    assert of_ledger.what.startswith(
        f"{key}.json has other figures than the ledger: {names.VAL_PPL}, and by its digest"
    )
    assert "the ledger looks edited" in of_ledger.what
    assert {finding.kind for finding in seen.findings} == {"ledger", "leaderboard"}
    run_before = [run.metrics for run in seen.runs[STUDY]]
    repair(seen, records)
    after = examine(records)
    assert [run.metrics for run in after.runs[STUDY]] == run_before
    assert [finding.kind for finding in after.findings] == ["ledger"]


@pytest.mark.parametrize("key", [names.CONVERGENCE, names.SWEEPS])
def test_an_edited_figure_of_a_trial_is_seen(records: Records, key: str) -> None:
    number = second(records).number
    edit_attribute(records, number, METRICS, lambda figures: figures | {key: 0.5})
    results = load_results(STUDY, records.optuna_database)
    (note,) = compare(results, load_evidence(results, records)).notes
    assert f"trial {number} (" in note
    assert key in note
    assert any(f"the ledger: {key}, and by its digest" in finding.what for finding in examine(records).findings)


def without_digests(records: Records) -> None:
    """As a study of before the ledger kept any."""
    in_ledger(records, "DELETE FROM trial_user_attributes WHERE key = ?", RECORD)


def test_without_a_digest_a_file_that_mlflow_agrees_with_is_believed(records: Records) -> None:
    without_digests(records)
    assert told(records) == []
    number = second(records).number
    edit_value(records, number, 1.5)
    edit_attribute(records, number, METRICS, lambda figures: figures | {names.VAL_PPL: 1.5})
    found = [said for said in told(records) if said.startswith("ledger: ")]
    assert len(found) == 1
    assert found[0].endswith("and MLflow says what the file says: the ledger looks edited")


def test_without_a_digest_a_file_is_held_against_mlflow_s_copy(records: Records) -> None:
    without_digests(records)
    change_losses_and_keep_their_sum(records)
    (finding,) = examine(records).findings
    assert "is not what MLflow's copy of it says" in finding.what
    assert not finding.repairable


def test_a_value_that_is_not_its_figure_is_said_and_no_file_is_called_an_orphan(records: Records) -> None:
    number = second(records).number
    edit_value(records, number, 1.5)
    found = examine(records).findings
    assert [(f.kind, f.where) for f in found if f.kind != "leaderboard"] == [
        ("ledger", f"study {STUDY}, trial {number}")
    ]
    assert "its value 1.5 in the ledger is not its figure phase2/val_ppl there" in found[0].what


def test_a_value_that_is_not_its_best_epoch_s_is_said(records: Records) -> None:
    number = second(records).number
    trial_id = "(SELECT trial_id FROM trials WHERE number = ?)"
    columns = "(trial_id, step, intermediate_value, intermediate_value_type)"
    in_ledger(
        records, f"INSERT INTO trial_intermediate_values {columns} VALUES ({trial_id}, 1, 3.25, 'FINITE')", number
    )
    (finding,) = examine(records).findings
    assert finding.kind == "ledger"
    assert "is not its best epoch's there, 3.25" in finding.what


def test_a_replicate_of_another_configuration_counts_nowhere_and_is_said(earlier_records: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(earlier_records, tmp_path / "mlruns")))
    ledger = run(context_modes(BASE, (16,)), records, modes, seeds=2)
    replicate = ledger.replicates()[0]
    other = next(t.number for t in ledger.finished() if t.number != replicate.user_attrs[REPLICATE_OF])
    edit_attribute(records, replicate.number, REPLICATE_OF, lambda _: other)
    results = load_results(STUDY, records.optuna_database)
    assert replicate.number not in {t.number for c in results.configurations() for t in c.trials}
    (told_of,) = origins_told(results)
    assert told_of.startswith(
        f"trial {replicate.number} counts for nothing: it says that it is a further seed of trial"
    )
    found = [finding.what for finding in examine(records).findings if finding.kind == "ledger"]
    assert found == [told_of.partition(": ")[2]]


SUMMARY_OF = {"inputs": "i", "bigram_val_ppl": 40.0, "bigram_val_acc": 0.2, "digest": "d", "git_commit": "c"}


@pytest.fixture
def summarised(records: Records) -> Records:
    """A study with a summary of its inputs and a `study.json`."""
    ledger = Ledger(context_modes(BASE, (16,)), STUDY, records.optuna_database)
    ledger.keep_summary(SUMMARY_OF)
    entry = {"command": "x", "code": "k", "threads": 1, "digest": "d", "trials": [0, 1]}
    write_study_record(records.study_record(STUDY), {"command": "x", **SUMMARY_OF, "history": [entry]})
    mend_leaderboard(load_results(STUDY, records.optuna_database), records)
    return records


def test_a_study_record_is_held_against_the_ledger_s_summary_and_mended(summarised: Records) -> None:
    path = summarised.study_record(STUDY)
    assert told(summarised) == []
    path.write_text(json.dumps(read_study_record(path) | {"bigram_val_ppl": 1.0, "git_commit": "other"}))
    seen = examine(summarised)
    assert [f"{f.kind}: {f.what}" for f in seen.findings] == [
        "study record: has other figures than the ledger: bigram_val_ppl, git_commit"
    ]
    repair(seen, summarised)
    assert told(summarised) == []
    assert read_study_record(path)["command"] == "x"
    path.write_text("{")
    assert told(summarised) == ["study record: is damaged"]


def test_a_report_has_the_ledger_s_figures(summarised: Records) -> None:
    path = summarised.study_record(STUDY)
    sizes = {
        "data": "d",
        "embedding": "bigram",
        "hardware": "h",
        "compute": "fp32",
        "vocab_size": 9,
        "git_dirty": None,
        "embedding_dim": 9,
    }
    tokens = dict.fromkeys(("train_tokens", "val_tokens", "test_tokens"), 9)
    path.write_text(
        json.dumps(read_study_record(path) | sizes | tokens | {"bigram_val_ppl": 1.0, "git_commit": "other"})
    )
    files, _, _ = write_report(load_results(STUDY, summarised.optuna_database), summarised)
    text = files[1].read_text()
    assert "commit: c" in text
    assert "| – | bigram |" in text
    assert "| 40.00 |" in text


def test_a_history_that_names_other_trials_or_another_digest_is_said(summarised: Records) -> None:
    ledger = Ledger(context_modes(BASE, (16,)), STUDY, summarised.optuna_database)
    made = {"code": "k", "torch": "2", "device": "cpu", "compute": "fp32", "threads": 2}
    in_ledger(
        summarised,
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT trial_id, 'provenance', ? FROM trials "
        "WHERE number = 0",
        json.dumps(made),
    )
    path = summarised.study_record(STUDY)
    entry = {"command": "x", "code": "k", "threads": 1, "digest": "d", "device": "cpu", "trials": [0, 99]}
    write_study_record(path, {"command": "x", **SUMMARY_OF, "history": [entry]})
    results = load_results(ledger.name, summarised.optuna_database)
    assert [finding.what for finding in check_study_record(results, summarised)] == [
        "entry 1 of its history names trials that the ledger has not: 99",
        "entry 1 of its history has another digest and threads than its trials",
    ]


def test_what_was_not_looked_at_is_not_called_right(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with study_lock(records.study(STUDY)):
        assert here(monkeypatch, records) == 0
    assert "1 studies: nothing is wrong with what was looked at" in capsys.readouterr().out
