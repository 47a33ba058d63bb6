"""MLflow's runs of a study, on a real store."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from trainables.records import Records
from trainables.reports import Point
from trainables.tracking.operations import EndStudy, FailRun, FinishRun, LogPoints, StartRun, StartStudy
from trainables.tracking.places import HOLDS
from trainables.tracking.study_runs import StudyRuns
from trainables.tracking.tags import HASH_TAG, PARENT_TAG, REASON_TAG, ROLE_TAG, STUDY_TAG, TRIAL_TAG, trial_tags

PARAMS = {"context_dim": 16, "data": "a b.jsonl", "samples": None, "phase1_noise": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """One store for all tests of this file, since making one takes seconds; a space in its path must not matter."""
    records = Records.at(tmp_path_factory.mktemp("mlflow") / "my runs")
    StudyRuns(records, "first", "id")
    return records


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    """A study of this test's own."""
    return request.node.name.replace("[", "-").rstrip("]")


@pytest.fixture
def study_runs(store: Records, study: str) -> StudyRuns:
    return StudyRuns(store, study, study)


def start(study_runs: StudyRuns, number: int, key: str, name: str, params: dict[str, Any]) -> str:
    """A trial's run; its id."""
    study_runs.apply(StartRun(key, name=name, params=params, tags=trial_tags(number, None)))
    return study_runs.run_id(key)


def runs(study_runs: StudyRuns) -> list[Run]:
    return list(study_runs.client.search_runs([study_runs.experiment_id]))


def run(study_runs: StudyRuns, run_id: str) -> Run:
    return study_runs.client.get_run(run_id)


def test_a_study_is_one_experiment_with_one_parent_run(study_runs: StudyRuns, study: str) -> None:
    (parent,) = runs(study_runs)
    assert parent.info.run_id == study_runs.parent
    assert study_runs.client.get_experiment(study_runs.experiment_id).name == study
    assert (parent.info.run_name, parent.data.tags[ROLE_TAG], parent.data.tags[STUDY_TAG]) == (study, "study", study)
    assert parent.info.status == "RUNNING"


def test_a_trial_is_a_child_of_the_parent_with_its_tags(study_runs: StudyRuns, study: str) -> None:
    child = run(study_runs, start(study_runs, 7, "abc123", "C1T1 D16", PARAMS))
    assert child.data.tags[PARENT_TAG] == study_runs.parent
    assert (child.info.run_name, child.info.status) == ("C1T1 D16", "RUNNING")
    tags = {STUDY_TAG: study, HASH_TAG: "abc123", TRIAL_TAG: "7"}
    assert {key: child.data.tags[key] for key in tags} == tags


def test_a_trial_has_the_params_of_its_configuration(study_runs: StudyRuns) -> None:
    child = run(study_runs, start(study_runs, 0, "abc", "n", PARAMS))
    assert child.data.params == {key: str(value) for key, value in PARAMS.items()}


def test_more_params_than_one_call_takes_are_all_logged(study_runs: StudyRuns) -> None:
    params = {f"p{i}": i for i in range(250)}
    child = run(study_runs, start(study_runs, 0, "abc", "n", params))
    assert child.data.params == {key: str(value) for key, value in params.items()}


def test_points_of_a_series_are_kept_in_order(study_runs: StudyRuns) -> None:
    run_id = start(study_runs, 0, "abc", "n", {})
    study_runs.apply(LogPoints("abc", points=[Point("sweep/loss", step, step / 10) for step in range(1, 4)]))
    study_runs.apply(LogPoints("abc", points=[Point("sweep/loss", 4, 0.4), Point("epoch/val_ppl", 1, 33.0)]))
    history = study_runs.client.get_metric_history(run_id, "sweep/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert run(study_runs, run_id).data.metrics == {"sweep/loss": 0.4, "epoch/val_ppl": 33.0}


def test_more_points_than_one_call_takes_are_all_logged(study_runs: StudyRuns) -> None:
    run_id = start(study_runs, 0, "abc", "n", {})
    study_runs.apply(LogPoints("abc", points=[Point("sweep/loss", step, 1.0) for step in range(1_500)]))
    assert len(study_runs.client.get_metric_history(run_id, "sweep/loss")) == 1_500


def test_a_finished_trial_has_its_figures_once(study_runs: StudyRuns) -> None:
    run_id = start(study_runs, 0, "abc", "n", {})
    study_runs.apply(FinishRun("abc", figures={"phase2/val_ppl": 33.0, "total_seconds": 4.0}))
    assert run(study_runs, run_id).info.status == "FINISHED"
    assert run(study_runs, run_id).data.metrics == {"phase2/val_ppl": 33.0, "total_seconds": 4.0}
    assert len(study_runs.client.get_metric_history(run_id, "phase2/val_ppl")) == 1


def test_reopening_a_study_finds_its_parent(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    first.apply(EndStudy(status="FINISHED", figures={}, files=[]))
    again = StudyRuns(store, study, study)
    assert (again.experiment_id, again.parent) == (first.experiment_id, first.parent)
    assert [r.info.status for r in runs(again)] == ["RUNNING"]


def test_reopening_a_trial_finds_its_run(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    run_id = start(first, 0, "abc", "n", PARAMS)
    again = StudyRuns(store, study, study)
    assert start(again, 5, "abc", "n", PARAMS) == run_id
    assert len(runs(again)) == 2
    assert run(again, run_id).data.tags[TRIAL_TAG] == "5"


def test_another_configuration_is_another_run(study_runs: StudyRuns) -> None:
    assert start(study_runs, 0, "abc", "n", {}) != start(study_runs, 1, "abd", "n", {})


def test_the_same_configuration_in_another_study_is_another_run(store: Records, study: str) -> None:
    one, other = StudyRuns(store, study, study), StudyRuns(store, f"{study}-2", "id")
    assert start(one, 0, "abc", "n", {}) != start(other, 0, "abc", "n", {})


def test_other_params_of_a_reopened_run_are_no_error(store: Records, study: str) -> None:
    study_runs = StudyRuns(store, study, study)
    study_runs.apply(StartStudy(params={"command": "x.py --trials 4", "seed": 0}))
    start(study_runs, 0, "abc", "n", PARAMS | {"threads": 1})
    again = StudyRuns(store, study, study)
    again.apply(StartStudy(params={"command": "x.py --trials 9", "seed": 0, "sampler": "gp"}))
    start(again, 0, "abc", "n", PARAMS | {"threads": 2})
    logged = run(again, again.parent).data.params
    assert (logged["command"], logged["seed"], logged["sampler"]) == ("x.py --trials 4", "0", "gp")


def test_a_very_long_param_does_not_stop_a_study(study_runs: StudyRuns) -> None:
    study_runs.apply(StartStudy(params={"fixed_points": "x" * 20_000}))
    assert run(study_runs, study_runs.parent).data.params["fixed_points"].startswith("xxx")


def test_an_interrupted_trial_is_killed_and_finished_when_it_is_run_again(study_runs: StudyRuns) -> None:
    run_id = start(study_runs, 0, "abc", "n", PARAMS)
    study_runs.apply(FailRun("abc", reason="interrupted", status="KILLED"))
    assert run(study_runs, run_id).info.status == "KILLED"
    assert run(study_runs, run_id).data.tags[REASON_TAG] == "interrupted"
    start(study_runs, 1, "abc", "n", PARAMS)
    assert run(study_runs, run_id).info.status == "RUNNING"
    study_runs.apply(FinishRun("abc", figures={"phase2/val_ppl": 33.0}))
    assert run(study_runs, run_id).info.status == "FINISHED"
    assert len(runs(study_runs)) == 2


def test_a_finished_trial_no_longer_says_why_it_was_interrupted(study_runs: StudyRuns) -> None:
    run_id = start(study_runs, 0, "abc", "n", PARAMS)
    study_runs.apply(FailRun("abc", reason="interrupted", status="KILLED"))
    start(study_runs, 1, "abc", "n", PARAMS)
    study_runs.apply(FinishRun("abc", figures={}))
    assert REASON_TAG not in run(study_runs, run_id).data.tags


def test_a_failed_trials_story_lies_under_the_records_folder(store: Records, study: str) -> None:
    study_runs = StudyRuns(store, study, study)
    run_id = start(study_runs, 0, "abc", "n", {})
    study_runs.apply(FailRun("abc", reason="ValueError: no", details="Traceback: the whole story"))
    assert (run(study_runs, run_id).info.status, run(study_runs, run_id).data.tags[REASON_TAG]) == (
        "FAILED",
        "ValueError: no",
    )
    (story,) = (store.artifacts / study).rglob("error.txt")
    assert story.read_text() == "Traceback: the whole story"
    assert run_id in story.parts


def test_a_very_long_reason_does_not_stop_a_study(study_runs: StudyRuns) -> None:
    run_id = start(study_runs, 0, "abc", "n", {})
    study_runs.apply(FailRun("abc", reason="x" * 100_000))
    assert run(study_runs, run_id).data.tags[REASON_TAG].startswith("xxx")


def test_a_studys_end_has_its_figures_and_files(store: Records, study: str, tmp_path: Path) -> None:
    study_runs = StudyRuns(store, study, study)
    (tmp_path / "best.json").write_text("{}")
    files = [str(tmp_path / "best.json")]
    study_runs.apply(EndStudy(status="FINISHED", figures={"phase2/val_ppl": 20.0}, files=files))
    parent = run(study_runs, study_runs.parent)
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"phase2/val_ppl": 20.0})
    assert [p.name for p in (store.artifacts / study).rglob("*.json")] == ["best.json"]


def test_a_studys_end_kills_the_runs_that_never_ended(study_runs: StudyRuns) -> None:
    done, open_run = (start(study_runs, i, str(i), "n", {}) for i in range(2))
    study_runs.apply(FinishRun("0", figures={}))
    study_runs.apply(EndStudy(status="KILLED", figures={}, files=[]))
    assert [run(study_runs, i).info.status for i in (done, open_run, study_runs.parent)] == [
        "FINISHED",
        "KILLED",
        "KILLED",
    ]


def test_a_studys_end_leaves_other_studies_alone(store: Records, study: str) -> None:
    one, other = StudyRuns(store, study, study), StudyRuns(store, f"{study}-2", "id")
    run_id = start(other, 0, "abc", "n", {})
    one.apply(EndStudy(status="FINISHED", figures={}, files=[]))
    assert run(other, run_id).info.status == run(other, other.parent).info.status == "RUNNING"


def test_two_studies_of_one_name_on_one_store_are_two(store: Records, study: str) -> None:
    """Two people's, each with records of their own, on a server that both use."""
    mine, theirs = StudyRuns(store, study, "mine"), StudyRuns(store, study, "theirs")
    runs = [start(study_runs, 0, "abc", "n", {}) for study_runs in (mine, theirs)]
    mine.apply(LogPoints("abc", points=[Point("epoch/val_ppl", 1, 30.0)]))
    mine.apply(FinishRun("abc", figures={"phase2/val_ppl": 30.0}))
    assert [each.ended_hashes()["FINISHED"] for each in (mine, theirs)] == [{"abc"}, set()]
    assert theirs.run_id("abc") == runs[1] != runs[0]
    assert run(theirs, runs[1]).data.metrics == {}
    mine.apply(EndStudy(status="FINISHED", figures={}, files=[]))
    assert [run(mine, i).info.status for i in (mine.parent, theirs.parent, runs[1])] == ["FINISHED", *["RUNNING"] * 2]
    assert StudyRuns(store, study, "theirs").parent == theirs.parent


def test_a_deleted_experiment_is_refused_with_the_command_that_brings_it_back(store: Records, study: str) -> None:
    study_runs = StudyRuns(store, study, study)
    study_runs.client.delete_experiment(study_runs.experiment_id)
    with pytest.raises(ValueError, match=f"experiment '{study}' was deleted: bring it back with `") as refused:
        StudyRuns(store, study, study)
    command = f"{Path(sys.executable).parent}/mlflow".join(str(refused.value).split("`")[1].rsplit("mlflow", 1))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert StudyRuns(store, study, study).parent == study_runs.parent


@pytest.mark.parametrize("known", [True, False])
def test_artifacts_that_cannot_be_written_are_refused_in_a_sentence(store: Records, study: str, known: bool) -> None:
    if known:
        StudyRuns(store, study, study)
    store.artifacts.mkdir(exist_ok=True)
    (store.artifacts / study).write_text("a file")
    said = f"MLflow's artifacts: {store.artifacts / study} is not a folder that can be written to"
    with pytest.raises(ValueError, match=re.escape(said)):
        StudyRuns(store, study, study)


def test_a_store_that_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MLflow's store cannot be used"):
        StudyRuns(Records.at(tmp_path), "s", "id", tracking_uri="nonsense://here")


@pytest.fixture
def elsewhere(store: Records, tmp_path: Path) -> Path:
    """Another database that MLflow has prepared."""
    shutil.copy(store.mlflow_database, tmp_path / "elsewhere.db")
    return tmp_path / "elsewhere.db"


def test_a_tracking_uri_takes_the_runs_instead(elsewhere: Path, tmp_path: Path) -> None:
    records = Records.at(tmp_path / "records")
    study_runs = StudyRuns(records, "away", "id", tracking_uri=f"sqlite:///{elsewhere}")
    start(study_runs, 0, "abc", "n", PARAMS)
    study_runs.apply(FinishRun("abc", figures={"phase2/val_ppl": 1.0}))
    assert MlflowClient(f"sqlite:///{elsewhere}").get_experiment_by_name("away") is not None
    assert not records.mlflow_database.exists()


def test_a_database_elsewhere_litters_no_working_folder(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    records = Records.at(tmp_path / "records")
    study_runs = StudyRuns(records, "away", "id", tracking_uri=f"sqlite:///{elsewhere}")
    start(study_runs, 0, "abc", "n", {})
    study_runs.apply(FailRun("abc", reason="ValueError: no", details="the whole story"))
    assert list((tmp_path / "cwd").iterdir()) == []
    assert [p.name for p in records.artifacts.rglob("error.txt")] == ["error.txt"]


@pytest.mark.slow  # MLflow takes seconds to be imported by each process
def test_four_processes_open_one_fresh_store_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from trainables.records import Records; from trainables.tracking.study_runs import StudyRuns\n"
        "from trainables.tracking.operations import FinishRun, StartRun\n"
        "root, name = Path(sys.argv[1]), sys.argv[2]\n"
        "(root / f'ready-{name}').touch()\n"
        "while len(list(root.glob('ready-*'))) < 4: time.sleep(0.02)\n"
        "study = StudyRuns(Records.at(root / 'records'), name, 'id')\n"
        "study.apply(StartRun('abc', name='n', params={}, tags={}))\n"
        "study.apply(FinishRun('abc', figures={'x': 1.0}))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    names = [f"study{i}" for i in range(4)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    started = [subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE, text=True) for name in names]
    errors = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, errors
    client = MlflowClient(Records.at(tmp_path / "records").tracking_uri)
    found = [client.get_experiment_by_name(name) for name in names]
    assert [len(client.search_runs([e.experiment_id])) for e in found if e] == [2] * 4


def test_a_store_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """A kill in the middle leaves tables without the schema's version, which MLflow can never open again."""
    (tmp_path / ".mlflow.new.db").write_bytes(b"half a database")
    study_runs = StudyRuns(Records.at(tmp_path), "s", "id")
    assert study_runs.parent
    assert not list(tmp_path.glob(".mlflow.new.db*"))


def test_a_deleted_parent_run_is_back_with_its_trials(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    start(first, 0, "abc", "n", {})
    first.client.delete_run(first.parent)
    again = StudyRuns(store, study, study)
    assert (again.parent, again.is_new) == (first.parent, False)
    assert again.mended == "the study's own run in MLflow was deleted: it is back"
    assert [run.info.run_id for run in runs(again) if run.data.tags.get(ROLE_TAG) == "study"] == [first.parent]
    assert StudyRuns(store, study, study).mended == ""


def test_trials_of_a_parent_that_is_gone_for_good_belong_to_the_new_one(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    child = start(first, 0, "abc", "n", {})
    first.client.set_tag(first.parent, ROLE_TAG, "of nobody")  # as if it had been deleted by `mlflow gc`
    again = StudyRuns(store, study, study)
    assert (again.parent != first.parent, again.is_new) == (True, False)
    assert run(again, child).data.tags[PARENT_TAG] == again.parent
    assert again.mended == "the study's own run in MLflow was gone: its trials belong to a new one"


def test_a_renamed_experiment_is_the_studys_still(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    first.client.rename_experiment(first.experiment_id, f"{study} of May")
    again = StudyRuns(store, study, study)
    assert (again.experiment_id, again.parent) == (first.experiment_id, first.parent)
    assert first.client.get_experiment_by_name(study) is None


def test_an_experiment_of_an_earlier_version_is_found_after_a_later_renaming(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    with closing(sqlite3.connect(store.mlflow_database)) as connection, connection:
        connection.execute("DELETE FROM experiment_tags WHERE key = ?", (f"{HOLDS}{study}",))
    StudyRuns(store, study, study)
    first.client.rename_experiment(first.experiment_id, f"{study} of May")
    assert StudyRuns(store, study, study).experiment_id == first.experiment_id


def test_a_deleted_experiment_is_left_alone_by_the_name_that_it_has_now(store: Records, study: str) -> None:
    first = StudyRuns(store, study, study)
    first.client.rename_experiment(first.experiment_id, f"{study} of May")
    first.client.delete_experiment(first.experiment_id)
    with pytest.raises(ValueError, match=re.escape(f"'{study} of May' was deleted: bring it back with")):
        StudyRuns(store, study, study)


def test_files_of_a_moved_study_do_not_go_to_the_old_place_of_a_database_elsewhere(
    elsewhere: Path, tmp_path: Path
) -> None:
    uri, before = f"sqlite:///{elsewhere}", Records.at(tmp_path / "before")
    StudyRuns(before, "away", "0123", tracking_uri=uri)
    StudyRuns(before, "away", "0123", tracking_uri=uri)
    shutil.rmtree(before.root)
    with pytest.raises(ValueError, match=re.escape(f"has the files of study 'away' in {before.artifacts}/, not in")):
        StudyRuns(Records.at(tmp_path / "after"), "away", "0123", tracking_uri=uri)
    assert not before.artifacts.exists()
