"""A whole trial on the fast path of each device beside the textbook's in fp32, with the same noise."""

from pathlib import Path

import pytest
import reference
import torch
from reference import sequential_contexts, twin

from model.config import ModelConfig
from model.language_model import LanguageModel
from model.ops.compute import Compute
from model.seeds import seeded
from trainables.cache import ArtifactStore
from trainables.config import Phase1Config, Phase2Config
from trainables.host.devices import choose_device
from trainables.inputs.corpus import load_corpus
from trainables.inputs.sources import resolve_data, resolve_embedding
from trainables.phases.phase1 import STATE_STD, fit_phase1
from trainables.phases.phase2 import Stream, fit_phase2

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SIZES = {"cpu": (48, 96, 512, 40), "cuda": (100, 256, 2048, 100)}  # D, E, V, documents


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize(("context_layers", "token_layers", "mode"), [(2, 2, "layerwise"), (1, 3, "prev_and_current")])
def test_a_whole_trial_agrees_with_the_textbook(
    where: str, context_layers: int, token_layers: int, mode: str, tmp_path: Path
) -> None:
    dim, width, vocab, samples = SIZES[where]
    embedding, store = resolve_embedding("bigram"), ArtifactStore(tmp_path)
    corpus = load_corpus(resolve_data("pydoc", None), samples, embedding, vocab, store)
    device, compute, seed = torch.device(choose_device(float(where == "cuda"))), Compute.of(where), 3
    torch.set_float32_matmul_precision("highest")
    train, val = (torch.tensor(s.tokens).long().to(device) for s in (corpus.train, corpus.validation))
    config = ModelConfig(
        vocab_size=corpus.vocab_size, embedding_dim=width, context_dim=dim,
        context_layers=context_layers, token_layers=token_layers, context_mode=mode,
    )  # fmt: skip
    table = 0.2 * torch.randn(config.vocab_size, width, generator=torch.Generator().manual_seed(0))
    model = LanguageModel(config, table, seed).to(device)
    book = twin(model).to(device)
    own, steps = Phase1Config(max_sweeps=12), Phase2Config(batch_size=512, epochs=3)

    state = torch.zeros(len(train), compute.width(dim), dtype=compute.operand(table).dtype, device=device)
    state[:, :dim].normal_(0, STATE_STD, generator=seeded(seed, "initial state", device))
    noise = compute.ops.Noise(seed, own.noise, dim, device)
    nothing = torch.zeros(len(train), compute.width(dim), device=device)
    expected = reference.phase1(
        book, train, state[:, :dim].float(),
        lambda sweep: noise.on_previous(nothing[0], nothing, torch.tensor(sweep, device=device), 0, own.block)[:, :dim],
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
