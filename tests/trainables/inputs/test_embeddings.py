"""The table: read from a causal LM's file, or trained as a bigram."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_gpt2 import tiny_gpt2

from trainables.cache import ArtifactStore
from trainables.config import BigramConfig
from trainables.inputs import embeddings
from trainables.inputs.corpus import Corpus, Split, load_corpus
from trainables.inputs.embeddings import load_embedding
from trainables.inputs.sources import resolve_data, resolve_embedding

BIGRAM = resolve_embedding("bigram")


def make_split(tokens: np.ndarray) -> Split:
    return Split(tokens.astype(np.int32), np.zeros(1, np.int64), np.full(1, len(tokens)), np.zeros(1, np.int64))


def make_corpus(train: np.ndarray, validation: np.ndarray, vocab_size: int, key: str = "key") -> Corpus:
    return Corpus(make_split(train), make_split(validation), make_split(validation), "{}", vocab_size, key)


def cyclic(length: int, vocab_size: int = 7) -> np.ndarray:
    """Each token decides the next one."""
    return np.arange(length) % vocab_size


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache")


@pytest.fixture
def pydoc(store: ArtifactStore) -> Corpus:
    return load_corpus(resolve_data("pydoc", 60), 60, BIGRAM, 300, store)


def test_a_bigram_learns_what_follows_what(store: ArtifactStore) -> None:
    config = BigramConfig(vocab_size=300, embedding_dim=16, learning_rate=0.03, batch_size=32, epochs=20)
    embedding = load_embedding(BIGRAM, make_corpus(cyclic(200), cyclic(50), 7), config, store)
    assert (embedding.table.shape, embedding.table.dtype) == ((7, 16), np.float32)
    assert embedding.bigram is not None
    assert embedding.bigram.val_acc == 1.0
    assert embedding.bigram.val_ppl < 1.1


def test_it_beats_the_token_frequencies_of_real_text(pydoc: Corpus, store: ArtifactStore) -> None:
    epochs: list[tuple[int, float]] = []
    config = BigramConfig(vocab_size=300, embedding_dim=32, batch_size=512, epochs=6)
    embedding = load_embedding(BIGRAM, pydoc, config, store, on_epoch=lambda *e: epochs.append(e))
    counts = np.bincount(pydoc.train.tokens, minlength=pydoc.vocab_size) + 1.0
    unigram_ppl = math.exp(-np.log(counts / counts.sum())[pydoc.validation.tokens].mean())
    assert embedding.bigram is not None
    assert embedding.bigram.val_ppl < 0.6 * unigram_ppl
    assert [epoch for epoch, _ in epochs] == [1, 2, 3, 4, 5, 6]
    assert embedding.bigram.val_ppl == min(ppl for _, ppl in epochs)


def test_the_best_epoch_is_kept(store: ArtifactStore) -> None:
    generator = np.random.default_rng(0)
    corpus = make_corpus(generator.integers(0, 50, 300), generator.integers(0, 50, 300), 50)
    settings = {"vocab_size": 300, "embedding_dim": 16, "batch_size": 50}
    ppl: list[float] = []
    long = load_embedding(
        BIGRAM, corpus, BigramConfig(epochs=30, **settings), store, on_epoch=lambda _, value: ppl.append(value)
    )
    best = int(np.argmin(ppl)) + 1
    assert best < 30  # noise: it overfits
    short = load_embedding(BIGRAM, corpus, BigramConfig(epochs=best, **settings), store)
    np.testing.assert_array_equal(long.table, short.table)
    assert long.bigram == short.bigram


def textbook_bigram(corpus: Corpus, config: BigramConfig) -> tuple[float, float]:
    """PPL and accuracy of the same model trained without any trick, from another draw of the same seed."""
    generator = torch.Generator().manual_seed(config.seed)
    dim = config.embedding_dim
    table = (torch.randn(corpus.vocab_size, dim, generator=generator) * 0.05).requires_grad_()
    linear = torch.nn.Linear(dim, dim)
    optimizer = torch.optim.AdamW(
        [table, *linear.parameters()], lr=config.learning_rate, weight_decay=config.weight_decay
    )

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(table[tokens], (dim,))
        return F.layer_norm(x + F.gelu(linear(x)), (dim,)) @ table.T

    train = torch.tensor(corpus.train.tokens, dtype=torch.int64)
    validation = torch.tensor(corpus.validation.tokens, dtype=torch.int64)
    for _ in range(config.epochs):
        for batch in torch.randperm(len(train) - 1, generator=generator).split(config.batch_size):
            loss = F.cross_entropy(logits(train[batch]), train[batch + 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        out = logits(validation[:-1])
        accuracy = (out.argmax(-1) == validation[1:]).double().mean().item()
        return math.exp(F.cross_entropy(out, validation[1:]).item()), accuracy


def test_it_is_the_textbook_bigram(pydoc: Corpus, store: ArtifactStore) -> None:
    config = BigramConfig(vocab_size=300, embedding_dim=32, batch_size=512)
    score = load_embedding(BIGRAM, pydoc, config, store).bigram
    expected_ppl, expected_acc = textbook_bigram(pydoc, config)
    assert score is not None
    assert score.val_ppl == pytest.approx(expected_ppl, rel=0.05)
    assert score.val_acc == pytest.approx(expected_acc, abs=0.02)


def test_more_tokens_than_one_chunk_are_judged_alike(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(cyclic(500, 90), np.random.default_rng(0).integers(0, 90, 400), 90)
    config = BigramConfig(vocab_size=300, embedding_dim=8, epochs=1)
    whole = load_embedding(BIGRAM, corpus, config, store).bigram
    monkeypatch.setattr("trainables.inputs.embeddings.CHUNK", 7)
    chunked = load_embedding(BIGRAM, dataclasses.replace(corpus, key="again"), config, store).bigram
    assert whole is not None
    assert chunked is not None
    assert chunked.val_ppl == pytest.approx(whole.val_ppl, rel=1e-6)
    assert chunked.val_acc == whole.val_acc


def test_a_bigram_is_made_once_and_the_same_everywhere(tmp_path: Path, store: ArtifactStore) -> None:
    corpus = make_corpus(cyclic(100), cyclic(30), 7)
    config = BigramConfig(vocab_size=300, embedding_dim=8, epochs=2)
    epochs: list[int] = []
    first = load_embedding(BIGRAM, corpus, config, store, on_epoch=lambda epoch, _: epochs.append(epoch))
    torch.manual_seed(1)  # the global generator has no part in it
    again = load_embedding(BIGRAM, corpus, config, store, on_epoch=lambda epoch, _: epochs.append(epoch))
    elsewhere = load_embedding(BIGRAM, corpus, config, ArtifactStore(tmp_path / "other"))
    assert epochs == [1, 2]
    assert first.bigram == again.bigram == elsewhere.bigram
    np.testing.assert_array_equal(first.table, again.table)
    np.testing.assert_array_equal(first.table, elsewhere.table)
    for other_corpus, other_config in (
        (corpus, dataclasses.replace(config, seed=1)),
        (make_corpus(cyclic(100)[::-1], cyclic(30), 7, key="other"), config),
    ):
        assert not np.array_equal(first.table, load_embedding(BIGRAM, other_corpus, other_config, store).table)


def test_a_table_is_found_again_by_its_token_ids_code_and_torch(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, made = BigramConfig(vocab_size=300, embedding_dim=8, epochs=1), []

    def load(key: str = "key", last: int = 0) -> None:
        train = cyclic(100)
        train[-1] = last
        load_embedding(
            BIGRAM, make_corpus(train, cyclic(30), 7, key), config, store, on_epoch=lambda *_: made.append(key)
        )

    load()
    load("made by other code, the same token ids")
    assert len(made) == 1
    load(last=3)
    assert len(made) == 2
    with monkeypatch.context() as changed:
        changed.setattr(embeddings, "code_digest", lambda module: f"another of {module}")
        load()
    assert len(made) == 3
    with monkeypatch.context() as changed:
        changed.setattr(torch, "__version__", "0")
        load()
    assert len(made) == 4
    load()
    assert len(made) == 4


def test_a_bigram_that_diverges_is_refused(store: ArtifactStore) -> None:
    corpus = make_corpus(cyclic(100), cyclic(30), 7)
    with pytest.raises(ValueError, match="diverged in epoch 1"):
        load_embedding(BIGRAM, corpus, BigramConfig(learning_rate=1e30, epochs=2, batch_size=10), store)
    assert not list(store.root.glob("embedding-*"))


@pytest.mark.parametrize("shard_size", ["1GB", "5KB"])
def test_a_causal_lms_table_is_its_input_embedding(tmp_path: Path, store: ArtifactStore, shard_size: str) -> None:
    folder = tmp_path / "gpt2"
    model = tiny_gpt2(folder, shard_size)
    assert (folder / "model.safetensors").exists() == (shard_size == "1GB")
    source = resolve_embedding(str(folder))
    corpus = load_corpus(resolve_data("pydoc", 60), 60, source, None, store)
    embedding = load_embedding(source, corpus, None, store)
    np.testing.assert_array_equal(embedding.table, model.transformer.wte.weight.detach().numpy())
    assert embedding.table.shape == (300, 16)  # more rows than the tokenizer has ids
    assert corpus.vocab_size <= 290
    assert (embedding.name, embedding.bigram) == (str(folder), None)


@pytest.mark.parametrize(
    "rename", ["wte.weight", "transformer.wte.weight", "wrapper.transformer.wte.weight", "lm_head.weight"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_names_and_types_in_the_file(
    tmp_path: Path, store: ArtifactStore, rename: str, dtype: torch.dtype
) -> None:
    model = tiny_gpt2(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors.pop("transformer.wte.weight").to(dtype)
    save_file(tensors | {rename: table}, tmp_path / "model.safetensors")
    embedding = load_embedding(resolve_embedding(str(tmp_path)), make_corpus(cyclic(9), cyclic(9), 7), None, store)
    assert embedding.table.dtype == np.float32
    np.testing.assert_array_equal(embedding.table, model.transformer.wte.weight.detach().to(dtype).float().numpy())


def test_only_the_shard_with_the_table_is_read(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a hub's cache that holds config, tokenizer, index and that one shard."""
    commit = "0123abcd" * 5
    snapshot = tmp_path / f"hub/models--nobody--tiny/snapshots/{commit}"
    model = tiny_gpt2(snapshot, "5KB")
    (tmp_path / "hub/models--nobody--tiny/refs").mkdir()
    (tmp_path / "hub/models--nobody--tiny/refs/main").write_text(commit)
    needed = json.loads((snapshot / "model.safetensors.index.json").read_text())["weight_map"]["transformer.wte.weight"]
    for shard in snapshot.glob("model-*.safetensors"):
        if shard.name != needed:
            shard.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = resolve_embedding("nobody/tiny")
    corpus = load_corpus(resolve_data("pydoc", 60), 60, source, None, store)
    embedding = load_embedding(source, corpus, None, store)
    np.testing.assert_array_equal(embedding.table, model.transformer.wte.weight.detach().numpy())
    (snapshot / needed).unlink()
    with pytest.raises(ValueError, match=f"{needed} cannot be had"):
        load_embedding(source, corpus, None, store)


def test_models_that_do_not_fit_are_refused(tmp_path: Path, store: ArtifactStore) -> None:
    def refuses(reason: str, highest: int = 5) -> None:
        corpus = make_corpus(np.array([0, highest]), cyclic(9), 300)
        with pytest.raises(ValueError, match=reason):
            load_embedding(resolve_embedding(str(tmp_path)), corpus, None, store)

    tiny_gpt2(tmp_path, rows=200)
    refuses("has 200 rows, too few for its tokenizer's id 200", highest=200)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors.pop("transformer.wte.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    refuses("no tensor named transformer.wte.weight or lm_head.weight")
    save_file(tensors | {"wte.weight": table[:100].clone()}, tmp_path / "model.safetensors")
    refuses(r"wte.weight of .* is \(100, 16\) torch.float32, not \(200, 16\) as in config.json")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    refuses("is no causal LM that can be read")
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    refuses("is no causal LM that can be read")
