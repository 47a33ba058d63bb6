"""MLflow's runs of a study, on a real store."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from trainables.records import Records
from trainables.tracking.places import HOLDS
from trainables.tracking.study_runs import HASH_TAG, PARENT_TAG, REASON_TAG, ROLE_TAG, STUDY_TAG, TRIAL_TAG, Tracker

PARAMS = {"context_dim": 16, "data": "a b.jsonl", "samples": None, "phase1_noise": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """One store for all tests of this file, since making one takes seconds; a space in its path must not matter."""
    records = Records.at(tmp_path_factory.mktemp("mlflow") / "my runs")
    Tracker(records, "first", "id")
    return records


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    """A study of this test's own."""
    return request.node.name.replace("[", "-").rstrip("]")


@pytest.fixture
def tracker(store: Records, study: str) -> Tracker:
    return Tracker(store, study, study)


def runs(tracker: Tracker) -> list[Run]:
    return list(tracker.client.search_runs([tracker.experiment_id]))


def run(tracker: Tracker, run_id: str) -> Run:
    return tracker.client.get_run(run_id)


def test_a_study_is_one_experiment_with_one_parent_run(tracker: Tracker, study: str) -> None:
    (parent,) = runs(tracker)
    assert parent.info.run_id == tracker.parent
    assert tracker.client.get_experiment(tracker.experiment_id).name == study
    assert (parent.info.run_name, parent.data.tags[ROLE_TAG], parent.data.tags[STUDY_TAG]) == (study, "study", study)
    assert parent.info.status == "RUNNING"


def test_a_trial_is_a_child_of_the_parent_with_its_tags(tracker: Tracker, study: str) -> None:
    child = run(tracker, tracker.start_trial(7, "abc123", "C1T1 D16", PARAMS))
    assert child.data.tags[PARENT_TAG] == tracker.parent
    assert (child.info.run_name, child.info.status) == ("C1T1 D16", "RUNNING")
    tags = {STUDY_TAG: study, HASH_TAG: "abc123", TRIAL_TAG: "7"}
    assert {key: child.data.tags[key] for key in tags} == tags


def test_a_trial_has_the_params_of_its_configuration(tracker: Tracker) -> None:
    child = run(tracker, tracker.start_trial(0, "abc", "n", PARAMS))
    assert child.data.params == {key: str(value) for key, value in PARAMS.items()}


def test_more_params_than_one_call_takes_are_all_logged(tracker: Tracker) -> None:
    params = {f"p{i}": i for i in range(250)}
    child = run(tracker, tracker.start_trial(0, "abc", "n", params))
    assert child.data.params == {key: str(value) for key, value in params.items()}


def test_points_of_a_series_are_kept_in_order(tracker: Tracker) -> None:
    run_id = tracker.start_trial(0, "abc", "n", {})
    tracker.log_series(run_id, [("sweep/loss", step, step / 10) for step in range(1, 4)])
    tracker.log_series(run_id, [("sweep/loss", 4, 0.4), ("epoch/val_ppl", 1, 33.0)])
    history = tracker.client.get_metric_history(run_id, "sweep/loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert run(tracker, run_id).data.metrics == {"sweep/loss": 0.4, "epoch/val_ppl": 33.0}


def test_more_points_than_one_call_takes_are_all_logged(tracker: Tracker) -> None:
    run_id = tracker.start_trial(0, "abc", "n", {})
    tracker.log_series(run_id, [("sweep/loss", step, 1.0) for step in range(1_500)])
    assert len(tracker.client.get_metric_history(run_id, "sweep/loss")) == 1_500


def test_a_finished_trial_has_its_figures_once(tracker: Tracker) -> None:
    run_id = tracker.start_trial(0, "abc", "n", {})
    tracker.finish_trial(run_id, {"phase2/val_ppl": 33.0, "total_seconds": 4.0})
    assert run(tracker, run_id).info.status == "FINISHED"
    assert run(tracker, run_id).data.metrics == {"phase2/val_ppl": 33.0, "total_seconds": 4.0}
    assert len(tracker.client.get_metric_history(run_id, "phase2/val_ppl")) == 1


def test_reopening_a_study_finds_its_parent(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    first.end_study("FINISHED", {}, [])
    again = Tracker(store, study, study)
    assert (again.experiment_id, again.parent) == (first.experiment_id, first.parent)
    assert [r.info.status for r in runs(again)] == ["RUNNING"]


def test_reopening_a_trial_finds_its_run(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    run_id = first.start_trial(0, "abc", "n", PARAMS)
    again = Tracker(store, study, study)
    assert again.start_trial(5, "abc", "n", PARAMS) == run_id
    assert len(runs(again)) == 2
    assert run(again, run_id).data.tags[TRIAL_TAG] == "5"


def test_another_configuration_is_another_run(tracker: Tracker) -> None:
    assert tracker.start_trial(0, "abc", "n", {}) != tracker.start_trial(1, "abd", "n", {})


def test_the_same_configuration_in_another_study_is_another_run(store: Records, study: str) -> None:
    one, other = Tracker(store, study, study), Tracker(store, f"{study}-2", "id")
    assert one.start_trial(0, "abc", "n", {}) != other.start_trial(0, "abc", "n", {})


def test_other_params_of_a_reopened_run_are_no_error(store: Records, study: str) -> None:
    tracker = Tracker(store, study, study)
    tracker.start_study({"command": "x.py --trials 4", "seed": 0})
    tracker.start_trial(0, "abc", "n", PARAMS | {"threads": 1})
    again = Tracker(store, study, study)
    again.start_study({"command": "x.py --trials 9", "seed": 0, "sampler": "gp"})
    again.start_trial(0, "abc", "n", PARAMS | {"threads": 2})
    logged = run(again, again.parent).data.params
    assert (logged["command"], logged["seed"], logged["sampler"]) == ("x.py --trials 4", "0", "gp")


def test_a_very_long_param_does_not_stop_a_study(tracker: Tracker) -> None:
    tracker.start_study({"fixed_points": "x" * 20_000})
    assert run(tracker, tracker.parent).data.params["fixed_points"].startswith("xxx")


def test_an_interrupted_trial_is_killed_and_finished_when_it_is_run_again(tracker: Tracker) -> None:
    run_id = tracker.start_trial(0, "abc", "n", PARAMS)
    tracker.fail_trial(run_id, "interrupted", "", status="KILLED")
    assert run(tracker, run_id).info.status == "KILLED"
    assert run(tracker, run_id).data.tags[REASON_TAG] == "interrupted"
    tracker.start_trial(1, "abc", "n", PARAMS)
    assert run(tracker, run_id).info.status == "RUNNING"
    tracker.finish_trial(run_id, {"phase2/val_ppl": 33.0})
    assert run(tracker, run_id).info.status == "FINISHED"
    assert len(runs(tracker)) == 2


def test_a_finished_trial_no_longer_says_why_it_was_interrupted(tracker: Tracker) -> None:
    run_id = tracker.start_trial(0, "abc", "n", PARAMS)
    tracker.fail_trial(run_id, "interrupted", "", status="KILLED")
    tracker.finish_trial(tracker.start_trial(1, "abc", "n", PARAMS), {})
    assert REASON_TAG not in run(tracker, run_id).data.tags


def test_a_failed_trials_story_lies_under_the_records_folder(store: Records, study: str) -> None:
    tracker = Tracker(store, study, study)
    run_id = tracker.start_trial(0, "abc", "n", {})
    tracker.fail_trial(run_id, "ValueError: no", "Traceback: the whole story")
    assert (run(tracker, run_id).info.status, run(tracker, run_id).data.tags[REASON_TAG]) == (
        "FAILED",
        "ValueError: no",
    )
    (story,) = (store.artifacts / study).rglob("error.txt")
    assert story.read_text() == "Traceback: the whole story"
    assert run_id in story.parts


def test_a_very_long_reason_does_not_stop_a_study(tracker: Tracker) -> None:
    run_id = tracker.start_trial(0, "abc", "n", {})
    tracker.fail_trial(run_id, "x" * 100_000, "")
    assert run(tracker, run_id).data.tags[REASON_TAG].startswith("xxx")


def test_a_studys_end_has_its_figures_and_files(store: Records, study: str, tmp_path: Path) -> None:
    tracker = Tracker(store, study, study)
    (tmp_path / "best.json").write_text("{}")
    tracker.end_study("FINISHED", {"phase2/val_ppl": 20.0}, [tmp_path / "best.json"])
    parent = run(tracker, tracker.parent)
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"phase2/val_ppl": 20.0})
    assert [p.name for p in (store.artifacts / study).rglob("*.json")] == ["best.json"]


def test_a_studys_end_kills_the_runs_that_never_ended(tracker: Tracker) -> None:
    done, open_run = (tracker.start_trial(i, str(i), "n", {}) for i in range(2))
    tracker.finish_trial(done, {})
    tracker.end_study("KILLED", {}, [])
    assert [run(tracker, i).info.status for i in (done, open_run, tracker.parent)] == ["FINISHED", "KILLED", "KILLED"]


def test_a_studys_end_leaves_other_studies_alone(store: Records, study: str) -> None:
    one, other = Tracker(store, study, study), Tracker(store, f"{study}-2", "id")
    run_id = other.start_trial(0, "abc", "n", {})
    one.end_study("FINISHED", {}, [])
    assert run(other, run_id).info.status == run(other, other.parent).info.status == "RUNNING"


def test_two_studies_of_one_name_on_one_store_are_two(store: Records, study: str) -> None:
    """Two people's, each with records of their own, on a server that both use."""
    mine, theirs = Tracker(store, study, "mine"), Tracker(store, study, "theirs")
    runs = [tracker.start_trial(0, "abc", "n", {}) for tracker in (mine, theirs)]
    mine.log_series(runs[0], [("epoch/val_ppl", 1, 30.0)])
    mine.finish_trial(runs[0], {"phase2/val_ppl": 30.0})
    assert (mine.ended_hashes("FINISHED"), theirs.ended_hashes("FINISHED")) == ({"abc"}, set())
    assert theirs.find_trial("abc") == runs[1] != runs[0]
    assert run(theirs, runs[1]).data.metrics == {}
    mine.end_study("FINISHED", {}, [])
    assert [run(mine, i).info.status for i in (mine.parent, theirs.parent, runs[1])] == ["FINISHED", *["RUNNING"] * 2]
    assert Tracker(store, study, "theirs").parent == theirs.parent


def test_a_deleted_experiment_is_refused_with_the_command_that_brings_it_back(store: Records, study: str) -> None:
    tracker = Tracker(store, study, study)
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match=f"experiment '{study}' was deleted: bring it back with `") as refused:
        Tracker(store, study, study)
    command = f"{Path(sys.executable).parent}/mlflow".join(str(refused.value).split("`")[1].rsplit("mlflow", 1))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert Tracker(store, study, study).parent == tracker.parent


@pytest.mark.parametrize("known", [True, False])
def test_artifacts_that_cannot_be_written_are_refused_in_a_sentence(store: Records, study: str, known: bool) -> None:
    if known:
        Tracker(store, study, study)
    store.artifacts.mkdir(exist_ok=True)
    (store.artifacts / study).write_text("a file")
    said = f"MLflow's artifacts: {store.artifacts / study} is not a folder that can be written to"
    with pytest.raises(ValueError, match=re.escape(said)):
        Tracker(store, study, study)


def test_a_store_that_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MLflow's store cannot be used"):
        Tracker(Records.at(tmp_path), "s", "id", tracking_uri="nonsense://here")


@pytest.fixture
def elsewhere(store: Records, tmp_path: Path) -> Path:
    """Another database that MLflow has prepared."""
    shutil.copy(store.mlflow_database, tmp_path / "elsewhere.db")
    return tmp_path / "elsewhere.db"


def test_a_tracking_uri_takes_the_runs_instead(elsewhere: Path, tmp_path: Path) -> None:
    records = Records.at(tmp_path / "records")
    tracker = Tracker(records, "away", "id", tracking_uri=f"sqlite:///{elsewhere}")
    tracker.finish_trial(tracker.start_trial(0, "abc", "n", PARAMS), {"phase2/val_ppl": 1.0})
    assert MlflowClient(f"sqlite:///{elsewhere}").get_experiment_by_name("away") is not None
    assert not records.mlflow_database.exists()


def test_a_database_elsewhere_litters_no_working_folder(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    records = Records.at(tmp_path / "records")
    tracker = Tracker(records, "away", "id", tracking_uri=f"sqlite:///{elsewhere}")
    tracker.fail_trial(tracker.start_trial(0, "abc", "n", {}), "ValueError: no", "the whole story")
    assert list((tmp_path / "cwd").iterdir()) == []
    assert [p.name for p in records.artifacts.rglob("error.txt")] == ["error.txt"]


@pytest.mark.slow  # MLflow takes seconds to be imported by each process
def test_four_processes_open_one_fresh_store_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from trainables.records import Records; from trainables.tracking.study_runs import Tracker\n"
        "root, name = Path(sys.argv[1]), sys.argv[2]\n"
        "(root / f'ready-{name}').touch()\n"
        "while len(list(root.glob('ready-*'))) < 4: time.sleep(0.02)\n"
        "tracker = Tracker(Records.at(root / 'records'), name, 'id')\n"
        "tracker.finish_trial(tracker.start_trial(0, 'abc', 'n', {}), {'x': 1.0})\n"
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
    tracker = Tracker(Records.at(tmp_path), "s", "id")
    assert tracker.parent
    assert not list(tmp_path.glob(".mlflow.new.db*"))


def test_a_deleted_parent_run_is_back_with_its_trials(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    first.start_trial(0, "abc", "n", {})
    first.client.delete_run(first.parent)
    again = Tracker(store, study, study)
    assert (again.parent, again.began) == (first.parent, False)
    assert again.mended == "the study's own run in MLflow was deleted: it is back"
    assert [run.info.run_id for run in runs(again) if run.data.tags.get(ROLE_TAG) == "study"] == [first.parent]
    assert Tracker(store, study, study).mended == ""


def test_trials_of_a_parent_that_is_gone_for_good_belong_to_the_new_one(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    child = first.start_trial(0, "abc", "n", {})
    first.client.set_tag(first.parent, ROLE_TAG, "of nobody")  # as if it had been deleted by `mlflow gc`
    again = Tracker(store, study, study)
    assert (again.parent != first.parent, again.began) == (True, False)
    assert run(again, child).data.tags[PARENT_TAG] == again.parent
    assert again.mended == "the study's own run in MLflow was gone: its trials belong to a new one"


def test_a_renamed_experiment_is_the_studys_still(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    first.client.rename_experiment(first.experiment_id, f"{study} of May")
    again = Tracker(store, study, study)
    assert (again.experiment_id, again.parent) == (first.experiment_id, first.parent)
    assert first.client.get_experiment_by_name(study) is None


def test_an_experiment_of_an_earlier_version_is_found_after_a_later_renaming(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    with closing(sqlite3.connect(store.mlflow_database)) as connection, connection:
        connection.execute("DELETE FROM experiment_tags WHERE key = ?", (f"{HOLDS}{study}",))
    Tracker(store, study, study)
    first.client.rename_experiment(first.experiment_id, f"{study} of May")
    assert Tracker(store, study, study).experiment_id == first.experiment_id


def test_a_deleted_experiment_is_left_alone_by_the_name_that_it_has_now(store: Records, study: str) -> None:
    first = Tracker(store, study, study)
    first.client.rename_experiment(first.experiment_id, f"{study} of May")
    first.client.delete_experiment(first.experiment_id)
    with pytest.raises(ValueError, match=re.escape(f"'{study} of May' was deleted: bring it back with")):
        Tracker(store, study, study)


def test_files_of_a_moved_study_do_not_go_to_the_old_place_of_a_database_elsewhere(
    elsewhere: Path, tmp_path: Path
) -> None:
    uri, before = f"sqlite:///{elsewhere}", Records.at(tmp_path / "before")
    Tracker(before, "away", "0123", tracking_uri=uri)
    Tracker(before, "away", "0123", tracking_uri=uri)
    shutil.rmtree(before.root)
    with pytest.raises(ValueError, match=re.escape(f"has the files of study 'away' in {before.artifacts}/, not in")):
        Tracker(Records.at(tmp_path / "after"), "away", "0123", tracking_uri=uri)
    assert not before.artifacts.exists()
