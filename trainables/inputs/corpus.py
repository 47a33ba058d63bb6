"""Token ids of the train, validation and test streams, and the tokenizer that made them.

`datasets` and `transformers` take seconds to import: the functions that need them do it.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.text.documents import decoded_lines, document_text, predicted_bytes, read_documents
from trainables.cache import ArtifactStore, content_key
from trainables.host import digests
from trainables.inputs.overlap import WORDS, shares_in_training
from trainables.inputs.sources import (
    SPLIT_RULE,
    SPLITS,
    ULTRACHAT_TRAIN_ROWS,
    DataSource,
    Document,
    EmbeddingSource,
    check_unchanged,
    pydoc_documents,
    split_of,
)

TOKENS, TOKENIZER, OVERLAP = "tokens.safetensors", "tokenizer.json", "overlap.json"
ULTRACHAT_VALIDATION, ULTRACHAT_TEST = range(50_000, 50_020), range(51_000, 51_100)  # rows of train_sft
BATCH = 1_000  # documents encoded at once: an encoding takes far more memory than its ids


@dataclass(frozen=True, eq=False)
class Split:
    """One stream: the tokens of all its documents in order, with nothing between them."""

    tokens: np.ndarray  # (N,) int32
    document_starts: np.ndarray  # (num_documents,) int64, ascending; the first is 0
    document_bytes: np.ndarray  # (num_documents,) int64, UTF-8 bytes of the text, the stream's first token left out
    document_sources: np.ndarray  # (num_documents,) int64, as `sources.Document.source`

    @cached_property
    def units(self) -> np.ndarray:
        """Which documents are one unit of what chance has drawn: pieces of one text, and those of the same tokens.

        # (num_documents,) int64, the number of the first document of its kind
        """
        documents = np.split(self.tokens, self.document_starts[1:])
        kinds: dict[bytes, int] = {}
        same = [kinds.setdefault(each.tobytes(), len(kinds)) for each in documents]
        _, source = np.unique(self.document_sources, return_inverse=True)
        # what hangs together through either, over several documents too
        size = len(kinds) + len(documents)
        links = coo_array((np.ones(len(documents)), (same, len(kinds) + source)), shape=(size, size))
        label = connected_components(links, directed=False)[1][same]
        _, first, unit = np.unique(label, return_index=True, return_inverse=True)
        found: np.ndarray = first[unit]
        return found

    def by_document(self, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses of the targets `tokens[1:]`, summed over the document that each target lies in.

        Args:
            losses: one for each target.  # (N-1,)

        Returns:
            Sums and number of targets. A document owns its first token; the stream's very first is no target.
            # (num_documents,) float64, (num_documents,) int64
        """
        assert losses.shape == (len(self.tokens) - 1,)
        targets = np.arange(1, len(self.tokens))
        owner = np.searchsorted(self.document_starts, targets, side="right") - 1
        number = len(self.document_starts)
        sums = np.bincount(owner, losses.astype(np.float64), minlength=number)
        return sums, np.bincount(owner, minlength=number)


@dataclass(frozen=True, eq=False)
class Corpus:
    """The three streams of one data source under one tokenizer."""

    train: Split
    validation: Split
    test: Split
    tokenizer_json: str  # a serialised `tokenizers.Tokenizer`
    vocab_size: int  # V of the tokenizer; a pretrained table may have more rows
    key: str  # of all that determines the token ids
    overlap: dict[str, float | None] = field(default_factory=dict)  # by split: trainables.inputs.overlap's shares

    @property
    def content(self) -> str:
        """Names the token ids of training and validation, whatever made them."""
        tokens = [split.tokens.tobytes() for split in (self.train, self.validation)]
        return content_key([hashlib.sha256(each).hexdigest() for each in tokens])


def load_corpus(
    data: DataSource,
    samples: int | None,
    embedding: EmbeddingSource,
    bpe_vocab_size: int | None,
    store: ArtifactStore,
) -> Corpus:
    """Token ids from the store, or made now: documents, split, tokenizer, encoding.

    Args:
        samples: the first documents only, taken before the split (UltraChat, pydoc: of those to train on).
        bpe_vocab_size: at most this many tokens, for the BPE of a bigram; None for a causal LM.

    Raises:
        ValueError: the data or the tokenizer cannot be used.
    """
    assert (bpe_vocab_size is None) == (embedding.kind == "causal_lm")
    tokenizer_identity = {"bpe": bpe_vocab_size} if bpe_vocab_size else {"causal_lm": embedding.fingerprint}
    inputs = {"data": data.fingerprint, "samples": samples, "split": SPLIT_RULE}
    key = content_key(inputs | {"tokenizer": tokenizer_identity, "code": digests.code_digest(digests.TOKENS)})

    # said before the first use: otherwise every later fork of this process prints a warning
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    def make(folder: Path) -> None:
        documents = _documents(data, samples)
        if bpe_vocab_size:
            tokenizer = _train_bpe([document.text for document in documents["train"]], bpe_vocab_size)
        else:
            tokenizer = _pretrained_tokenizer(embedding)
        arrays: dict[str, np.ndarray] = {}
        check_unchanged(embedding)
        for name in SPLITS:
            joined = data.kind == "ultrachat" and name != "train"
            split = (_encode_joined if joined else _encode)(tokenizer, documents[name])
            if len(split.tokens) < 2:
                raise ValueError(f"too little text in {data.spec}: the {name} split has fewer than 2 tokens")
            arrays |= {f"{name}.{field}": array for field, array in asdict(split).items()}
        save_file(arrays, folder / TOKENS)
        tokenizer.save(str(folder / TOKENIZER), pretty=False)

    folder, _ = store.get_or_make("corpus", key, make)
    arrays = load_file(folder / TOKENS)
    splits = {name: Split(**{each.name: arrays[f"{name}.{each.name}"] for each in fields(Split)}) for name in SPLITS}
    text = (folder / TOKENIZER).read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_str(text)
    overlap = _overlap(splits, tokenizer, key, store)
    return Corpus(**splits, tokenizer_json=text, vocab_size=tokenizer.get_vocab_size(), key=key, overlap=overlap)


def _overlap(splits: dict[str, Split], tokenizer: Tokenizer, key: str, store: ArtifactStore) -> dict[str, float | None]:
    """The shares of validation and test; an artefact of its own, so that token ids made before it was are used on."""

    def make(folder: Path) -> None:
        train, *others = (_texts(tokenizer, splits[name]) for name in SPLITS)
        shares = shares_in_training(train, dict(zip(SPLITS[1:], others, strict=True)))
        (folder / OVERLAP).write_text(json.dumps(shares))

    folder, _ = store.get_or_make("overlap", content_key({"corpus": key, "words": WORDS}), make)
    shares: dict[str, float | None] = json.loads((folder / OVERLAP).read_text())
    return shares


def _texts(tokenizer: Tokenizer, split: Split) -> list[str]:
    """The documents' texts, from their token ids."""
    documents = np.split(split.tokens, split.document_starts[1:])
    texts: list[str] = tokenizer.decode_batch([ids.tolist() for ids in documents], skip_special_tokens=False)
    return texts


def _documents(data: DataSource, samples: int | None) -> dict[str, list[Document]]:
    """The documents of each split, in the source's order."""
    if data.kind == "ultrachat":
        return _ultrachat_documents(data, samples)
    splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
    if data.kind == "pydoc":
        for document in pydoc_documents():
            splits[document.split].append(document)
        return splits | {"train": splits["train"][:samples]}
    path = Path(data.location)
    lines = decoded_lines(path, data.spec)
    for number, text in enumerate(islice(read_documents(lines, data.spec), samples)):
        splits[split_of(text)].append(Document(text, split_of(text), number))
    # After it was read: what is kept under a content's name is that content's, also where the file was written to
    # since the command began.
    check_unchanged(data)
    return splits


def _ultrachat_documents(data: DataSource, samples: int | None) -> dict[str, list[Document]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(data.location, split="train_sft", revision=data.revision)
    except OSError as error:  # also what `datasets` raises where the hub does not answer
        raise ValueError(f"{data.location} cannot be loaded: {error}") from error
    if len(rows) < ULTRACHAT_TEST.stop:
        raise ValueError(f"{data.location} has {len(rows)} conversations, fewer than {ULTRACHAT_TEST.stop}")
    rows = rows.select_columns(["messages"])

    train, validation, test = SPLITS
    rows_of = {train: range(samples or ULTRACHAT_TRAIN_ROWS), validation: ULTRACHAT_VALIDATION, test: ULTRACHAT_TEST}
    return {
        name: [
            Document(text, name, number)
            for number, row in zip(chosen, rows.select(chosen), strict=True)
            if (text := document_text(row)).strip()
        ]
        for name, chosen in rows_of.items()
    }


def _train_bpe(documents: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: all 256 bytes, then merges until `vocab_size` or until nothing is left to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    return tokenizer


def _pretrained_tokenizer(embedding: EmbeddingSource) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(embedding.location, revision=embedding.revision)
        tokenizer: Tokenizer = wrapped.backend_tokenizer
    except Exception as error:  # a damaged file raises anything, plain Exception included
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(f"embedding {embedding.spec!r} has no usable fast tokenizer: {reason}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer: Tokenizer, documents: list[Document]) -> Split:
    """The documents encoded one by one; one without tokens is dropped."""
    ids: list[np.ndarray] = []
    sizes: list[int] = []
    sources: list[int] = []
    for begin in range(0, len(documents), BATCH):
        batch = documents[begin : begin + BATCH]
        encodings = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            text = document.text
            if len(encoding) == 0:
                continue
            if not ids:
                whole = tokenizer.encode(text, add_special_tokens=False)  # the fast way knows no characters
                sizes.append(predicted_bytes(text, whole.token_to_chars(0)))
            else:
                sizes.append(len(text.encode()))
            ids.append(np.asarray(encoding.ids, dtype=np.int32))
            sources.append(document.source)
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)[:-1]
    tokens = np.concatenate([np.empty(0, np.int32), *ids])
    return Split(tokens, starts, np.asarray(sizes, dtype=np.int64), np.asarray(sources, dtype=np.int64))


def _encode_joined(tokenizer: Tokenizer, documents: list[Document]) -> Split:
    """The documents joined by a blank line and encoded once; a blank line counts to the document before it.

    A token that holds characters of two documents counts to the later one.
    """
    texts = [document.text + "\n\n" for document in documents[:-1]] + [documents[-1].text]
    encoding: Any = tokenizer.encode("".join(texts), add_special_tokens=False)
    # by the tokens' ends, in characters: some tokenizers leave leading white space out of a token's offsets
    ends = np.maximum.accumulate([end for _, end in encoding.offsets], dtype=np.int64)
    character_starts = np.cumsum([0, *(len(text) for text in texts)])[:-1]
    starts = np.searchsorted(ends, character_starts, side="right").astype(np.int64)
    lengths = np.diff([*starts, len(ends)])
    sizes = np.asarray([len(text.encode()) for text in texts], dtype=np.int64)
    own = lengths > 0
    first = int(own.argmax())
    sizes[first] = predicted_bytes(texts[first], (0, int(ends[0] - character_starts[first])))
    sources = np.asarray([document.source for document in documents], dtype=np.int64)
    return Split(np.asarray(encoding.ids, dtype=np.int32), starts[own], sizes[own], sources[own])
