"""A training's run in MLflow."""

from pathlib import Path
from typing import Any

import pytest

from trainables.records import Records
from trainables.tracking.model_runs import ModelRun


def test_a_run_holds_nothing_of_an_earlier_one_that_mlflow_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run = ModelRun(Records.at(tmp_path), None, said.append)

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("away")

    run.start("a", {}, {})
    first = run.run_id
    with monkeypatch.context() as patch:
        patch.setattr(run.client, "log_batch", away)
        run.log([("epoch/val_ppl", 1, 9.0)])
        assert not run.finish({"test/ppl": 111.0}, {"own": "a"}, tmp_path / "left.json")
    assert len(said) == 1
    run.start("b", {}, {})
    assert run.finish({"test/ppl": 222.0}, {}, tmp_path / "nothing.json")
    assert run.finish_later(tmp_path / "left.json")
    assert not list(tmp_path.glob("*.json"))
    values = {name: [m.value for m in run.client.get_metric_history(name, "test/ppl")] for name in (first, run.run_id)}
    assert first == run.run_id  # `finish_later` goes back to the run that it completes
    assert values == {first: [111.0]}
    other = run.client.search_runs([run.experiment_id], filter_string="attributes.run_name = 'b'")[0]
    assert other.data.metrics == {"test/ppl": 222.0}
    assert {run.client.get_run(first).info.status, other.info.status} == {"FINISHED"}


def test_what_mlflow_refuses_does_not_keep_a_run_open(tmp_path: Path) -> None:
    said: list[str] = []
    run = ModelRun(Records.at(tmp_path), None, said.append)
    run.start("a", {}, {})
    assert run.finish({"no:good\n?": 1.0}, {}, tmp_path / "left.json")
    assert "refused" in said[0]
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_training_that_was_ended_while_its_run_was_made_has_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ModelRun(Records.at(tmp_path), None, print)

    def ended(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.client, "log_batch", ended)
        with pytest.raises(KeyboardInterrupt):
            run.take_up("token", "a", {"size": 3}, {})
    again = ModelRun(Records.at(tmp_path), None, print)
    again.take_up("token", "a", {"size": 3}, {})
    again.log([("epoch/val_ppl", 1, 9.0)])
    third = ModelRun(Records.at(tmp_path), None, print)
    third.take_up("token", "a", {"size": 3}, {})
    third.log([("epoch/val_ppl", 1, 9.0), ("epoch/val_ppl", 2, 8.0)])
    (found,) = run.client.search_runs([run.experiment_id])
    assert found.data.params == {"size": "3"}
    assert [m.step for m in run.client.get_metric_history(found.info.run_id, "epoch/val_ppl")] == [1, 2]
    third.take_up("another", "b", {}, {})
    assert len(run.client.search_runs([run.experiment_id])) == 2
