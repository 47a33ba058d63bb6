import gzip
import json
from pathlib import Path

import pytest
import torch
from small import run_config

from trainables.cache import ArtifactStore
from trainables.errors import DivergedError
from trainables.phases.traces import Profiler
from trainables.pipeline import Inputs, run
from trainables.progress import Progress


def events(file: Path) -> set[str]:
    with gzip.open(file) as content:
        return {event.get("name", "") for event in json.load(content)["traceEvents"]}


def test_each_part_of_a_run_has_its_trace_and_the_listener_hears_everything(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path
) -> None:
    alone: list[Progress] = []
    beside: list[Progress] = []
    config = run_config(chat_file)
    expected = run(config, chat_inputs, ArtifactStore(tmp_path / "a"), "cpu", alone.append)
    profiler = Profiler(tmp_path / "traces", beside.append)
    found = run(config, chat_inputs, ArtifactStore(tmp_path / "b"), "cpu", profiler)
    assert beside == alone
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True))
    assert {file.name for file in (tmp_path / "traces").iterdir()} == {
        "phase_1.json.gz",
        "contexts.json.gz",
        "phase_2.json.gz",
    }
    scoring = "aten::logsumexp"  # in torch's own operators everywhere
    assert "aten::normal_" in events(tmp_path / "traces/phase_1.json.gz")
    assert scoring not in events(tmp_path / "traces/contexts.json.gz")
    assert scoring in events(tmp_path / "traces/phase_2.json.gz")


def test_a_run_that_ends_early_leaves_nothing_recording(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    profiler = Profiler(tmp_path / "traces", lambda progress: None)
    config = run_config(chat_file, phase1_learning_rate=1e30)
    with pytest.raises(DivergedError):
        run(config, chat_inputs, ArtifactStore(tmp_path / "a"), "cpu", profiler)
    profiler.stop()
    profiler.stop()  # again is no error
    assert (tmp_path / "traces/phase_1.json.gz").exists()
    with torch.profiler.profile() as another:  # refused while one is running
        torch.zeros(1)
    assert another.key_averages()
