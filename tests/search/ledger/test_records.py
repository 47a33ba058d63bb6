"""What a trial leaves behind, and what is made of a file that is damaged."""

import json
import math
from pathlib import Path

import pytest

from search.ledger.records import TrialRecord, read_trial_record, write_trial_record

PPL = math.exp(6.0 / 4)
DOCUMENTS = {"nats": [1.0, 5.0], "targets": [1, 3]}


@pytest.fixture
def record() -> TrialRecord:
    running = TrialRecord("h", 3, 0)
    running.add([("epoch/val_ppl", 1, 9.0), ("epoch/val_acc", 1, 0.2)])
    running.add([("epoch/val_ppl", 2, 8.0)])
    return running.ended("finished", result=DOCUMENTS)


def test_a_record_comes_back_as_it_was_written(record: TrialRecord, tmp_path: Path) -> None:
    path = tmp_path / "new" / "h.json"
    digest = write_trial_record(path, record)
    assert read_trial_record(path) == (record, digest)
    assert record.series["epoch/val_ppl"] == [(1, 9.0), (2, 8.0)]
    assert [p.name for p in path.parent.iterdir()] == ["h.json"]


def test_losses_by_document_add_up_to_the_perplexity(record: TrialRecord) -> None:
    losses = record.unit_losses(PPL)
    assert losses is not None
    assert losses[0].sum() / losses[1].sum() == pytest.approx(math.log(PPL), abs=1e-12)
    assert record.unit_losses(PPL * 1.001) is None


def test_equal_documents_are_one_unit_and_an_old_record_has_one_for_each(record: TrialRecord) -> None:
    ended = record.ended(
        "finished", result={"nats": [0.0, 1.0, 2.0, 3.0], "targets": [0, 1, 1, 2], "units": [0, 1, 2, 1]}
    )
    losses = ended.unit_losses(math.exp(1.5))
    assert losses is not None
    assert [each.tolist() for each in losses] == [[4.0, 2.0], [3.0, 1.0]]
    old = record.unit_losses(PPL)
    assert old is not None
    assert old[1].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\x00" * len(text),
        lambda text: text.replace('"series"', '"other"'),
        lambda text: text.replace("9.0", '"x"'),
    ],
)
def test_a_damaged_record_is_none(record: TrialRecord, tmp_path: Path, damage: object) -> None:
    path = tmp_path / "h.json"
    write_trial_record(path, record)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    assert read_trial_record(path) is None


def test_no_record_is_none(tmp_path: Path) -> None:
    assert read_trial_record(tmp_path / "h.json") is None


@pytest.mark.parametrize(
    "documents", [{"nats": [1.0], "targets": [1, 3]}, {"nats": [], "targets": []}, {"nats": [[6.0]], "targets": [[4]]}]
)
def test_losses_that_fit_nothing_are_none(record: TrialRecord, tmp_path: Path, documents: dict[str, object]) -> None:
    path = tmp_path / "h.json"
    write_trial_record(path, record)
    path.write_text(json.dumps(json.loads(path.read_text()) | documents))
    read = read_trial_record(path)
    assert read is not None
    assert read[0].unit_losses(PPL) is None


def test_a_failed_trial_keeps_its_curves_and_its_reason() -> None:
    running = TrialRecord("h", 3, 0)
    running.add([("sweep/loss", 2, -1.0)])
    ended = running.ended("failed", "diverged")
    assert (ended.status, ended.reason, ended.series) == ("failed", "diverged", {"sweep/loss": [(2, -1.0)]})
    assert ended.unit_losses(5.0) is None
