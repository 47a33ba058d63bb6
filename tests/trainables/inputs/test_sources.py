"""What the early checks accept, and the sentences with which they refuse."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from model.text.documents import document_text, read_documents
from trainables.inputs.sources import (
    ULTRACHAT,
    pydoc_documents,
    resolve_data,
    resolve_embedding,
    split_of,
)

GOOD = [{"text": f"document number {i}"} for i in range(60)]  # enough for three splits


def write_jsonl(path: Path, records: list[object]) -> Path:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, with caches of this test only."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def save_model_files(folder: Path) -> Path:
    """Files of the right form, which is all that the early check reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"wte.weight": np.ones((4, 2), np.float32)}, folder / "model.safetensors")
    return folder


def test_pydoc_documents_hold_every_paragraph_once_and_stay_short() -> None:
    documents = pydoc_documents()
    assert all(document.text.strip() and len(document.text.encode()) <= 2_000 for document in documents)
    words = {word for text in topics.values() for word in text.split()}
    assert {word for document in documents for word in document.text.split()} == words
    paragraphs = Counter(" ".join(p.split()) for document in documents for p in document.text.split("\n\n"))
    assert [text for text, count in paragraphs.items() if count > 1 and len(text) > 200] == []
    assert len(documents) < 1_000  # short paragraphs share a document


def test_a_pydoc_topic_is_in_one_split_and_at_least_thirty_are_for_validation() -> None:
    of_source: dict[int, set[str]] = {}
    for document in pydoc_documents():
        of_source.setdefault(document.source, set()).add(document.split)
    counts = Counter(split for splits in of_source.values() for split in splits)
    assert counts.total() == len(of_source)
    assert (counts["validation"], counts["test"]) == (36, 18)
    sizes = Counter[str]()
    for document in pydoc_documents():
        sizes[document.split] += len(document.text)
    assert sizes["train"] > 0.75 * sizes.total()


def test_split_is_a_function_of_the_text_alone() -> None:
    counts = Counter(split_of(f"document {i}") for i in range(4_000))
    assert {name: round(count / 400) for name, count in counts.items()} == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    assert [split_of(text) for text in ("é", "é2", "é3")] == ["train", "test", "validation"]


def test_pydoc_and_bigram_are_always_there() -> None:
    data = resolve_data("pydoc", None)
    assert (data.kind, data.label, data.location) == ("pydoc", "pydoc", "")
    assert data == resolve_data("pydoc", 100)
    assert resolve_embedding("bigram").kind == "bigram"


@pytest.mark.parametrize("name", ["my chat (1).jsonl", "my chat (1).jsonl.gz"])
def test_jsonl_is_named_by_its_content(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / name, list(GOOD))
    source = resolve_data(str(path), None)
    assert (source.kind, source.location, source.label) == ("jsonl", str(path), "my-chat-1")
    (tmp_path / "other").mkdir()
    same = write_jsonl(tmp_path / "other" / f"b{''.join(path.suffixes)}", list(GOOD))
    if path.suffix == ".jsonl":
        assert resolve_data(str(same), None).fingerprint == source.fingerprint
    more = write_jsonl(path, [*GOOD, {"text": "more"}])
    assert resolve_data(str(more), None).fingerprint != source.fingerprint


def test_document_text_joins_messages_and_takes_null_as_absent() -> None:
    messages = [{"role": "user", "content": "a"}, {"content": "b"}]
    assert document_text({"messages": messages, "text": "c"}) == "a\nb"
    assert document_text({"messages": None, "text": "c"}) == "c"


def test_blank_lines_and_blank_texts_are_no_documents() -> None:
    lines = ['\ufeff{"text": "a"}\r\n', "\n", '{"text": " \\n"}', '{"messages": [{"content": ""}]}', '{"text": "b"}']
    assert list(read_documents(lines, "x")) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'text': 1}", r"line 3: not a JSON object on one line \(.* at column 2\)"),
        ("[1]", "line 3: not a JSON object but a list"),
        ('{"txt": "a"}', "line 3: has neither `messages` nor `text`"),
        ('{"text": 3}', "line 3: `text` must be a string, not a int"),
        ('{"messages": []}', "line 3: `messages` must be a non-empty list"),
        ('{"messages": "a"}', "line 3: `messages` must be a non-empty list"),
        ('{"messages": [{"content": "a"}, {"role": "user"}]}', "line 3: message 2 must be an object"),
        ('{"messages": [{"content": null}]}', "line 3: message 1 must be an object"),
        ('{"text": "\\ud83d"}', "line 3: half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps(record) for record in GOOD]
    path.write_text("\n".join([good[0], "", line, *good[1:]]))
    with pytest.raises(ValueError, match=reason):
        resolve_data(str(path), None)


def test_lines_beyond_the_samples_need_only_decode(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", list(GOOD))
    with path.open("ab") as file:
        file.write(b"no json\n")
    resolve_data(str(path), len(GOOD))
    with pytest.raises(ValueError, match="line 61: not a JSON object"):
        resolve_data(str(path), len(GOOD) + 1)
    with path.open("ab") as file:
        file.write(b"\xff\n")
    with pytest.raises(ValueError, match="line 62: not UTF-8"):
        resolve_data(str(path), len(GOOD))


def test_wrong_data_names_are_refused(tmp_path: Path) -> None:
    def refuses(spec: object, reason: str, samples: int | None = None) -> None:
        with pytest.raises(ValueError, match=reason):
            resolve_data(str(spec), samples)

    refuses("pydocs", "must be pydoc, ultrachat, or a .jsonl or .jsonl.gz file, not 'pydocs'")
    refuses(tmp_path / "a.json", "must be pydoc, ultrachat, or a .jsonl")
    refuses(tmp_path / "a.jsonl", "does not exist")
    refuses(tmp_path, "is a folder")
    (tmp_path / "empty.jsonl").touch()
    refuses(tmp_path / "empty.jsonl", "is empty")
    refuses(write_jsonl(tmp_path / "a.jsonl", [{"text": ""}]), "too few documents in .*: 0 give 0 train")
    refuses(write_jsonl(tmp_path / "a.jsonl", list(GOOD)), "too few documents in .*: 1 give", samples=1)
    same = [{"text": "one and the same"}] * 40 + [{"text": " "}]
    refuses(
        write_jsonl(tmp_path / "a.jsonl", same), r"40 give .*they are all one text.*\(what has no text is left out\)"
    )
    refuses("pydoc", "samples must be at least 1, not 0", samples=0)
    refuses("ultrachat", "at most 50000", samples=50_001)


def test_compression_must_match_the_name_and_be_whole(tmp_path: Path) -> None:
    whole = write_jsonl(tmp_path / "a.jsonl.gz", list(GOOD)).read_bytes()
    cases = {
        "plain.jsonl": (whole, "is compressed with gzip but not named .gz"),
        "packed.jsonl.gz": (b'{"text": "a"}', "is not compressed with gzip but named .gz"),
        "cut.jsonl.gz": (whole[:-20], "cannot be read to its end"),
        "broken.jsonl.gz": (whole[:40] + b"\0" * 20 + whole[60:], "cannot be read to its end|not "),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            resolve_data(str(tmp_path / name), 40)


def test_ultrachat_needs_the_hub_or_a_prepared_copy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not in the local cache .* cannot be reached .*; use --data pydoc"):
        resolve_data("ultrachat", None)
    folder = tmp_path / "datasets" / "HuggingFaceH4___ultrachat_200k" / "default" / "0.0.0" / "0123abc"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    source = resolve_data("ultrachat", 2_000)
    assert (source.location, source.revision) == (ULTRACHAT, "0123abc")


def test_a_model_folder_is_named_by_its_content(tmp_path: Path) -> None:
    folder = save_model_files(tmp_path / "a")
    source = resolve_embedding(str(folder))
    assert (source.kind, source.location, source.revision) == ("causal_lm", str(folder), None)
    assert resolve_embedding(str(save_model_files(tmp_path / "b"))).fingerprint == source.fingerprint
    save_file({"wte.weight": np.zeros((4, 2), np.float32)}, folder / "model.safetensors")
    assert resolve_embedding(str(folder)).fingerprint != source.fingerprint


def test_unusable_model_folders_are_refused(tmp_path: Path) -> None:
    def refuses(reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            resolve_embedding(str(folder))

    folder = save_model_files(tmp_path / "a")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    refuses("the weights cannot be used")
    weights.unlink()
    refuses("has no safetensors weights")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "model-1.safetensors"}}')
    refuses("the weights cannot be used .*model-1.safetensors")
    weights.write_bytes(whole)
    (folder / "config.json").write_text('{"hidden": 1}')
    refuses("config.json or the weights cannot be used .*model_type")
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").unlink()
    refuses("has no config.json and no tokenizer$")
    folder = folder / "nowhere"
    refuses("does not exist")
    folder = weights
    refuses("is a file")


def test_hub_names_without_a_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'my model' is neither a folder here nor the form of a hub name"):
        resolve_embedding("my model")
    with pytest.raises(ValueError, match=r"cannot be reached .*; use --embedding bigram"):
        resolve_embedding("nobody/tiny")
    save_model_files(tmp_path / "hub/models--nobody--tiny/snapshots/0123abc")
    refs = tmp_path / "hub/models--nobody--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    source = resolve_embedding("nobody/tiny")
    assert (source.location, source.revision, source.fingerprint) == ("nobody/tiny", "0123abc", "nobody/tiny@0123abc")


def test_the_checks_import_nothing_slow() -> None:
    code = (
        "import sys; from trainables.inputs.sources import resolve_data, resolve_embedding;"
        "resolve_data('pydoc', 100); resolve_embedding('bigram');"
        "assert not {'torch', 'ray', 'mlflow', 'datasets', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
