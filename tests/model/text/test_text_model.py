"""What a trained model says about text."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import E, model_config
from tokenizers import Tokenizer

from model import load
from model.language_model import LanguageModel
from model.modes import CONTEXT_MODES
from model.ops.chunks import Chunks
from model.text.continuation import Continuation
from model.text.recurrence import step, zero_state
from model.text.sampling import Sampling
from model.text.text_model import TextModel
from trainables.inputs.corpus import _train_bpe

TEXT = "the cat sleeps under the tree; der Bär schläft. 猫は寝る 😀 the dog runs over the river"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return _train_bpe([TEXT], 280)


def text_model(tokenizer: Tokenizer, mode: str = "layerwise", spare_rows: int = 0, dtype: str = "float32") -> TextModel:
    """An untrained model; what it says is arbitrary, and definite."""
    vocab_size = tokenizer.get_vocab_size() + spare_rows
    table = torch.randn(vocab_size, E, generator=torch.Generator().manual_seed(6), dtype=getattr(torch, dtype))
    sizes = vars(model_config(3, 3, mode)) | {"vocab_size": vocab_size}
    return TextModel(LanguageModel(type(model_config())(**sizes), table, seed=4), tokenizer)


@pytest.mark.parametrize("mode", CONTEXT_MODES)
def test_one_step_after_the_other_gives_the_logits_of_all_at_once(
    mode: str, tokens: torch.Tensor, table: torch.Tensor
) -> None:
    model = LanguageModel(model_config(3, 3, mode), table, seed=2)
    state, stepwise = zero_state(model), []
    for token in tokens.tolist():
        logits, state = step(model, state, token)
        assert state.shape == (model.config.context_dim,)
        stepwise.append(logits)
    assert torch.allclose(torch.stack(stepwise), model.logits(tokens), atol=2e-4)


@pytest.mark.parametrize("mode", CONTEXT_MODES)
def test_a_prompt_read_in_parallel_and_in_pieces_leaves_the_same_state(mode: str, tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer, mode)
    ids = lm.encode(TEXT * 3)
    lm._compute = type(lm._compute)(chunks=Chunks(eval_rows=50))
    logits, state = lm.read(ids, lm.zero_state())
    expected = lm.network.logits(torch.tensor(ids))[-1]
    assert torch.allclose(logits, expected, atol=2e-4)
    _, half = lm.read(ids[:33], lm.zero_state())
    again, other = lm.read(ids[33:], half)
    assert torch.allclose(state, other, atol=1e-4)
    assert torch.allclose(again, logits, atol=2e-4)


@pytest.mark.parametrize("rows", [8_192, 7])
def test_logprobs_are_those_of_every_token_but_the_first(tokenizer: Tokenizer, rows: int) -> None:
    lm = text_model(tokenizer, "prev_and_current")
    lm._compute = type(lm._compute)(chunks=Chunks(eval_rows=rows))
    ids = torch.tensor(lm.encode(TEXT))
    expected = lm.network.logits(ids)[:-1].log_softmax(dim=1).gather(1, ids[1:, None])[:, 0]
    found = lm.logprobs(TEXT)
    assert found.shape == (len(lm.tokens(TEXT)) - 1,)
    assert torch.allclose(found, expected, atol=1e-4)
    assert lm.logprobs("t").shape == (0,)


def test_a_score_is_made_of_the_logprobs(tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer)
    score, logprobs = lm.score(TEXT), lm.logprobs(TEXT)
    assert score.tokens == len(logprobs)
    assert score.ppl == pytest.approx(math.exp(-logprobs.mean()), rel=1e-5)
    assert score.bytes == len(TEXT.encode()) - len(lm.tokens(TEXT)[0].encode())
    assert score.bits_per_byte == pytest.approx(-float(logprobs.sum()) / math.log(2) / score.bytes, rel=1e-5)
    ids = torch.tensor(lm.encode(TEXT))
    hits = lm.network.logits(ids)[:-1].argmax(dim=1) == ids[1:]
    assert score.accuracy == pytest.approx(float(hits.float().mean()))
    documents = ["", "t", "", TEXT, "the dog"]
    stream = torch.tensor([token for text in documents for token in lm.encode(text)])
    losses = -lm.network.logits(stream)[:-1].log_softmax(dim=1).gather(1, stream[1:, None])
    assert lm.score(documents).ppl == pytest.approx(float(losses.mean().exp()), rel=1e-4)
    assert lm.score(documents).bytes == len("".join(documents).encode()) - 1


def test_next_tokens_are_the_most_likely_ones(tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer, spare_rows=9)
    found = lm.next_tokens(TEXT, k=10_000)
    assert len(found) == tokenizer.get_vocab_size()  # rows of the table without a token are none
    assert sum(math.exp(token.logprob) for token in found) == pytest.approx(1, abs=1e-4)
    assert [t.logprob for t in found] == sorted((t.logprob for t in found), reverse=True)
    assert lm.next_tokens(TEXT, k=3) == found[:3]
    expected = lm.network.logits(torch.tensor(lm.encode(TEXT)))[-1, : tokenizer.get_vocab_size()].argmax()
    assert found[0].token == int(expected)
    assert found[0].text == lm.decode([found[0].token])


def test_a_greedy_continuation_takes_the_most_likely_token_each_time(tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer, "previous_first")
    ids = lm.encode("the cat")
    for _ in range(30):
        ids.append(int(lm.network.logits(torch.tensor(ids))[-1].argmax()))
    pieces = list(lm.generate("the cat", max_tokens=30, temperature=0))
    assert len(pieces) == 30
    assert "".join(pieces) == lm.decode(ids[len(lm.encode("the cat")) :])


def test_pieces_never_cut_a_character(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = text_model(tokenizer)
    said = "Bär 猫 😀!"
    waiting: Iterator[int] = iter([*lm.encode(said), lm.encode("猫")[0]])
    monkeypatch.setattr(Sampling, "draw", lambda *_: next(waiting))
    pieces = list(lm.generate("寝", max_tokens=len(lm.encode(said)) + 1))
    assert "".join(pieces) == said + "\ufffd"  # the last token is one byte of three
    assert "" in pieces
    assert all("\ufffd" not in piece for piece in pieces[:-1])


def test_random_bytes_come_out_as_they_decode(tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer)
    for seed in range(20):
        continuation = Continuation(lm, Sampling(max_tokens=40, temperature=3, seed=seed))
        continuation.read("the 猫")
        drawn = []
        pieces = continuation.pieces()
        text = ""
        for piece in pieces:
            drawn += continuation._unread
            text += piece
        assert text == lm.decode(drawn)


def test_a_seed_repeats_its_text_and_another_gives_another(tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer, spare_rows=50)
    first, again, other = ("".join(lm.generate("the cat", seed=seed, temperature=2)) for seed in (1, 1, 2))
    assert first == again != other
    assert "".join(lm.generate("the", temperature=5, top_k=1)) == "".join(lm.generate("the", temperature=0))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.5, 0.3]),
        ({"top_k": 99}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.5}, [0.5]),
        ({"top_p": 0.51}, [0.5, 0.3]),
        ({"top_p": 1e-9}, [0.5]),
        ({"top_k": 2, "top_p": 0.63}, [0.5, 0.3]),  # 0.5 is 0.625 of what the two have
        ({"top_k": 2, "top_p": 0.62}, [0.5]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"temperature": 1e-300}, [1.0]),
        ({"temperature": 0}, [1.0]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_options_say(options: dict[str, float], kept: list[float]) -> None:
    logits = torch.tensor([0.15, 0.5, 0.0, 0.05, 0.3]).log()
    sampling = Sampling(**options)  # type: ignore[arg-type]
    drawn = [sampling.draw(logits, (i + 0.5) / 2_000) for i in range(2_000)]
    expected = dict(zip([1, 4, 0, 3], kept, strict=False))
    assert set(drawn) == set(expected)
    for token, weight in expected.items():
        assert drawn.count(token) / 2_000 == pytest.approx(weight / sum(kept), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.01}, "top_p must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "half \ud800"}, "surrogate"),
    ],
)
def test_what_cannot_be_continued_is_refused_at_once(
    tokenizer: Tokenizer, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        text_model(tokenizer).generate(**({"prompt": "the"} | options))  # type: ignore[arg-type]


def test_wrong_text_is_refused(tokenizer: Tokenizer) -> None:
    lm = text_model(tokenizer)
    for call in (lm.score, lm.logprobs, lm.next_tokens):
        with pytest.raises(ValueError, match="text is empty"):
            call("")
    with pytest.raises(ValueError, match="one token"):
        lm.score("t")
    with pytest.raises(ValueError, match="0 to"):
        lm.decode([10**6])
    with pytest.raises(ValueError, match="k must be at least 1"):
        lm.next_tokens("the", 0)


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    larger = _train_bpe([TEXT], 300)
    assert larger.get_vocab_size() > tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match="another model's"):
        TextModel(text_model(tokenizer).network, larger)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(ValueError, match="device"):
            load(tmp_path, device)
