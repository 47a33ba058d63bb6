import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from small import run_config

from trainables import metrics as names
from trainables.cache import ArtifactStore
from trainables.errors import CollapsedError, DivergedError
from trainables.inputs import embeddings
from trainables.inputs.sources import resolve_data, resolve_embedding
from trainables.phases.shared_phase1 import FIGURES, WEIGHTS
from trainables.pipeline import Inputs, prepare_inputs, run
from trainables.progress import Progress

TIMES = {names.PHASE1_SECONDS, names.PHASE1_SAVED, names.PHASE2_SECONDS, names.TOTAL_SECONDS}
FINAL = {
    value
    for key, value in vars(names).items()
    if key.isupper() and isinstance(value, str) and not value.startswith(names.SERIES)
} - {names.CONVERGED, names.TRAINED_PARAMS, names.TOKENS_PER_SECOND, names.PEAK_BYTES}  # fmt: skip


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


def test_a_study_that_goes_on_has_the_table_that_it_began_with(
    chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever code or processor would make another one today."""
    store, config = ArtifactStore(tmp_path), run_config(chat_file)
    inputs = config, resolve_data(str(chat_file), None), resolve_embedding("bigram"), store, "cpu"
    begun = prepare_inputs(*inputs)
    monkeypatch.setattr(embeddings, "code_digest", lambda module: "other code")
    monkeypatch.setattr(embeddings, "INIT_STD", 0.06)
    assert prepare_inputs(*inputs).digest != begun.digest
    again = prepare_inputs(*inputs, begun_with=begun.digest)
    assert again.digest == begun.digest
    assert (again.embedding.table == begun.embedding.table).all()
    assert prepare_inputs(*inputs, begun_with="gone").digest != begun.digest


def test_a_run_reports_every_final_metric_finite(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    result = run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path))
    assert set(result.metrics) == FINAL
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.metrics[names.TOTAL_PARAMS] == result.model.num_parameters()
    assert 0 < result.metrics[names.VAL_ER] <= 100
    assert result.metrics[names.VAL_PPL] < chat_inputs.corpus.vocab_size


def test_a_run_says_which_documents_are_equal(chat_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text(2 * chat_file.read_text())
    config, store = run_config(path), ArtifactStore(tmp_path / "cache")
    inputs = prepare_inputs(config, resolve_data(str(path), None), resolve_embedding("bigram"), store, "cpu")
    units = run(config, inputs, store).val_documents.units
    assert units == inputs.corpus.validation.units.tolist()
    assert len(set(units)) == len(units) / 2


def test_the_same_seed_gives_the_same_result(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    results = [
        run(run_config(chat_file, seed=seed), chat_inputs, ArtifactStore(tmp_path / folder))
        for folder, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert untimed(results[0].metrics) == untimed(results[1].metrics)
    assert results[0].metrics[names.VAL_PPL] != results[2].metrics[names.VAL_PPL]
    weights = [dict(r.model.state_dict()) for r in results]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_shared_phase1_gives_the_result_of_an_own_one(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    shared = ArtifactStore(tmp_path / "shared")
    first = run(run_config(chat_file, token_layers=1), chat_inputs, shared)
    second = run(run_config(chat_file, context_mode="previous_only"), chat_inputs, shared)
    alone = run(run_config(chat_file, context_mode="previous_only"), chat_inputs, ArtifactStore(tmp_path / "alone"))
    assert first.metrics[names.PHASE1_SHARED] == 0
    assert second.metrics[names.PHASE1_SHARED] == 1
    assert first.phase1_by == second.phase1_by == run_config(chat_file, token_layers=1).config_hash()
    assert first.metrics[names.PHASE1_SAVED] == 0
    assert (
        second.metrics[names.PHASE1_SAVED] < first.metrics[names.PHASE1_SECONDS] == second.metrics[names.PHASE1_SECONDS]
    )
    assert second.metrics[names.PHASE1_SECONDS] == first.metrics[names.PHASE1_SECONDS]
    ours = untimed(second.metrics) | {names.PHASE1_SHARED: 0.0}
    assert ours == untimed(alone.metrics)


@pytest.mark.parametrize("file", [WEIGHTS, FIGURES])
def test_a_damaged_phase1_is_trained_again(chat_file: Path, chat_inputs: Inputs, tmp_path: Path, file: str) -> None:
    store, config = ArtifactStore(tmp_path), run_config(chat_file)
    first = run(config, chat_inputs, store)
    (artefact,) = tmp_path.glob("phase1-*")
    content = (artefact / file).read_bytes()
    (artefact / file).write_bytes(content[:-7] + b"1234567")
    again = run(config, chat_inputs, store)
    assert again.metrics[names.PHASE1_SHARED] == 0
    assert untimed(again.metrics) == untimed(first.metrics)


def test_progress_tells_the_whole_series_shared_or_not(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    seen: list[list[Progress]] = [[], []]
    for events in seen:
        run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path), on_progress=events.append)
    curves = [
        [(p.phase, p.step, p.series[names.SWEEP_LOSS]) for p in events if names.SWEEP_LOSS in p.series]
        for events in seen
    ]
    assert curves[0] == curves[1]
    assert [step for _, step, _ in curves[0]] == list(range(2, 2 + len(curves[0])))
    epochs = [p.step for p in seen[0] if names.EPOCH_VAL_PPL in p.series]
    assert epochs == [1, 2]


def test_last_sweep_contexts_differ_and_share_nothing(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    exact = run(run_config(chat_file), chat_inputs, store)
    config = run_config(chat_file, contexts_train="last_sweep")
    last = [run(config, chat_inputs, store) for _ in range(2)]
    assert [r.metrics[names.PHASE1_SHARED] for r in last] == [0, 0]
    assert untimed(last[0].metrics) == untimed(last[1].metrics)
    assert last[0].metrics[names.VAL_ER] == exact.metrics[names.VAL_ER]  # Phase 1 itself is the same
    assert last[0].metrics[names.VAL_PPL] != exact.metrics[names.VAL_PPL]


def test_a_diverged_phase1_leaves_nothing_behind(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    config = run_config(chat_file, phase1_learning_rate=1e30)
    with pytest.raises(DivergedError):
        run(config, chat_inputs, ArtifactStore(tmp_path))
    assert list(tmp_path.glob("phase1-*")) == []
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_a_causal_lms_run_has_no_bigram_line(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    inputs = dataclasses.replace(chat_inputs, embedding=dataclasses.replace(chat_inputs.embedding, bigram=None))
    result = run(run_config(chat_file), inputs, ArtifactStore(tmp_path))
    assert set(result.metrics) == FINAL - {names.BIGRAM_VAL_PPL}


def test_stored_figures_are_plain_json(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    run(run_config(chat_file), chat_inputs, ArtifactStore(tmp_path))
    (artefact,) = tmp_path.glob("phase1-*")
    stored = json.loads((artefact / FIGURES).read_text())
    assert stored["metrics"][names.SWEEPS] == stored["sweeps"][-1]["number"]


def test_weights_spoiled_by_the_last_step_are_a_divergence(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path
) -> None:
    config = run_config(chat_file).replace(phase1_max_sweeps=2, phase1_learning_rate=1e30)
    with pytest.raises(DivergedError, match="Phase 1 diverged"):
        run(config, chat_inputs, ArtifactStore(tmp_path))


def test_phase1_is_not_shared_with_another_table(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    run(run_config(chat_file), chat_inputs, store)
    other = run(run_config(chat_file), dataclasses.replace(chat_inputs, digest="another"), store)
    assert other.metrics[names.PHASE1_SHARED] == 0


def test_losses_by_document_are_those_of_the_best_epoch(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    result = run(run_config(chat_file, phase2_epochs=4), chat_inputs, ArtifactStore(tmp_path))
    documents, split = result.val_documents, chat_inputs.corpus.validation
    assert len(documents.nats) == len(documents.targets) == len(split.document_starts) > 1
    assert sum(documents.targets) == len(split.tokens) - 1
    mean = math.fsum(documents.nats) / sum(documents.targets)
    assert mean == pytest.approx(math.log(result.metrics[names.VAL_PPL]), abs=1e-9)


def test_a_collapsed_phase1_ends_the_run_with_its_figures_trained_or_reused(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path
) -> None:
    config = run_config(chat_file, contexts_min_rank=99.0)
    store, seen, shared = ArtifactStore(tmp_path), [], []
    for _ in range(2):
        with pytest.raises(CollapsedError, match=r"Phase 1 collapsed: effective rank .* % of D, under 99 %") as ended:
            run(config, chat_inputs, store, on_progress=lambda progress: seen.append(progress.phase))
        assert ended.value.figures[names.VAL_ER] < 99
        shared.append(ended.value.figures[names.PHASE1_SHARED])
    assert shared == [0.0, 1.0]
    assert "phase 2" not in seen


def test_the_validation_streams_rank_decides_whether_phase_1_collapsed(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path
) -> None:
    """A least rank between those of the two streams, which they take turns to be under."""
    corpus = chat_inputs.corpus
    ended = []
    for number, train in enumerate((corpus.train, corpus.validation)):
        validation = corpus.validation if train is corpus.train else corpus.train
        swapped = dataclasses.replace(corpus, train=train, validation=validation)
        inputs = dataclasses.replace(chat_inputs, corpus=swapped, digest=f"{chat_inputs.digest}-{number}")
        store = ArtifactStore(tmp_path)
        figures = run(run_config(chat_file), inputs, store).metrics
        ranks = figures[names.TRAIN_ER], figures[names.VAL_ER]
        assert ranks[0] != ranks[1]
        config = run_config(chat_file, contexts_min_rank=sum(ranks) / 2)
        try:
            run(config, inputs, store)
        except CollapsedError:
            ended.append(True)
        else:
            ended.append(False)
        assert ended[-1] == (ranks[1] < ranks[0])
    assert sorted(ended) == [False, True]


def test_the_train_perplexity_is_that_of_the_best_epoch(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    config = run_config(chat_file, phase2_epochs=12, phase2_learning_rate=0.1)  # soon too much
    epochs: dict[int, float] = {}

    def listen(progress: Progress) -> None:
        if names.EPOCH_TRAIN_PPL in progress.series:
            epochs[progress.step] = progress.series[names.EPOCH_TRAIN_PPL]

    figures = run(config, chat_inputs, ArtifactStore(tmp_path), on_progress=listen).metrics
    best = int(figures[names.BEST_EPOCH])
    assert best < figures[names.EPOCHS] == len(epochs)
    assert figures[names.TRAIN_PPL] == epochs[best] != epochs[len(epochs)]
