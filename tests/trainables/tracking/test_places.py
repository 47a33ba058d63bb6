"""A records folder that is moved, copied or seen by another path, with a study and a registered model in it."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from permissions import everything

from trainables.records import Records, sqlite_path
from trainables.tracking.destination import as_tracking_uri
from trainables.tracking.operations import FailRun, StartRun
from trainables.tracking.places import FOLDER_TAG, LOCK, InUseElsewhereError, in_use, rewrite
from trainables.tracking.store import KIND, artifact_uri
from trainables.tracking.study_runs import StudyRuns

STRANGE = "a%20b?c#d::[e]{f} g'h\"i ü日本" + "x" * 150  # bytes: 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with one file of a study, an experiment that was made in MLflow's UI, and a registered version."""
    records = Records.at(tmp_path_factory.mktemp("made") / "mlruns")
    with in_use(records):
        runs = StudyRuns(records, "s", "0123")
        runs.apply(StartRun("abc", name="n", params={}, tags={}))
        runs.apply(FailRun("abc", reason="no", details="the whole story"))
    client = runs.client
    of_the_ui = client.create_experiment("ui", artifact_location=(records.artifacts / "7").as_uri())
    client.log_text(client.create_run(of_the_ui).info.run_id, "by hand", "note.txt")
    elsewhere = client.create_experiment("elsewhere", artifact_location=of_others(records.root), tags=KIND)
    client.create_run(elsewhere)
    client.set_tag(runs.parent, FOLDER_TAG, str(records.root / "models" / "m"))
    client.create_registered_model("bob")
    client.create_logged_model(runs.experiment_id)
    client.create_model_version("bob", (records.artifacts / "0123" / "models").as_uri(), runs.parent)
    return records.root


def places(records: Records) -> set[str]:
    """All that MLflow's database has of `artifacts` folders; the Default experiment's lies in the cwd of its making."""
    return {value for value in values(records) if "/artifacts/" in value}


def values(records: Records) -> set[str]:
    """Each text in MLflow's database, whatever its table and column."""
    with closing(sqlite3.connect(records.mlflow_database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = [row for table in tables for row in connection.execute(f'SELECT * FROM "{table}"')]
    return {value for row in rows for value in row if isinstance(value, str)}


def of_others(made: Path) -> str:
    """Where files lie that are in no records folder."""
    return f"file://{made.parent}/artifacts/8"


def stories(records: Records) -> list[Path]:
    return sorted(records.artifacts.rglob("error.txt"))


@pytest.mark.parametrize("name", ["copy", STRANGE, "mlruns/inside", "mlruns/artifacts/deeper"])
def test_a_copy_is_a_records_folder_of_its_own(made: Path, tmp_path: Path, name: str) -> None:
    original = Path(shutil.copytree(made, tmp_path / "mlruns"))
    with in_use(Records.at(original)):
        pass
    scratch = shutil.copytree(original, tmp_path / "scratch")
    copy = Records.at(tmp_path / name)
    copy.root.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(scratch, copy.root)
    before = apart(original, copy.root)
    with in_use(copy):
        runs = StudyRuns(copy, "s", "0123")
        runs.apply(StartRun("def", name="n", params={}, tags={}))
        runs.apply(FailRun("def", reason="no", details="another story"))
    client = MlflowClient(copy.tracking_uri)
    (seen,) = (run for run in client.search_runs([runs.experiment_id]) if run.data.tags.get("config_hash") == "abc")
    assert [file.path for file in client.list_artifacts(seen.info.run_id)] == ["error.txt"]
    assert client.get_run(runs.parent).data.tags[FOLDER_TAG] == str(copy.root / "models" / "m")
    assert len(stories(copy)) == 2
    theirs = tuple(f"{root}/" for root in (original, original.as_uri(), made, made.as_uri()))
    ours = (f"{copy.root}/", f"{copy.root.as_uri()}/")
    assert all(place.startswith((*ours, of_others(made))) for place in places(copy))
    assert of_others(made) in places(copy)
    assert [value for value in values(copy) if value.startswith(theirs) and not value.startswith(ours)] == []
    assert apart(original, copy.root) == before


def apart(folder: Path, inside: Path) -> dict[str, tuple[int, int]]:
    """`everything` in `folder` but what lies in `inside`, and the folders that it lies in."""
    found = everything(folder).items()
    return {
        path: stamp
        for path, stamp in found
        if not (folder / path).is_relative_to(inside) and not inside.is_relative_to(folder / path)
    }


def test_a_folder_that_is_moved_and_moved_back_is_as_it_was(made: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(made, tmp_path / "a")))
    with in_use(records):
        first = places(records)
    moved = Records.at(Path(shutil.move(records.root, tmp_path / "b")))
    with in_use(moved):
        assert {place for place in places(moved) if place in first} == {
            p for p in first if p.startswith(of_others(made))
        }
    shutil.move(moved.root, records.root)
    with in_use(records):
        assert places(records) == first
    assert not moved.root.exists()


def test_places_stay_while_another_process_uses_them(made: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(made, tmp_path / "a")))
    with in_use(records):
        seen_from = tmp_path / "b"
        shutil.move(records.root, seen_from)  # as if it were mounted there as well
        before = places(Records.at(seen_from))
        with (
            pytest.raises(InUseElsewhereError, match=f"by another path \\({records.root}\\)"),
            in_use(Records.at(seen_from)),
        ):
            pass
        assert places(Records.at(seen_from)) == before
    with in_use(Records.at(seen_from)):
        assert places(Records.at(seen_from)) != before


def test_two_that_open_a_moved_folder_together_both_may(made: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(made, tmp_path / "a")))
    with in_use(records), in_use(records):
        assert (records.root / LOCK).exists()


def test_a_folder_of_an_earlier_version_is_known_by_its_experiments_name(made: Path, tmp_path: Path) -> None:
    records = Records.at(Path(shutil.copytree(made, tmp_path / "a")))
    with closing(sqlite3.connect(records.mlflow_database)) as connection, connection:
        connection.execute("DELETE FROM experiment_tags WHERE key LIKE 'holds.%'")
        connection.execute("UPDATE experiments SET artifact_location = replace(artifact_location, '/0123', '/s')")
    rewrite(records.mlflow_database, records.root)
    assert (records.artifacts / "s").as_uri() in places(records)


def test_what_is_here_already_stays_where_one_experiment_points_to_a_folder_around_it(
    made: Path, tmp_path: Path
) -> None:
    around, records = tmp_path / "a", Records.at(Path(shutil.copytree(made, tmp_path / "a" / "inside")))
    rewrite(records.mlflow_database, records.root)
    before = places(records)
    with closing(sqlite3.connect(records.mlflow_database)) as connection, connection:
        there = f"{around.as_uri()}/artifacts/0123"
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = 's'", (there,))
    assert places(records) != before
    rewrite(records.mlflow_database, records.root)
    assert places(records) == before


def test_names_of_files_fit_into_other_databases(tmp_path: Path) -> None:
    key, root = "0" * 32, tmp_path / ("r" * (106 - len(str(tmp_path))))
    fits = artifact_uri(Records(root), key, "postgresql://u@h/d")
    assert fits is not None
    assert len(f"{fits}/{key}/artifacts") == 200
    with pytest.raises(ValueError, match="too long a path for MLflow's database"):
        artifact_uri(Records(Path(f"{root}r")), key, "postgresql://u@h/d")
    assert artifact_uri(Records(Path(f"{root}r")), key, "sqlite:////x.db") is not None


@pytest.mark.parametrize("name", ["Jürgen", "a b'c[d]#e{f}", "50%", "a%20b", "what?", "a::b@c"])
def test_an_address_names_its_database_and_makes_no_other_folder(tmp_path: Path, name: str) -> None:
    records = Records.at(tmp_path / name)
    assert sqlite_path(records.tracking_uri) == records.mlflow_database
    assert sqlite_path(as_tracking_uri(records.tracking_uri)) == records.mlflow_database
    StudyRuns(records, "s", "0123")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_address_is_written_as_users_write_it(tmp_path: Path) -> None:
    assert Records.at(tmp_path / "Jürgen's").tracking_uri == f"sqlite:///{tmp_path}/Jürgen's/mlflow.db"
