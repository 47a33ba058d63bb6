"""What differs on a GPU: kernels, precision, recorded steps. Run with `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch
from reference import sequential_contexts, twin
from small import model_config, run_config

from model import load
from model.config import ModelConfig
from model.language_model import LanguageModel
from model.ops.compute import Compute
from model.text.checkpoint import save_model
from trainables import metrics as names
from trainables import pipeline as pipeline_module
from trainables.cache import ArtifactStore
from trainables.config import Phase2Config
from trainables.errors import DoesNotFitError
from trainables.host.devices import choose_device
from trainables.phases import phase2 as phase2_module
from trainables.phases.phase2 import Stream, fit_phase2
from trainables.pipeline import Inputs, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_run_repeats_itself_bit_by_bit(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    device, config = choose_device(1), run_config(chat_file)
    results = [run(config, chat_inputs, ArtifactStore(tmp_path / folder), device) for folder in "ab"]
    timeless = [{k: v for k, v in r.metrics.items() if "seconds" not in k} for r in results]
    assert timeless[0] == timeless[1]
    for mine, theirs in zip(*(r.model.state_dict().values() for r in results), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("compute", [Compute(), Compute(fused=True)])
def test_every_precision_agrees(
    compute: Compute, chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, config = choose_device(1), run_config(chat_file)
    fast = run(config, chat_inputs, ArtifactStore(tmp_path / "fast"), device).metrics[names.VAL_PPL]
    monkeypatch.setattr(pipeline_module.Compute, "of", lambda device: compute)
    slow = run(config, chat_inputs, ArtifactStore(tmp_path / "slow"), device).metrics[names.VAL_PPL]
    # torch's generator and the kernels draw different noise, and this run is short
    assert fast == pytest.approx(slow, rel=0.005 if compute.fused else 0.05)


def test_contexts_are_exact_although_training_rounds(tokens: torch.Tensor, table: torch.Tensor) -> None:
    device = choose_device(1)
    model = LanguageModel(model_config(2), table, seed=2)
    expected = sequential_contexts(twin(model), tokens)
    model.to(device)
    for compute, tolerance in ((Compute(), 1e-4), (Compute(fused=True), 1e-4), (Compute.of("cuda"), 2e-2)):
        found = model.contexts(tokens.to(device), 1e-5, compute)
        for layer in (1, 2):
            assert (found.layer(layer).float().cpu() - expected[layer - 1]).abs().max() < tolerance


def test_recorded_steps_are_the_same_steps(
    tokens: torch.Tensor, table: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, compute = choose_device(1), Compute(fused=True, bf16=True)
    results, replayed = [], []
    replay = phase2_module._Recording.replay
    monkeypatch.setattr(
        phase2_module._Recording, "replay", lambda self, start: (replayed.append(start), replay(self, start))
    )
    for eager in (3, 10_000):
        monkeypatch.setattr(phase2_module, "EAGER_STEPS", eager)
        model = LanguageModel(model_config(2, 3, "layerwise"), table, seed=2).to(device)
        contexts = model.contexts(tokens.to(device), 1e-5, compute).read(model.config.reads)
        stream = Stream(tokens.to(device), contexts)
        config = Phase2Config(batch_size=32, epochs=3, patience=3)
        results.append(fit_phase2(model, stream, stream, config, compute=compute).epochs)
    assert results[0] == results[1]
    assert len(replayed) == 3 * 9 - 3  # of 300 positions in whole batches of 32, the first three are not recorded


@pytest.mark.parametrize("vocab", [60, 512, 1000, 50_000])
def test_the_softmax_in_place_has_no_race(vocab: int) -> None:
    ops, columns = Compute.of("cuda").ops, -(-vocab // 64) * 64
    logits = (5 * torch.randn(2048, columns, device="cuda")).bfloat16()
    targets = torch.randint(vocab, (2048,), device="cuda")
    expected = torch.nn.functional.cross_entropy(logits[:, :vocab].float(), targets, reduction="none")
    first = logits.clone()
    losses, scales = ops.softmax_gradient_(first, targets, vocab)
    assert (losses - expected).abs().max() < 1e-3
    for _ in range(300):
        rows = logits.clone()
        again = ops.softmax_gradient_(rows, targets, vocab)
        assert torch.equal(rows, first)
        assert torch.equal(again[0], losses)
        assert torch.equal(again[1], scales)


def test_a_full_memory_is_an_outcome_and_the_process_goes_on(
    chat_file: Path, chat_inputs: Inputs, tmp_path: Path
) -> None:
    device, config = choose_device(1), run_config(chat_file)
    torch.cuda.empty_cache()
    all_of_it = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1024) / all_of_it)
        with pytest.raises(DoesNotFitError, match=r"infeasible: .* nor with half the chunks: CUDA out of memory"):
            run(config, chat_inputs, ArtifactStore(tmp_path), device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run(config, chat_inputs, ArtifactStore(tmp_path), device).metrics[names.VAL_PPL] > 1


def test_a_loaded_model_says_the_same_as_on_the_cpu(chat_inputs: Inputs, tmp_path: Path) -> None:
    table = torch.tensor(chat_inputs.embedding.table)
    sizes = vars(model_config(2, 3, "layerwise")) | {"vocab_size": len(table), "embedding_dim": table.shape[1]}
    tokenizer = chat_inputs.corpus.tokenizer_json
    save_model(LanguageModel(ModelConfig(**sizes), table, seed=1), tmp_path / "model", tokenizer)
    here, there = (load(tmp_path / "model", device=device) for device in ("cpu", "cuda"))
    text = "the cat sleeps under the tree and the dog runs over the river " * 20
    torch.testing.assert_close(there.logprobs(text).cpu(), here.logprobs(text), atol=1e-3, rtol=1e-3)
    greedy = ["".join(lm.generate("the cat", max_tokens=20, temperature=0)) for lm in (here, there)]
    assert greedy[0] == greedy[1]
