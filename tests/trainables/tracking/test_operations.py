"""What MLflow is to be told, to a line of the journal and back."""

from pathlib import Path

import pytest

from trainables.reports import Point
from trainables.tracking.operations import (
    KINDS,
    EndStudy,
    FailRun,
    FinishRun,
    LogFile,
    LogPoints,
    Operation,
    PruneRun,
    StartRun,
    StartStudy,
    encode,
    read_journal,
)

EACH: list[Operation] = [
    StartStudy(params={"command": "x.py", "seed": 0}),
    StartRun("abc", name="n", params={"a": 1, "data": None}, tags={"role": "compared: gru"}),
    LogPoints("abc", points=[Point("epoch/val_ppl", 1, 9.5)]),
    LogFile("abc", file="studies/s/trials/abc.json"),
    FinishRun("abc", figures={"phase2/val_ppl": 8.0}, place={"compute": "fp32"}, phase1_by="abd", traces="profile"),
    PruneRun("abd", reason="poor", figures={}, place={"compute": "fp32"}),
    FailRun("abe", reason="why", details="the\nstory", status="KILLED"),
    EndStudy(status="FINISHED", figures={"phase2/val_ppl": 8.0}, files=["studies/s/best.json"]),
]
# of a study, as they were written when the verbs were names of methods
EARLIER = """\
["start_study", "", {"params": {"command": "x.py"}}]
["start_trial", "abc", {"number": 0, "name": "n", "params": {"a": 1}, "replicate_of": null}]
["log_series", "abc", {"points": [["epoch/val_ppl", 1, 9.0]]}]
["log_file", "abc", {"file": "studies/s/trials/abc.json"}]
["finish_trial", "abc", {"figures": {"phase2/val_ppl": 8.0}, "place": {}, "phase1_by": "abc", "traces": null}]
["prune_trial", "abd", {"reason": "poor", "figures": {}, "place": {"compute": "fp32"}}]
["fail_trial", "abe", {"reason": "interrupted", "details": "", "status": "KILLED"}]
["end_study", "", {"status": "FINISHED", "figures": {}, "files": ["studies/s/best.json"]}]
"""


def test_every_kind_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text("".join(map(encode, EACH)))
    read = read_journal(journal)
    assert read == EACH
    assert {type(operation) for operation in read} == set(KINDS.values())
    assert isinstance(read[2], LogPoints)
    assert read[2].points[0].name == "epoch/val_ppl"


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(EARLIER)
    assert read_journal(tmp_path / "journal") == [
        StartStudy(params={"command": "x.py"}),
        StartRun("abc", name="n", params={"a": 1}, tags={"optuna_trial": "0"}),
        LogPoints("abc", points=[Point("epoch/val_ppl", 1, 9.0)]),
        LogFile("abc", file="studies/s/trials/abc.json"),
        FinishRun("abc", figures={"phase2/val_ppl": 8.0}, phase1_by="abc"),
        PruneRun("abd", reason="poor", figures={}, place={"compute": "fp32"}),
        FailRun("abe", reason="interrupted", status="KILLED"),
        EndStudy(status="FINISHED", figures={}, files=["studies/s/best.json"]),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'["no_such_verb", "abc", {}]',
        b'["log_file", "abc", {"path": "a"}]',
        b'["log_file", "", {"file": "a"}]',
        b'["start_study", "abc", {"params": {}}]',
        b'["log_series", "abc", {"points": [["epoch/val_ppl", 1]]}]',
    ],
)
def test_a_damaged_journal_is_told_in_a_sentence(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="journal is damaged: delete it"):
        read_journal(tmp_path / "journal")


def test_half_a_line_that_a_kill_left_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(EARLIER.splitlines()[0] + '\n["log_file", "abc", {"fi')
    assert read_journal(tmp_path / "journal") == [StartStudy(params={"command": "x.py"})]
    assert read_journal(tmp_path / "none") == []
