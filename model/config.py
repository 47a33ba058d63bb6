"""The shape of a model. Importing this costs nothing: no torch."""

from dataclasses import dataclass

from model.modes import Reads, context_reads

RUN = "run.json"  # beside a trained model's files: how it was trained, and how it did


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and wiring of one two-phase language model."""

    vocab_size: int  # V, rows of the tied embedding
    embedding_dim: int  # E, width of the token stream
    context_dim: int  # D, width of the recurrent context
    context_layers: int  # C, layers of the ContextBlock
    token_layers: int  # T, layers of the TokenBlock
    context_mode: str  # which context each token layer reads (model.modes)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_dim", "context_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        _ = self.reads  # refuses an unknown mode or depth

    @property
    def reads(self) -> Reads:
        """What each token layer reads; two configs of equal sizes and reads are one model."""
        return context_reads(self.context_mode, self.context_layers, self.token_layers)

    @property
    def phase1_params(self) -> int:
        """Parameters trained in Phase 1: the ContextBlock."""
        d, e = self.context_dim, self.embedding_dim
        return self.context_layers * (d * (d + e) + d + 2 * d)

    @property
    def phase2_params(self) -> int:
        """Parameters trained in Phase 2: the TokenBlock."""
        d, e = self.context_dim, self.embedding_dim
        return sum(e * ((d if read else 0) + e) + e + 2 * e for read in self.reads)

    @property
    def total_params(self) -> int:
        """All parameters, the frozen tied table and the frozen input LayerNorm included."""
        frozen = self.vocab_size * self.embedding_dim + 2 * self.embedding_dim
        return frozen + self.phase1_params + self.phase2_params
