import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small import run_config
from tokenizers import Tokenizer

from model.text.text_model import TextModel
from trainables.cache import ArtifactStore
from trainables.evaluation.evaluate import ngram_baselines, score_split, score_splits
from trainables.evaluation.ngrams import bigram_losses, unigram_losses
from trainables.inputs.corpus import Corpus, Split
from trainables.inputs.sources import resolve_data, resolve_embedding, split_of
from trainables.pipeline import prepare_inputs, run

VOCAB = 11


def stream(documents: int, seed: int = 0, length: int = 30) -> Split:
    """Documents of unequal length, two bytes a token."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, length, documents)
    tokens = rng.choice(VOCAB - 1, sizes.sum(), p=np.arange(VOCAB - 1, 0, -1) / 55).astype(np.int32)  # the last: never
    return Split(tokens, np.cumsum([0, *sizes[:-1]]), 2 * sizes.astype(np.int64), np.arange(len(sizes)))


def made_up(split: Split, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, number = np.random.default_rng(seed), len(split.tokens) - 1
    correct = rng.random(number) < 0.3
    return rng.exponential(2.0, number), correct, correct | (rng.random(number) < 0.4)


def test_figures_are_those_of_all_targets() -> None:
    split = stream(40)
    losses, correct, top5 = made_up(split)
    found = score_split(split, losses, correct, top5)
    assert found.ppl.value == pytest.approx(math.exp(losses.mean()))
    assert found.accuracy.value == pytest.approx(correct.mean())
    assert found.top5.value == pytest.approx(top5.mean())
    assert found.bits_per_byte.value == pytest.approx(losses.sum() / math.log(2) / split.document_bytes.sum())
    assert found.targets.sum() == len(losses)
    for interval in (found.ppl, found.accuracy, found.top5, found.bits_per_byte):
        assert interval.low < interval.value < interval.high
    names = set(found.metrics("test"))
    assert {"test/ppl", "test/ppl_low", "test/top5_high", "test/bits_per_byte"} < names
    assert found.metrics("test")["test/documents"] == 40
    assert len(names) == 13


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """Documents differ in how hard they are; the truth is the mean loss over all documents there could be."""
    rng, covered, split = np.random.default_rng(3), 0, None
    for _ in range(400):
        sizes = np.full(60, 20)
        split = Split(np.arange(1200, dtype=np.int32), np.cumsum([0, *sizes[:-1]]), sizes, np.arange(len(sizes)))
        hard = np.repeat(rng.normal(3, 0.5, 60), 20)[1:] + rng.normal(0, 1, 1199)
        nothing = np.zeros(1199, bool)
        interval = score_split(split, hard, nothing, nothing).ppl
        covered += interval.low <= math.exp(3) <= interval.high
    assert 0.925 <= covered / 400 <= 0.975


def test_one_document_has_figures_without_intervals() -> None:
    split = stream(1)
    metrics = score_split(split, *made_up(split)).metrics("test")
    assert set(metrics) == {"test/ppl", "test/accuracy", "test/top5", "test/bits_per_byte", "test/documents"}
    assert all(map(math.isfinite, metrics.values()))


def test_a_first_document_of_one_token_has_no_part() -> None:
    split = Split(np.arange(9, dtype=np.int32), np.array([0, 1, 5]), np.array([100, 4, 4]), np.arange(3))
    found = score_split(split, np.full(8, 2.0), np.ones(8, bool), np.ones(8, bool))
    assert found.targets.tolist() == [0, 4, 4]
    assert found.num_units == 2
    assert found.ppl.low == pytest.approx(math.exp(2)) == pytest.approx(found.ppl.high)
    assert found.bits_per_byte.value == pytest.approx(16 / math.log(2) / 8)


def test_bits_per_byte_are_those_of_the_same_documents_as_text(tmp_path: Path) -> None:
    """A model trained here, and its folder's `TextModel` on the documents of each split."""
    rng = np.random.default_rng(1)
    words = ["猫", "Bär", "😀", "the cat", "runs", "over"]
    texts = [f"{words[i % 3]}{' '.join(rng.choice(words, 9))} {i}" for i in range(150)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config, store = run_config(data, phase2_epochs=1), ArtifactStore(tmp_path / "cache")
    inputs = prepare_inputs(config, resolve_data(str(data), None), resolve_embedding("bigram"), store, "cpu")
    result = run(config, inputs, store)
    lm = TextModel(result.model, Tokenizer.from_str(inputs.corpus.tokenizer_json))
    for name, scores in score_splits(inputs.corpus, "cpu", result.evaluate).items():
        score = lm.score([text for text in texts if split_of(text) == name])
        split: Split = getattr(inputs.corpus, name)
        assert score.bytes == split.document_bytes.sum()
        assert score.tokens == scores.targets.sum()
        assert score.bits_per_byte == pytest.approx(scores.bits_per_byte.value, rel=1e-5)


def test_documents_written_twenty_times_say_no_more_than_once() -> None:
    once = stream(8)
    starts, sizes = (
        np.array([0, *np.cumsum(np.tile(once.document_bytes // 2, 20))[:-1]]),
        np.tile(once.document_bytes, 20),
    )
    often = Split(np.tile(once.tokens, 20), starts, sizes, np.arange(len(sizes)))
    assert len(np.unique(often.units)) == len(np.unique(once.units))
    losses = np.random.default_rng(0).exponential(2.0, len(once.tokens))
    each, nothing = np.tile(losses, 20)[1:], np.zeros(len(often.tokens) - 1, bool)
    found = score_split(often, each, nothing, nothing)
    reference = score_split(once, losses[1:], nothing[: len(losses) - 1], nothing[: len(losses) - 1])
    assert found.metrics("test")["test/documents"] == reference.num_units == 8
    width, expected = (math.log(x.ppl.high / x.ppl.low) for x in (found, reference))
    assert width == pytest.approx(expected, rel=0.1)  # the very first token is a target in all but one


@pytest.mark.parametrize(("rank", "hit"), [(4, 1.0), (5, 0.0)])
def test_a_target_of_rank_five_is_the_last_hit_of_top_five(rank: int, hit: float) -> None:
    """Ranks count from 0."""
    split = stream(5)
    corpus = Corpus(split, split, split, "", VOCAB, "")

    def evaluate(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        number = len(tokens) - 1
        return torch.ones(number), torch.zeros(number, dtype=torch.bool), torch.full((number,), rank)

    assert score_splits(corpus, "cpu", evaluate)["test"].top5.value == hit


def kneser_ney(train: list[int], first: int, target: int) -> float:
    """The textbook's formula, pair by pair."""
    counts: dict[tuple[int, int], int] = {}
    for pair in pairwise(train):
        counts[pair] = counts.get(pair, 0) + 1
    once, twice = list(counts.values()).count(1), list(counts.values()).count(2)
    discount = (once + 1) / (once + 2 * twice + 2)
    lower = (1 + len({a for a, b in counts if b == target})) / (VOCAB + len(counts))
    total = sum(count for (a, _), count in counts.items() if a == first)
    if total == 0:
        return lower
    kinds = len([1 for a, _ in counts if a == first])
    return max(counts.get((first, target), 0) - discount, 0) / total + discount * kinds / total * lower


def test_bigrams_equal_the_textbook_and_every_row_sums_to_one() -> None:
    train = stream(10).tokens
    every = np.array([[a, b] for a in range(VOCAB) for b in range(VOCAB)], np.int32)
    losses = np.array([bigram_losses(train, pair, VOCAB)[0] for pair in every])
    expected = [-math.log(kneser_ney(train.tolist(), a, b)) for a, b in every.tolist()]
    assert losses == pytest.approx(np.array(expected))
    assert np.exp(-losses).reshape(VOCAB, VOCAB).sum(axis=1) == pytest.approx(np.ones(VOCAB))
    other = stream(10, seed=1).tokens  # a stream at once is its pairs one by one
    one_by_one = [losses[a * VOCAB + b] for a, b in pairwise(other.tolist())]
    assert bigram_losses(train, other, VOCAB) == pytest.approx(np.array(one_by_one))


def test_unigrams_add_one_and_sum_to_one() -> None:
    train = stream(10).tokens
    losses = unigram_losses(train, np.arange(-1, VOCAB).astype(np.int32), VOCAB)
    assert np.exp(-losses).sum() == pytest.approx(1.0)
    assert math.exp(-losses[-1]) == pytest.approx(1 / (len(train) + VOCAB))


def test_ngram_baselines_are_the_same_losses_summed_by_document() -> None:
    train, split = stream(30), stream(20, seed=1)
    found = ngram_baselines(train, split, VOCAB)
    losses = bigram_losses(train.tokens, split.tokens, VOCAB)
    assert found["bigram"].value == pytest.approx(math.exp(losses.mean()))
    scored = score_split(split, losses, losses > 0, losses > 0).ppl  # the same draws, summed in another order
    assert (found["bigram"].low, found["bigram"].high) == pytest.approx((scored.low, scored.high))
    assert found["unigram"].low < found["unigram"].value < found["unigram"].high
