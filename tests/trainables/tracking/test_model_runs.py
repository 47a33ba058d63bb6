"""Trainings' runs in MLflow, written in the background."""

from pathlib import Path
from typing import Any

import pytest

from trainables.records import Records
from trainables.reports import Point
from trainables.tracking.model_runs import ModelRuns
from trainables.tracking.operations import FailRun, FinishRun, LogPoints, StartRun, encode
from trainables.tracking.tags import REASON_TAG
from trainables.tracking.writer import BackgroundWriter


def start(token: str, **params: int) -> StartRun:
    return StartRun(token, name=token, params=params, tags={})


def test_a_run_gets_nothing_of_another_that_mlflow_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first, journal = ModelRuns(Records.at(tmp_path), None), tmp_path / "first"
    writer = BackgroundWriter(first, journal, said.append, "training")
    first.apply(start("a"))

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(first.client, "log_batch", away)
    writer.put(LogPoints("a", points=[Point("epoch/val_ppl", 1, 9.0)]))
    writer.put(FinishRun("a", figures={"test/ppl": 111.0}, place={"own": "a"}))
    assert writer.close(0.1) == 1
    assert said == ["MLflow is away: the training goes on, its records are kept and handed over later (away)"]
    other = ModelRuns(Records.at(tmp_path), None)
    writer = BackgroundWriter(other, tmp_path / "other", pytest.fail, "training")
    other.apply(start("b"))
    writer.put(FinishRun("b", figures={"test/ppl": 222.0}))
    assert writer.close() == 0
    BackgroundWriter(other, journal, pytest.fail, "training")  # the same command, later
    assert journal.read_bytes() == b""
    found = {run.info.run_name: run for run in other.client.search_runs([other.experiment_id])}
    assert {name: run.data.metrics for name, run in found.items()} == {
        "a": {"epoch/val_ppl": 9.0, "test/ppl": 111.0}, "b": {"test/ppl": 222.0}
    }  # fmt: skip
    assert [len(other.client.get_metric_history(other.run_id(name), "test/ppl")) for name in "ab"] == [1, 1]
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_what_mlflow_refuses_does_not_keep_a_run_open(tmp_path: Path) -> None:
    said: list[str] = []
    runs = ModelRuns(Records.at(tmp_path), None)
    writer = BackgroundWriter(runs, tmp_path / "journal", said.append, "training")
    runs.apply(start("a"))
    writer.put(FinishRun("a", figures={"no:good\n?": 1.0}))
    assert writer.close() == 0
    assert writer.refused
    assert "refused" in said[0]
    assert runs.client.get_run(runs.run_id("a")).info.status == "FINISHED"


def test_a_training_that_was_ended_while_its_run_was_made_has_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ModelRuns(Records.at(tmp_path), None)

    def ended(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.client, "log_batch", ended)
        with pytest.raises(KeyboardInterrupt):
            runs.apply(start("a", size=3))
    again = ModelRuns(Records.at(tmp_path), None)
    again.apply(start("a", size=3))
    again.apply(LogPoints("a", points=[Point("epoch/val_ppl", 1, 9.0)]))
    third = ModelRuns(Records.at(tmp_path), None)
    third.apply(start("a", size=3))
    third.apply(LogPoints("a", points=[Point("epoch/val_ppl", 1, 9.0), Point("epoch/val_ppl", 2, 8.0)]))
    (found,) = runs.client.search_runs([runs.experiment_id])
    assert found.data.params == {"size": "3"}
    assert [m.step for m in runs.client.get_metric_history(found.info.run_id, "epoch/val_ppl")] == [1, 2]
    third.apply(start("b"))
    assert len(runs.client.search_runs([runs.experiment_id])) == 2


def test_points_that_a_killed_training_left_are_not_doubled_when_it_goes_on(tmp_path: Path) -> None:
    journal, points = tmp_path / "journal", [Point("epoch/val_ppl", step, 9.0 - step) for step in (1, 2, 3)]
    ModelRuns(Records.at(tmp_path), None).apply(start("a"))
    left = [LogPoints("a", points=points[:2]), FailRun("a", reason="interrupted", status="KILLED")]
    journal.write_text("".join(map(encode, left)))
    runs = ModelRuns(Records.at(tmp_path), None)
    writer = BackgroundWriter(runs, journal, pytest.fail, "training")
    assert runs.find("a").info.status == "KILLED"
    runs.apply(start("a"))
    writer.put(LogPoints("a", points=points[1:]))
    assert writer.close() == 0
    found = runs.find("a")
    assert (found.info.status, REASON_TAG in found.data.tags) == ("RUNNING", False)
    assert [m.step for m in runs.client.get_metric_history(found.info.run_id, "epoch/val_ppl")] == [1, 2, 3]
