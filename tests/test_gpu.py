"""What differs on a GPU: kernels, precision, recorded steps. Run with `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import reference
import torch
from conftest import model_config, run_config
from reference import sequential_contexts
from test_contexts import twin

from model import load
from model.checkpoint import save_model
from model.compute import Compute
from model.config import ModelConfig
from model.language_model import LanguageModel
from model.seeds import seeded
from trainables import metrics as names
from trainables import phase2 as phase2_module
from trainables import pipeline as pipeline_module
from trainables.artifacts import ArtifactStore
from trainables.config import Phase1Config, Phase2Config
from trainables.corpus import load_corpus
from trainables.devices import choose_device
from trainables.phase1 import STATE_STD, fit_phase1
from trainables.phase2 import Stream, fit_phase2
from trainables.pipeline import DoesNotFitError, Inputs, run
from trainables.sources import resolve_data, resolve_embedding

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


@pytest.mark.parametrize(("context_layers", "token_layers", "mode"), [(2, 2, "layerwise"), (1, 3, "prev_and_current")])
def test_a_whole_trial_agrees_with_the_textbook(
    context_layers: int, token_layers: int, mode: str, tmp_path: Path
) -> None:
    corpus = load_corpus(resolve_data("pydoc", None), 100, resolve_embedding("bigram"), 2048, ArtifactStore(tmp_path))
    device, compute, seed = torch.device(choose_device(1)), Compute.of("cuda"), 3
    torch.set_float32_matmul_precision("highest")
    train, val = (torch.tensor(s.tokens).long().to(device) for s in (corpus.train, corpus.validation))
    config = ModelConfig(
        vocab_size=corpus.vocab_size, embedding_dim=256, context_dim=100,
        context_layers=context_layers, token_layers=token_layers, context_mode=mode,
    )  # fmt: skip
    table = 0.2 * torch.randn(config.vocab_size, 256, generator=torch.Generator().manual_seed(0))
    model = LanguageModel(config, table, seed).to(device)
    book = twin(model).to(device)
    own, steps = Phase1Config(max_sweeps=12), Phase2Config(batch_size=512, epochs=3)

    state = torch.zeros(len(train), compute.width(100), dtype=torch.bfloat16, device=device)
    state[:, :100].normal_(0, STATE_STD, generator=seeded(seed, "initial state", device))
    noise = compute.ops.Noise(seed, own.noise, 100, device)
    nothing = torch.zeros(len(train), compute.width(100), device=device)
    expected = reference.phase1(
        book, train, state[:, :100].float(),
        lambda sweep: noise.on_previous(nothing[0], nothing, torch.tensor(sweep, device=device), 0, own.block)[:, :100],
        lr=own.learning_rate, clip=own.grad_clip, block=own.block, threshold=own.threshold,
        converged_share=own.converged_share, max_sweeps=own.max_sweeps,
    )  # fmt: skip
    found = fit_phase1(model, train, own, seed, compute=compute)
    assert [s.loss for s in found.sweeps] == pytest.approx(expected.losses, rel=1e-2)
    assert [s.convergence for s in found.sweeps] == pytest.approx(expected.rates, abs=0.02)

    streams, rows = [], []
    for tokens in (train, val):
        streams.append(Stream(tokens, model.contexts(tokens, 1e-4, compute).read(config.reads)))
        rows.append(reference.read_contexts(sequential_contexts(book, tokens), config.reads))
    result = reference.phase2(
        book, train, val, *rows, lr=steps.learning_rate, clip=steps.grad_clip, batch_size=steps.batch_size,
        epochs=steps.epochs, patience=steps.patience,
    )  # fmt: skip
    fast = fit_phase2(model, *streams, steps, compute=compute)
    assert [e.val_ppl for e in fast.epochs] == pytest.approx(result.val_ppl, rel=0.005)
    assert [e.train_ppl for e in fast.epochs] == pytest.approx(result.train_ppl, rel=0.005)
    assert [e.val_acc for e in fast.epochs] == pytest.approx(result.val_accuracy, abs=0.005)


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
