"""What `--data` and `--embedding` name, checked within seconds, before anything slow is imported.

Every mistake in them is a ValueError of one sentence. No torch, datasets or transformers here; the
Hugging Face hub is asked for a commit only, and only where the name is not in the local cache.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from model.text.documents import check_file, decoded_lines, read_documents
from trainables.cache import content_key, file_sha256
from trainables.inputs.hub import hub_commit, model_files
from trainables.records import check_path

SPLIT_RULE = 3  # raise when the documents or their split change: the token ids of old caches then miss
ULTRACHAT = "HuggingFaceH4/ultrachat_200k"
ULTRACHAT_TRAIN_ROWS = 50_000  # the validation rows follow
PYDOC_DOCUMENT_BYTES = 2_000
PYDOC_HELD_OUT = 54  # topics that are not trained on: the shortest, so that they are many and most text is left
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    text: str
    split: str  # one of `SPLITS`
    source: int  # documents of one number are pieces of one text, and no independent draws


@dataclass(frozen=True)
class DataSource:
    """A text corpus that is there and well-formed."""

    kind: str  # pydoc, ultrachat or jsonl
    spec: str  # as the user gave it
    location: str  # absolute path of a jsonl; dataset id, or folder of that form, of an ultrachat; else ""
    label: str  # short and safe in a file name
    fingerprint: str  # of the content
    revision: str | None = None  # commit of a hub dataset


@dataclass(frozen=True)
class EmbeddingSource:
    """Where the tied embedding and the tokenizer come from."""

    kind: str  # bigram or causal_lm
    spec: str  # as the user gave it
    location: str  # absolute path of a folder, or the name on the hub; "" for bigram
    fingerprint: str  # of the content; a bigram's settings are not in it
    revision: str | None = None  # commit of a hub model


def resolve_data(spec: str, samples: int | None) -> DataSource:
    """Check that `spec` (pydoc, ultrachat, or a .jsonl/.jsonl.gz path) can be trained on.

    `samples` takes the first documents only, of pydoc and ultrachat the first to train on; a document is a text that is
    not blank.

    Raises:
        ValueError: it cannot; the message says why and, for a line of a file, where.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    if spec == "ultrachat":
        return _resolve_ultrachat(spec, samples)
    if spec == "pydoc":
        texts = [document.text for document in pydoc_documents()]
        return DataSource("pydoc", spec, "", "pydoc", content_key(texts))
    path = _jsonl_path(spec)
    lines = decoded_lines(path, spec)
    _require_three_splits(spec, islice(read_documents(lines, spec), samples))
    for _ in lines:  # lines that are not taken must still decode: they are read in large blocks later
        pass
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:60] or "data"
    return DataSource("jsonl", spec, str(path), label, file_sha256(path)[:16])


def check_unchanged(source: "DataSource | EmbeddingSource") -> None:
    """Whether a file or folder still has the content that it was checked with.

    Raises:
        ValueError: it was written to meanwhile.
    """
    if source.kind == "jsonl":
        now = file_sha256(Path(source.location))[:16]
    elif source.kind == "causal_lm" and Path(source.location).is_dir():
        now = _folder_fingerprint(Path(source.location), source.spec)
    else:
        return
    if now != source.fingerprint:
        raise ValueError(f"{source.spec} was written to while it was read: start again once it is whole")


def _folder_fingerprint(folder: Path, spec: str) -> str:
    return content_key({file.name: file_sha256(file) for file in model_files(folder, spec)})


def is_chat(data: DataSource) -> bool:
    """Whether the documents are conversations; of a file, whether its first one is."""
    if data.kind != "jsonl":
        return data.kind == "ultrachat"
    lines = (line.strip().removeprefix("\ufeff") for line in decoded_lines(Path(data.location), data.spec))
    return json.loads(next(filter(None, lines))).get("messages") is not None


def split_of(text: str) -> str:
    """train, validation or test (80/10/10), by the text alone: order and duplicates do not matter."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def pydoc_documents() -> list[Document]:
    """CPython's language reference in `pydoc_data.topics`, the shortest topic first, in pieces of at most 2,000 bytes.

    Topics repeat each other: a paragraph that a shorter one has is left out. All pieces of a topic are in one split. Of
    the `PYDOC_HELD_OUT` shortest every third is for testing, the others for validation.

    A topic is cut at blank lines, and a paragraph that is longer at line ends; neighbouring pieces share
    a document while they fit. Only a single longer line could make a longer document.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    own: list[list[str]] = []  # each topic's paragraphs
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                paragraphs.append(paragraph)
            seen.add(words)
        if any(paragraph.strip() for paragraph in paragraphs):
            own.append(paragraphs)
    held_out = ("validation", "validation", "test")
    return [
        Document(text, held_out[number % 3] if number < PYDOC_HELD_OUT else "train", number)
        for number, paragraphs in enumerate(own)
        for text in _cut(paragraphs)
        if text.strip()
    ]


def _cut(paragraphs: list[str]) -> list[str]:
    documents, current = [], ""
    for paragraph in paragraphs:
        pieces = paragraph.split("\n") if len(paragraph.encode()) > PYDOC_DOCUMENT_BYTES else [paragraph]
        for index, piece in enumerate(pieces):
            joined = current + ("\n" if index else "\n\n") + piece if current else piece
            if len(joined.encode()) > PYDOC_DOCUMENT_BYTES and current:
                documents.append(current)
                joined = piece
            current = joined
    return [*documents, current]


def _require_three_splits(name: str, documents: Iterable[str]) -> None:
    counts: Counter[str] = Counter()
    first, one_text = None, True
    for text in documents:
        counts[split_of(text)] += 1
        first = text if first is None else first
        one_text = one_text and text == first
    if any(counts[split] == 0 for split in SPLITS):
        found = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        same = "; they are all one text, and equal ones are in one split" if one_text and counts.total() > 1 else ""
        needs = f"each needs at least one{same} (what has no text is left out)"
        raise ValueError(f"too few documents in {name}: {counts.total()} give {found}, {needs}")


def _jsonl_path(spec: str) -> Path:
    path = Path(os.path.expanduser(spec)).absolute()
    if path.is_dir():
        raise ValueError(f"data {spec!r} is a folder; give one .jsonl or .jsonl.gz file")
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"data must be pydoc, ultrachat, or a .jsonl or .jsonl.gz file, not {spec!r}")
    check_file(path, f"data file {spec!r}")
    check_path(path)
    return path


def _resolve_ultrachat(spec: str, samples: int | None) -> DataSource:
    if samples is not None and samples > ULTRACHAT_TRAIN_ROWS:
        limit = f"at most {ULTRACHAT_TRAIN_ROWS} (the validation conversations follow)"
        raise ValueError(f"samples of ultrachat must be {limit}, not {samples}")
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets")).expanduser()
    # `datasets` ends a prepared dataset's folder with the commit; where it is offline it takes the newest
    prepared = root.glob(f"{ULTRACHAT.replace('/', '___')}/*/*/*/dataset_info.json")
    cached = sorted((info.parent for info in prepared), key=lambda folder: folder.stat().st_mtime)
    advice = "use --data pydoc or a .jsonl file, or load the dataset once with `datasets` to have it cached"
    commit = cached[-1].name if cached else hub_commit("dataset", ULTRACHAT, advice)
    return DataSource("ultrachat", spec, ULTRACHAT, "ultrachat", content_key([ULTRACHAT, commit]), commit)


def resolve_embedding(spec: str) -> EmbeddingSource:
    """Check that `spec` (bigram, or a causal LM's local folder or hub name) can be had.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if spec == "bigram":
        return EmbeddingSource("bigram", spec, "", "bigram")
    folder = Path(os.path.expanduser(spec)).absolute()
    if folder.is_dir():
        check_path(folder)
        return EmbeddingSource("causal_lm", spec, str(folder), _folder_fingerprint(folder, spec))
    if folder.exists():
        raise ValueError(f"embedding {spec!r} is a file; give the folder that holds config.json")
    if spec.startswith((".", "~", "/")) or spec.count("/") > 1 or "\\" in spec:
        raise ValueError(f"embedding folder {spec!r} does not exist")
    advice = "use --embedding bigram, or a local folder with config.json, tokenizer and safetensors weights"
    commit = hub_commit("model", spec, advice)
    return EmbeddingSource("causal_lm", spec, spec, f"{spec}@{commit}", commit)
