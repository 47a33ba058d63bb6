"""How much of validation and test stands in the training text, and where that is told."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from entries import context_modes
from made_up import BASE, modes, run
from rich.console import Console
from small import run_config

from search.findings.document import write_report
from search.findings.leaderboard import HTML, MARKDOWN
from search.ledger.records import write_study_record
from search.screen import say_prepared
from trainables.cache import ArtifactStore
from trainables.host.digests import own_code
from trainables.inputs import corpus as corpora
from trainables.inputs.corpus import Corpus, load_corpus
from trainables.inputs.overlap import SEQUENCES, WORDS, describe_overlap, shares_in_training
from trainables.inputs.sources import resolve_data, resolve_embedding, split_of
from trainables.records import Records
from trainables.two_phase import prepare_study


def words(count: int, seed: int) -> list[str]:
    """So many words that no other seed has."""
    return [f"w{seed}x{number}" for number in range(count)]


def share(train: list[str], text: str) -> float | None:
    return shares_in_training(train, {"a": [text]})["a"]


def test_exactly_half_is_a_half() -> None:
    known, unknown = " ".join(words(50, 1)), " ".join(words(50, 2))
    train = ["before " + known.replace(" ", "\n ") + " after", " ".join(words(40, 3))]
    assert shares_in_training(train, {"a": [known, unknown], "b": [known], "c": [unknown]}) == {
        "a": 0.5, "b": 1.0, "c": 0.0,
    }  # fmt: skip


def test_a_sequence_lies_within_one_document() -> None:
    text = words(WORDS, 1)
    halves = [" ".join(text[:6]), " ".join(text[6:])]
    assert share([" ".join(text)], " ".join(text)) == 1.0
    assert share(halves, " ".join(text)) == 0.0
    assert shares_in_training([" ".join(text)], {"a": halves}) == {"a": None}


def test_one_word_that_differs_is_in_as_many_sequences_as_there_are_words() -> None:
    text = words(100, 1)
    other = [*text[:50], "other", *text[51:]]
    count = len(text) - WORDS + 1
    assert share([" ".join(text)], " ".join(other)) == (count - WORDS) / count


def test_the_order_of_words_counts() -> None:
    text = words(WORDS, 1)
    assert share([" ".join(text)], " ".join(reversed(text))) == 0.0
    assert share(["a a a a a a a a a a a b"], "b a a a a a a a a a a a") == 0.0


def test_it_is_what_sets_of_sequences_say() -> None:
    rng = np.random.default_rng(0)
    train, other = ([" ".join(rng.choice(["a", "b"], size=rng.integers(0, 60))) for _ in range(40)] for _ in range(2))

    def sequences(texts: list[str]) -> list[tuple[str, ...]]:
        return [tuple(t.split()[n : n + WORDS]) for t in texts for n in range(len(t.split()) - WORDS + 1)]

    known, found = set(sequences(train)), sequences(other)
    expected = sum(each in known for each in found) / len(found)
    assert 0 < expected < 1
    assert shares_in_training(train, {"a": other})["a"] == expected


def test_text_without_a_sequence_has_no_share() -> None:
    assert share([" ".join(words(40, 1))], "too few words") is None
    assert share([], " ".join(words(40, 1))) == 0.0
    assert describe_overlap({"val_overlap": None, "test_overlap": 0.5}) == "validation not measured, test 50.0 %"


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Validation and test documents of which every second one is a part of a training document."""
    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in ("validation", "test"):
        seed = 0
        while len(texts[name]) < 10:
            seed += 1
            text = " ".join(words(30, seed))
            if split_of(text) != name:
                continue
            texts[name].append(text)
            copies = (f"number {n} {text} end" for n in range(1_000))
            if len(texts[name]) % 2:
                texts["train"].append(next(copy for copy in copies if split_of(copy) == "train"))
    path = tmp_path / "half.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for each in texts.values() for text in each))
    return path


def loaded(path: Path, store: ArtifactStore) -> Corpus:
    return load_corpus(resolve_data(str(path), None), None, resolve_embedding("bigram"), 300, store)


def test_a_corpus_has_its_shares_and_is_counted_once(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(tmp_path / "cache")
    assert loaded(half, store).overlap == {"validation": 0.5, "test": 0.5}
    monkeypatch.setattr(corpora, "shares_in_training", None)
    assert loaded(half, store).overlap == {"validation": 0.5, "test": 0.5}


def test_token_ids_of_before_are_kept_and_counted(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path / "cache")
    loaded(half, store)
    (counted,) = store.root.glob("overlap-*")
    (counted / corpora.OVERLAP).unlink()
    (counted / "manifest.json").unlink()
    counted.rmdir()
    monkeypatch.setattr(corpora, "_documents", None)  # nothing is encoded again
    assert loaded(half, store).overlap == {"validation": 0.5, "test": 0.5}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"val_overlap": 0.0123, "test_overlap": 0.5}, "validation 1.2 %, test 50.0 %"),
        ({}, "validation not measured, test not measured"),
    ],
)
def test_the_report_tells_it(tmp_path: Path, known: dict[str, float], expected: str) -> None:
    records = Records.at(tmp_path)
    ledger = run(context_modes(BASE, (16,)), records, modes)
    about = {
        "command": "c", "data": "a.jsonl", "embedding": "bigram", "hardware": "2 x cpu", "compute": "fp32",
        "train_tokens": 1000, "val_tokens": 200, "test_tokens": 100, "vocab_size": 512, "embedding_dim": 192,
        "bigram_val_ppl": 30.0, "bigram_val_acc": 0.1, "git_commit": None, "git_dirty": None,
    }  # fmt: skip
    write_study_record(records.study_record(ledger.name), about | known)
    write_report(ledger, records)
    for name in (HTML, MARKDOWN):
        text = (records.study(ledger.name) / name).read_text()
        assert SEQUENCES in text
        assert expected in text


def test_a_studys_summary_has_it_and_its_first_lines_say_it(half: Path, tmp_path: Path) -> None:
    data, embedding = resolve_data(str(half), None), resolve_embedding("bigram")
    _, about = prepare_study(run_config(half), data, embedding, str(tmp_path / "cache"), 1, 0, (own_code(), "here"))
    summary = about.as_params()
    assert (summary["val_overlap"], summary["test_overlap"]) == (0.5, 0.5)
    settings: Any = SimpleNamespace(data=data, embedding=embedding)
    resources: Any = SimpleNamespace(gpus=0, threads=1, max_concurrent=2, limited_by="")
    console = Console(width=200, record=True, file=io.StringIO())
    say_prepared(console, settings, resources, summary)
    assert f"{SEQUENCES}: validation 50.0 %, test 50.0 %" in console.export_text().splitlines()
