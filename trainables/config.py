"""Everything that determines a run, as frozen dataclasses, and the hashes that name it. No torch.

`RunConfig.flat()` is the one flat dict that MLflow, Optuna and `best.json` carry; `RunConfig.from_flat`
reads it back.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig
from model.modes import context_reads
from trainables.cache import content_key

METHOD_VERSION = 5  # raise when the same config would give other numbers: old cached results then miss


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class Phase1Config:
    """Fixed-point fit of the ContextBlock."""

    learning_rate: float = 0.002  # Adam
    grad_clip: float = 2.0  # largest norm of the ContextBlock's gradient
    noise: float = 0.1  # standard deviation of the noise on the previous context
    block: int = 5_000  # positions per dispersion-loss block; part of the loss, which scales as 1/sqrt(block)
    threshold: float = 0.03  # mean squared change of a position that counts as converged
    converged_share: float = 0.9  # stop when this share of positions has converged
    max_sweeps: int = 60  # the random initial state counts as sweep 1

    def __post_init__(self) -> None:
        _require(self.block >= 2, "phase1_block", "at least 2", self.block)
        _require(self.max_sweeps >= 2, "phase1_max_sweeps", "at least 2", self.max_sweeps)
        _require(self.learning_rate > 0, "phase1_learning_rate", "positive", self.learning_rate)
        _require(self.grad_clip > 0, "phase1_grad_clip", "positive", self.grad_clip)
        _require(self.noise >= 0, "phase1_noise", "0 or more", self.noise)
        _require(self.threshold > 0, "phase1_threshold", "positive", self.threshold)
        _require(0 < self.converged_share <= 1, "phase1_converged_share", "in (0, 1]", self.converged_share)


@dataclass(frozen=True, kw_only=True)
class ContextsConfig:
    """How Phase 2's contexts are computed from the fitted ContextBlock."""

    train: str = "exact"  # or "last_sweep": one noiseless sweep from Phase 1's last state, as the reports did
    tolerance: float = 1e-4  # largest change of a chunk's start state that counts as none
    rank_rows: int = 10_000  # rows drawn for the effective rank
    min_rank: float = 10.0  # per cent of D: with less on the validation stream the run ends before Phase 2

    def __post_init__(self) -> None:
        _require(self.train in ("exact", "last_sweep"), "contexts_train", "exact or last_sweep", self.train)
        _require(self.tolerance > 0, "contexts_tolerance", "positive", self.tolerance)
        _require(self.rank_rows >= 1, "contexts_rank_rows", "at least 1", self.rank_rows)
        _require(0 <= self.min_rank <= 100, "contexts_min_rank", "from 0 to 100", self.min_rank)


@dataclass(frozen=True, kw_only=True)
class Phase2Config:
    """Next-token training of the TokenBlock."""

    learning_rate: float = 0.001  # Adam
    grad_clip: float = 1.0  # largest norm of the TokenBlock's gradient
    batch_size: int = 8_192  # consecutive positions per step; part of the method, never of the machine
    epochs: int = 20  # at most
    patience: int = 1  # stop after this many epochs in a row without a better validation loss

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "phase2_batch_size", "at least 1", self.batch_size)
        _require(self.epochs >= 1, "phase2_epochs", "at least 1", self.epochs)
        _require(self.patience >= 1, "phase2_patience", "at least 1", self.patience)
        _require(self.learning_rate > 0, "phase2_learning_rate", "positive", self.learning_rate)
        _require(self.grad_clip > 0, "phase2_grad_clip", "positive", self.grad_clip)


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """Pretraining of the tied embedding as a bigram language model, with its own byte-level BPE."""

    vocab_size: int = 512  # asked of the BPE; V is what its merges reach
    embedding_dim: int = 192  # E
    learning_rate: float = 0.003  # AdamW
    weight_decay: float = 0.01
    batch_size: int = 4_096  # shuffled (token, next token) pairs
    epochs: int = 4  # the best by validation is kept
    seed: int = 0  # of its own: the same table for every trial seed

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 257, "vocab_size", "at least 257 (the bytes and one merge)", self.vocab_size)
        _require(self.embedding_dim >= 2, "embedding_dim", "at least 2", self.embedding_dim)
        _require(self.epochs >= 1, "bigram_epochs", "at least 1", self.epochs)
        _require(self.batch_size >= 1, "bigram_batch_size", "at least 1", self.batch_size)
        _require(self.learning_rate > 0, "bigram_learning_rate", "positive", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: data, embedding, model, both phases and the seed."""

    data: str  # pydoc, ultrachat, or a .jsonl[.gz] path
    data_fingerprint: str  # of the content (trainables.inputs.sources)
    samples: int | None = None  # the first documents only (pydoc, ultrachat: to train on); None: all
    embedding: str  # bigram, or a causal LM's name or folder
    embedding_fingerprint: str  # of the table and tokenizer; of the settings for a bigram
    bigram: BigramConfig | None = None  # only where embedding is "bigram"
    context_layers: int = 1
    token_layers: int = 1
    context_dim: int
    context_mode: str = "prev_and_current"
    seed: int = 0
    phase1: Phase1Config = field(default_factory=Phase1Config)
    contexts: ContextsConfig = field(default_factory=ContextsConfig)
    phase2: Phase2Config = field(default_factory=Phase2Config)

    def __post_init__(self) -> None:
        context_reads(self.context_mode, self.context_layers, self.token_layers)
        _require(self.context_dim >= 1, "context_dim", "at least 1", self.context_dim)
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        _require(self.samples is None or self.samples >= 1, "samples", "at least 1", self.samples)
        bigram_given = self.bigram is not None
        _require(
            (self.embedding == "bigram") == bigram_given,
            "bigram",
            "given with that embedding only",
            self.bigram,
        )

    def model_config(self, vocab_size: int, embedding_dim: int) -> ModelConfig:
        """The model of this run on a V × E table."""
        return ModelConfig(
            vocab_size=vocab_size,
            embedding_dim=embedding_dim,
            context_dim=self.context_dim,
            context_layers=self.context_layers,
            token_layers=self.token_layers,
            context_mode=self.context_mode,
        )

    def flat(self) -> dict[str, Any]:
        """One level of keys: a nested config's field `f` becomes `<name>_f`."""
        result: dict[str, Any] = {}
        for name, value in vars(self).items():
            if dataclasses.is_dataclass(value):
                result |= {f"{name}_{key}": v for key, v in vars(value).items()}
            elif name != "bigram":
                result[name] = value
        return result

    @classmethod
    def from_flat(cls, flat: dict[str, Any]) -> "RunConfig":
        """Inverse of `flat`.

        Raises:
            ValueError: a key is unknown, or a required one is missing.
        """
        rest, kwargs = dict(flat), {}
        nested = {
            "bigram": BigramConfig,
            "phase1": Phase1Config,
            "contexts": ContextsConfig,
            "phase2": Phase2Config,
        }
        for name, kind in nested.items():
            own = {f.name: rest.pop(f"{name}_{f.name}") for f in dataclasses.fields(kind) if f"{name}_{f.name}" in rest}
            if own:
                kwargs[name] = kind(**own)
        unknown = sorted(set(rest) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown config fields: {', '.join(unknown)}")
        try:
            return cls(**kwargs, **rest)
        except TypeError as error:
            raise ValueError(f"incomplete config: {error}") from None

    def replace(self, **changes: Any) -> "RunConfig":
        """A copy with some fields changed; flat names of nested fields are allowed."""
        return RunConfig.from_flat(self.flat() | changes)

    def _inputs(self, method: int) -> dict[str, Any]:
        """What determines the token ids and the embedding: content, never the name it goes by."""
        bigram = dataclasses.asdict(self.bigram) if self.bigram else None
        return {
            "method": method,
            "data": self.data_fingerprint,
            "samples": self.samples,
            "embedding": self.embedding_fingerprint,
            "bigram": bigram,
        }

    def phase1_key(self, method: int = METHOD_VERSION) -> str:
        """Names the Phase-1 result: equal for all runs that share it, whatever their T and mode."""
        own = {"C": self.context_layers, "D": self.context_dim, "seed": self.seed}
        settings = {"phase1": dataclasses.asdict(self.phase1), "contexts": dataclasses.asdict(self.contexts)}
        return content_key(self._inputs(method) | own | settings)

    def config_hash(self, method: int = METHOD_VERSION) -> str:
        """Names the run's result: configs that are the same model share it.

        Args:
            method: another version's hashes tell what was made by it.
        """
        reads = context_reads(self.context_mode, self.context_layers, self.token_layers)
        own = {"reads": reads, "phase2": dataclasses.asdict(self.phase2)}
        return content_key({"phase1": self.phase1_key(method)} | own)
