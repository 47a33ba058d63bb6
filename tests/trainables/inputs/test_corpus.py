"""Token ids: order, boundaries, tokenizers, the store, and each way in."""

import gzip
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_gpt2 import tiny_gpt2
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from search.presets import demo
from trainables.cache import ArtifactStore
from trainables.host import digests
from trainables.inputs.corpus import Corpus, Split, load_corpus
from trainables.inputs.sources import ULTRACHAT, DataSource, pydoc_documents, resolve_data, resolve_embedding, split_of

BIGRAM = resolve_embedding("bigram")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache")


def decoded(corpus: Corpus, split: Split) -> list[str]:
    """The text of each document, from its own tokens."""
    tokenizer = Tokenizer.from_str(corpus.tokenizer_json)
    pieces = np.split(split.tokens, split.document_starts[1:])
    return [tokenizer.decode(piece.tolist(), skip_special_tokens=False) for piece in pieces]


def corpus_first_token(corpus: Corpus, split: Split) -> int:
    """Bytes of a stream's first token, ASCII here: nothing predicts it."""
    text: str = Tokenizer.from_str(corpus.tokenizer_json).decode(split.tokens[:1].tolist())
    return len(text)


def texts_of(split: str, samples: int | None = None) -> list[str]:
    """Of the embedded documents."""
    return [document.text for document in pydoc_documents() if document.split == split][:samples]


def test_pydoc_streams_decode_to_the_documents_of_their_split(store: ArtifactStore) -> None:
    corpus = load_corpus(resolve_data("pydoc", 60), 60, BIGRAM, 300, store)
    for name in ("train", "validation", "test"):
        split: Split = getattr(corpus, name)
        expected = texts_of(name, 60 if name == "train" else None)
        assert decoded(corpus, split) == expected
        first = corpus_first_token(corpus, split)
        assert split.document_bytes.tolist() == [
            len(text.encode()) - first * (text is expected[0]) for text in expected
        ]
        assert (split.tokens.dtype, split.document_starts.dtype) == (np.int32, np.int64)
    assert corpus.vocab_size == 300
    assert int(corpus.train.tokens.max()) < 300


def test_the_demo_is_judged_on_at_least_thirty_independent_documents(store: ArtifactStore) -> None:
    preset = demo()
    data = resolve_data(preset.data, preset.samples)
    corpus = load_corpus(data, preset.samples, BIGRAM, preset.bigram.vocab_size, store)
    units = corpus.validation.units
    assert 30 <= len(np.unique(units)) < len(units)
    assert 55_000 <= len(corpus.train.tokens) <= 65_000
    assert max(share for share in corpus.overlap.values() if share is not None) < 0.01


def test_pieces_of_one_text_and_equal_texts_are_one_unit_whatever_links_them() -> None:
    tokens = np.array([1, 2, 2, 3, 3, 1], dtype=np.int32)
    starts, sizes = np.arange(6), np.ones(6, np.int64)
    assert Split(tokens, starts, sizes, np.array([7, 7, 8, 9, 5, 4])).units.tolist() == [0, 0, 0, 3, 3, 0]
    assert Split(tokens, starts, sizes, np.array([7, 7, 8, 8, 5, 4])).units.tolist() == [0] * 6
    assert Split(tokens, starts, sizes, starts).units.tolist() == [0, 1, 1, 3, 3, 0]


def test_bpe_sees_the_training_split_only_and_stops_where_no_merge_is_left(
    tmp_path: Path, store: ArtifactStore
) -> None:
    texts = [f"abab {i:04d}" for i in range(60)]
    hidden = [text + "qqqqqqqq" if split_of(text + "qqqqqqqq") != "train" else text for text in texts]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in hidden))
    corpus = load_corpus(resolve_data(str(path), None), None, BIGRAM, 5_000, store)
    vocabulary = Tokenizer.from_str(corpus.tokenizer_json).get_vocab()
    assert len(corpus.train.tokens) == 2 * len(corpus.train.document_starts)  # every word has become a token
    assert any("qq" in text for text in decoded(corpus, corpus.validation) + decoded(corpus, corpus.test))
    assert "abab" in vocabulary
    assert not any("qq" in token for token in vocabulary)
    assert 256 < corpus.vocab_size == len(vocabulary) < 5_000


def test_the_store_is_keyed_by_all_that_matters(tmp_path: Path, store: ArtifactStore) -> None:
    data = resolve_data("pydoc", None)
    first = load_corpus(data, 60, BIGRAM, 300, store)
    again = load_corpus(data, 60, BIGRAM, 300, store)
    elsewhere = load_corpus(data, 60, BIGRAM, 300, ArtifactStore(tmp_path / "other"))
    assert first.key == again.key == elsewhere.key
    assert first.tokenizer_json == elsewhere.tokenizer_json
    np.testing.assert_array_equal(first.train.tokens, elsewhere.train.tokens)
    tiny_gpt2(tmp_path / "gpt2")
    others = [
        load_corpus(data, 61, BIGRAM, 300, store),
        load_corpus(data, 60, BIGRAM, 301, store),
        load_corpus(data, 60, resolve_embedding(str(tmp_path / "gpt2")), None, store),
    ]
    assert len({first.key, *(corpus.key for corpus in others)}) == 4


def test_token_ids_of_other_code_are_made_anew(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = resolve_data("pydoc", None)
    first = load_corpus(data, 20, BIGRAM, 300, store)
    monkeypatch.setattr(digests, "code_digest", lambda module: f"another of {module}")
    assert load_corpus(data, 20, BIGRAM, 300, store).key != first.key
    assert len(list(store.root.glob("corpus-*"))) == 2


@pytest.mark.parametrize("name", ["a [1]*.jsonl", "a.jsonl.gz"])
def test_jsonl_of_any_shape_keeps_the_order_of_the_file(tmp_path: Path, store: ArtifactStore, name: str) -> None:
    records: list[dict[str, object]] = []
    for i in range(30):
        records += [
            {"text": f"2024-01-{i:02d}", "messages": None},  # would be read as a date by inference
            {"messages": [{"role": "user", "content": f"question {i}\u2028"}, {"content": "answer\r\n"}]},
            {"text": f"text {i}", "meta": {"a": i} if i % 2 else "b", f"column{i}": [i, "x", {"y": None}]},
        ]
    texts = ["\n".join(m["content"] for m in r.get("messages") or []) or r["text"] for r in records]  # type: ignore[attr-defined]
    content = "\ufeff" + "\r\n\r\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    corpus = load_corpus(resolve_data(str(path), None), None, BIGRAM, 300, store)
    assert decoded(corpus, corpus.train) == [text for text in texts if split_of(text) == "train"]
    assert decoded(corpus, corpus.test) == [text for text in texts if split_of(text) == "test"]


def test_a_column_that_first_comes_after_ten_megabytes(tmp_path: Path, store: ArtifactStore) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for i in range(60):
            file.write(json.dumps({"text": f"{i} " + "a" * 10}) + "\n")
        file.write(json.dumps({"text": " " * 11_000_000}) + "\n")
        file.writelines(json.dumps({"messages": [{"content": f"late {i}"}]}) + "\n" for i in range(30))
    corpus = load_corpus(resolve_data(str(path), None), None, BIGRAM, 300, store)
    assert decoded(corpus, corpus.train)[-1].startswith("late")


def test_samples_are_the_first_documents(tmp_path: Path, store: ArtifactStore) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n\n" for i in range(99)))
    corpus = load_corpus(resolve_data(str(path), 60), 60, BIGRAM, 300, store)
    documents = [decoded(corpus, split) for split in (corpus.train, corpus.validation, corpus.test)]
    numbers = sorted(int(text.split()[1]) for texts in documents for text in texts)
    assert numbers == list(range(60))


def test_a_split_of_one_token_is_refused(tmp_path: Path, store: ArtifactStore) -> None:
    letters = [chr(code) for code in range(ord("A"), ord("z"))]
    test_text = next(letter for letter in letters if split_of(letter) == "test")
    texts = [test_text, *(f"longer {i}" for i in range(60) if split_of(f"longer {i}") != "test")]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(ValueError, match="the test split has fewer than 2 tokens"):
        load_corpus(resolve_data(str(path), None), None, BIGRAM, 300, store)
    assert not list((tmp_path / "cache").glob("corpus-*"))


def test_a_causal_lm_brings_its_tokenizer(tmp_path: Path, store: ArtifactStore) -> None:
    tiny_gpt2(tmp_path / "gpt2")
    limited = Tokenizer.from_file(str(tmp_path / "gpt2" / "tokenizer.json"))
    limited.enable_truncation(8)
    limited.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    corpus = load_corpus(resolve_data("pydoc", 60), 60, resolve_embedding(str(tmp_path / "gpt2")), None, store)
    own = PreTrainedTokenizerFast.from_pretrained(tmp_path / "gpt2")
    texts = texts_of("train", 60)
    expected = [token for text in texts for token in own.encode(text, add_special_tokens=False)]
    assert corpus.train.tokens.tolist() == expected
    assert decoded(corpus, corpus.train) == texts  # none is cut where the tokenizer's file says so
    assert corpus.vocab_size == len(own)


def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path: Path, store: ArtifactStore) -> None:
    tiny_gpt2(tmp_path / "gpt2")
    for content in ("{}", "no json", '{"added_tokens": [], "model": 1}'):
        (tmp_path / "gpt2" / "tokenizer.json").write_text(content)
        source = resolve_embedding(str(tmp_path / "gpt2"))
        with pytest.raises(ValueError, match="has no usable fast tokenizer: "):
            load_corpus(resolve_data("pydoc", 60), 60, source, None, store)


@pytest.fixture(scope="module")
def ultrachat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """51,100 conversations in the hub's layout."""
    folder = tmp_path_factory.mktemp("hub") / "ultrachat_200k"
    (folder / "data").mkdir(parents=True)
    rows = [[{"content": f"q{i}", "role": "user"}, {"content": f" ä{i}", "role": "assistant"}] for i in range(51_100)]
    table = pa.table({"prompt": [f"q{i}" for i in range(len(rows))], "messages": rows})
    pq.write_table(table, folder / "data" / "train_sft-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("tokenizer", ["bigram", "gpt2"])
def test_ultrachat_rows_and_the_documents_of_its_joined_splits(
    tmp_path: Path,
    store: ArtifactStore,
    ultrachat_folder: Path,
    tokenizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    source = DataSource("ultrachat", "ultrachat", str(ultrachat_folder), "ultrachat", "fingerprint")
    if tokenizer == "gpt2":
        tiny_gpt2(tmp_path / "gpt2")
        embedding, vocab_size = resolve_embedding(str(tmp_path / "gpt2")), None
    else:
        embedding, vocab_size = BIGRAM, 300
    corpus = load_corpus(source, 50, embedding, vocab_size, store)

    def texts(rows: range) -> list[str]:
        return [f"q{i}\n ä{i}" for i in rows]

    def joined(rows: range) -> list[str]:
        return [text + "\n\n" for text in texts(rows)[:-1]] + texts(rows)[-1:]

    assert decoded(corpus, corpus.train) == texts(range(50))
    for split, rows in ((corpus.validation, range(50_000, 50_020)), (corpus.test, range(51_000, 51_100))):
        assert decoded(corpus, split) == joined(rows)
        sizes = [len(text.encode()) for text in joined(rows)]
        sizes[0] -= corpus_first_token(corpus, split)
        assert split.document_bytes.tolist() == sizes
        once = Tokenizer.from_str(corpus.tokenizer_json).encode("\n\n".join(texts(rows)))
        assert split.tokens.tolist() == once.ids


def test_ultrachat_is_read_from_a_prepared_copy_without_the_hub(
    tmp_path: Path, store: ArtifactStore, ultrachat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "datasets"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.load_dataset(str(ultrachat_folder), split="train_sft")
    (prepared,) = {info.parent for info in cache.glob("*/*/*/*/dataset_info.json")}
    hub_copy = cache / ULTRACHAT.replace("/", "___") / "default" / "0.0.0" / "0123abc"
    shutil.copytree(prepared, hub_copy)
    source = resolve_data("ultrachat", 10)
    assert source.revision == "0123abc"
    corpus = load_corpus(source, 10, BIGRAM, 300, store)
    assert decoded(corpus, corpus.train) == [f"q{i}\n ä{i}" for i in range(10)]


def test_too_short_an_ultrachat_is_refused(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "short" / "data").mkdir(parents=True)
    table = pa.table({"messages": [[{"content": "a", "role": "user"}]]})
    pq.write_table(table, tmp_path / "short" / "data" / "train_sft-00000-of-00001.parquet")
    source = DataSource("ultrachat", "ultrachat", str(tmp_path / "short"), "ultrachat", "fingerprint")
    with pytest.raises(ValueError, match="has 1 conversations, fewer than 51100"):
        load_corpus(source, None, BIGRAM, 300, store)


def test_a_document_owns_the_targets_in_it_but_the_streams_first_token_is_none() -> None:
    split = Split(np.arange(7, dtype=np.int32), np.array([0, 1, 4]), np.array([1, 3, 3]), np.arange(3))
    sums, targets = split.by_document(np.array([1, 2, 4, 8, 16, 32], dtype=np.float32))
    assert targets.tolist() == [0, 3, 3]
    assert sums.tolist() == [0, 7, 56]


def test_a_file_that_is_written_to_while_it_is_read_leaves_nothing_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "d.jsonl"
    whole = "".join(json.dumps({"text": f"document number {number} of some words"}) + "\n" for number in range(60))
    file.write_text(whole)
    data, store = resolve_data(str(file), None), ArtifactStore(tmp_path / "cache")
    file.write_text(whole.replace("some", "other"))
    with pytest.raises(ValueError, match="was written to while it was read"):
        load_corpus(data, None, resolve_embedding("bigram"), 280, store)
    file.write_text(whole)
    assert "some" in load_corpus(data, None, resolve_embedding("bigram"), 280, store).tokenizer_json
