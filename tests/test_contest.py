"""A two-phase model beside its yardsticks."""

from pathlib import Path

import pytest
import torch
from conftest import run_config

from trainables.artifacts import ArtifactStore
from trainables.bootstrap import Interval
from trainables.contest import LENGTHS, TWO_PHASE, NoResultError, against, contend, contest
from trainables.phase2 import Stream, evaluate
from trainables.pipeline import Inputs, run

KINDS = [TWO_PHASE, "gru", "transformer"]


def test_all_are_judged_on_the_same_targets_and_none_is_smaller(chat_file: Path, chat_inputs: Inputs) -> None:
    config = run_config(chat_file)
    found = [contend(kind, config, chat_inputs, gpus=0, threads=1) for kind in KINDS]
    two_phase, gru, transformer = found
    assert [contender.kind for contender in found] == KINDS
    for contender in found:
        assert contender.test.targets.sum() == len(chat_inputs.corpus.test.tokens) - 1
        assert 1 < contender.test.ppl.value < 280
        assert contender.test.accuracy.value <= contender.test.top5.value <= 1
        assert contender.trained >= two_phase.trained
        assert contender.points
        assert contender.peak_bytes is None or contender.peak_bytes >= 0
        assert contender.epochs == 2
    difference = against(two_phase.test, gru.test)
    assert difference.value == pytest.approx(gru.test.ppl.value / two_phase.test.ppl.value - 1)
    assert difference.low < difference.value < difference.high
    assert against(gru.test, gru.test) == Interval(0.0, 0.0, 0.0)
    assert two_phase.state_bytes == [4 * config.context_dim] * len(LENGTHS)
    assert gru.state_bytes[0] == gru.state_bytes[-1]
    assert transformer.state_bytes[0] == transformer.state_bytes[-1] > gru.state_bytes[0]  # a window of 8


def test_the_two_phase_model_is_judged_as_ever(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    config = run_config(chat_file)
    found = contend(TWO_PHASE, config, chat_inputs, gpus=0, threads=1)
    result = run(config, chat_inputs, ArtifactStore(tmp_path))
    assert found.val_ppl == result.metrics["phase2/val_ppl"]
    tokens = torch.tensor(chat_inputs.corpus.test.tokens, dtype=torch.int64)
    contexts = result.model.contexts(tokens, config.contexts.tolerance).read(result.model.config.reads)
    losses, _ = evaluate(result.model, Stream(tokens, contexts))
    assert found.test.ppl.value == pytest.approx(float(losses.double().mean().exp()), rel=1e-5)


def test_a_process_that_dies_is_an_error(chat_file: Path, chat_inputs: Inputs) -> None:
    with pytest.raises(NoResultError, match="gru: its process ended with exit code 1"):
        next(contest(run_config(chat_file), chat_inputs, ["gru"], gpus=0, threads=-1))
