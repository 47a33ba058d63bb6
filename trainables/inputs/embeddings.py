"""The frozen V × E table: a causal LM's input embedding, or one trained here as a bigram language model.

The bigram: x = LayerNorm(W[token]), hidden = LayerNorm(x + GELU(Linear(x))), logits = hidden W^T, both
LayerNorms without affine. Its validation PPL is the line that a model with context must beat.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from model.seeds import seeded
from trainables.cache import ArtifactStore, content_key
from trainables.config import BigramConfig
from trainables.host.digests import TABLE as TABLE_CODE
from trainables.host.digests import code_digest
from trainables.inputs.corpus import Corpus
from trainables.inputs.hub import WEIGHTS, WEIGHTS_INDEX
from trainables.inputs.sources import EmbeddingSource, check_unchanged

KIND, TABLE, SCORE = "embedding", "table.safetensors", "score.json"
INIT_STD = 0.05  # of W
CHUNK = 1_024  # distinct tokens scored at once: a chunk of (CHUNK, V) log-probabilities is in memory


@dataclass(frozen=True)
class BigramScore:
    """How well the bigram that made a table predicts the validation stream."""

    val_ppl: float
    val_acc: float  # top-1, in [0, 1]


@dataclass(frozen=True, eq=False)
class Embedding:
    """A frozen table, tied as the output head."""

    table: np.ndarray  # (V, E) float32
    name: str  # as the user gave it
    bigram: BigramScore | None  # None for a causal LM's


def load_embedding(
    source: EmbeddingSource,
    corpus: Corpus,
    bigram: BigramConfig | None,
    store: ArtifactStore,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> Embedding:
    """The table of `source` for the tokens of `corpus`; a bigram's is kept in the store.

    Args:
        bigram: the settings, where `source` is the bigram.
        device: where a bigram is trained; on the CPU its result is deterministic.
        on_epoch: called with the epoch (from 1) and its validation PPL, where one is trained.

    Raises:
        ValueError: no such tensor, a table with fewer rows than the tokenizer has ids, or a diverged bigram.
    """
    if source.kind == "causal_lm":
        table = _causal_lm_table(source)
        check_unchanged(source)
        highest = max(int(split.tokens.max()) for split in (corpus.train, corpus.validation, corpus.test))
        if highest >= len(table):
            rows = f"{len(table)} rows, too few for its tokenizer's id {highest}"
            raise ValueError(f"the embedding of {source.spec!r} has {rows}")
        return Embedding(table, source.spec, None)
    assert bigram is not None
    settings = bigram
    inputs = {
        "tokens": corpus.content,
        "bigram": dataclasses.asdict(settings),
        "code": code_digest(TABLE_CODE),
        "torch": torch.__version__,
    }  # no device: a table, once made, serves every one

    def make(folder: Path) -> None:
        table, score = _train_bigram(corpus, settings, torch.device(device), on_epoch)
        save_file({"table": table}, folder / TABLE)
        (folder / SCORE).write_text(json.dumps(dataclasses.asdict(score)))

    folder, _ = store.get_or_make(KIND, content_key(inputs), make)
    return _read(folder, source)


def _read(folder: Path, source: EmbeddingSource) -> Embedding:
    score = BigramScore(**json.loads((folder / SCORE).read_text()))
    return Embedding(load_file(folder / TABLE)["table"], source.spec, score)


def kept_tables(source: EmbeddingSource, store: ArtifactStore) -> Iterator[Embedding]:
    """All bigrams' tables in the store, whatever code and machine made them."""
    return (_read(folder, source) for folder in store.intact(KIND))


class _Bigram(nn.Module):
    """Predicts the next token from the current one alone."""

    def __init__(self, vocab_size: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab_size, dim, generator=generator) * INIT_STD)  # (V, E)
        self.linear = nn.Linear(dim, dim)
        with torch.no_grad():  # nn.Linear's own range, from the run's generator
            for parameter in self.linear.parameters():
                parameter.uniform_(-(dim**-0.5), dim**-0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of the next token, (len(tokens), V)."""
        dim = self.table.shape[1:]
        x = F.layer_norm(F.embedding(tokens, self.table), dim)
        hidden = F.layer_norm(x + F.gelu(self.linear(x)), dim)
        return F.log_softmax(hidden @ self.table.T, dim=-1)


def _train_bigram(
    corpus: Corpus,
    config: BigramConfig,
    device: torch.device,
    on_epoch: Callable[[int, float], None] | None,
) -> tuple[np.ndarray, BigramScore]:
    """The table of the best epoch by validation PPL, and its score."""
    generator = seeded(config.seed, "bigram")
    model = _Bigram(corpus.vocab_size, config.embedding_dim, generator).to(device)
    train = torch.tensor(corpus.train.tokens, dtype=torch.int64, device=device)  # (N,)
    validation = torch.tensor(corpus.validation.tokens, dtype=torch.int64, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_table = BigramScore(math.inf, 0.0), model.table.detach()
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(len(train) - 1, generator=generator).to(device)
        for positions in order.split(config.batch_size):
            # what follows a token depends on nothing else: each distinct token is computed once
            tokens, row = train[positions].unique(return_inverse=True)
            loss = -model(tokens)[row, train[positions + 1]].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = _evaluate(model, validation)
        if not math.isfinite(score.val_ppl):
            raise ValueError(f"the bigram embedding diverged in epoch {epoch}: use a smaller learning rate")
        if on_epoch is not None:
            on_epoch(epoch, score.val_ppl)
        if score.val_ppl < best.val_ppl:
            best, best_table = score, model.table.detach().clone()
    return best_table.cpu().numpy(), best


@torch.no_grad()
def _evaluate(model: _Bigram, stream: Tensor) -> BigramScore:
    """PPL and accuracy over all next tokens of a stream; a PPL that overflows is infinite."""
    following = stream[1:]
    tokens, row = stream[:-1].unique(return_inverse=True)
    loss = torch.zeros((), dtype=torch.float64, device=stream.device)
    correct = torch.zeros((), dtype=torch.int64, device=stream.device)
    for begin in range(0, len(tokens), CHUNK):
        log_probs = model(tokens[begin : begin + CHUNK])  # (<= CHUNK, V)
        here = (row >= begin) & (row < begin + CHUNK)
        local, target = row[here] - begin, following[here]
        loss -= log_probs[local, target].sum(dtype=torch.float64)
        correct += (log_probs.argmax(dim=-1)[local] == target).sum()
    return BigramScore(torch.exp(loss / len(following)).item(), correct.item() / len(following))


def _causal_lm_table(source: EmbeddingSource) -> np.ndarray:
    """The input embedding of a causal LM, (V, E) float32; no other weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source.location, revision=source.revision)
        with torch.device("meta"):  # shapes and names without memory
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a damaged config raises anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"embedding {source.spec!r} is no causal LM that can be read: {reason}") from error
    weight = model.get_input_embeddings().weight
    # more than one where the model ties its output head to it; the file may hold either
    names = [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is weight]
    path, key = _locate_tensor(source, names)
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(key)
    if tensor.shape != weight.shape or not tensor.is_floating_point():
        found = f"{tuple(tensor.shape)} {tensor.dtype}, not {tuple(weight.shape)} as in config.json"
        raise ValueError(f"the embedding tensor {key} of {source.spec!r} is {found}")
    return np.asarray(tensor.to(torch.float32).numpy())


def _locate_tensor(source: EmbeddingSource, names: list[str]) -> tuple[Path, str]:
    """The weight file that holds the tensor of one of `names`, and its name there.

    A file may be written from the bare base model or from a wrapper of it, so the names are compared up
    to a prefix: `wte.weight` in GPT-2's own file is `transformer.wte.weight` of the causal LM.
    """
    path, shards = _fetch(source, WEIGHTS), {}
    if path is not None:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
    else:
        index = _fetch(source, WEIGHTS_INDEX)
        if index is None:
            raise ValueError(f"embedding {source.spec!r} has no safetensors weights here or on the hub")
        shards = json.loads(index.read_text())["weight_map"]
        keys = list(shards)
    for name in names:
        found = [key for key in keys if f".{name}".endswith(f".{key}") or f".{key}".endswith(f".{name}")]
        if len(found) == 1:
            file_path = path or _fetch(source, shards[found[0]])
            if file_path is None:
                raise ValueError(f"embedding {source.spec!r}: {shards[found[0]]} cannot be had")
            return file_path, found[0]
    raise ValueError(f"embedding {source.spec!r}: no tensor named {' or '.join(names)} in its weights")


def _fetch(source: EmbeddingSource, name: str) -> Path | None:
    """One file of the model, through the hub's cache unless it is a local folder; None where it has none."""
    if source.revision is None:
        path = Path(source.location) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.location, name, revision=source.revision))
    except EntryNotFoundError:
        return None
