"""The two-phase language model: frozen tied embedding, ContextBlock, TokenBlock."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.contexts import StreamContexts, exact_contexts
from model.layers import ContextBlock, TokenBlock
from model.ops.compute import Compute
from model.ops.passes import TokenPass
from model.seeds import seeded


class LanguageModel(nn.Module):
    """Embedding (frozen, tied as the head), ContextBlock (Phase 1), TokenBlock (Phase 2)."""

    table: Tensor  # (V, E) the tied embedding
    embedded: Tensor  # (V, E) its rows after the input LayerNorm: all that the blocks ever see of it

    def __init__(self, config: ModelConfig, table: Tensor, seed: int) -> None:
        """Fresh blocks on a pretrained table, in its dtype.

        Args:
            table: the embedding; not copied.  # (V, E)
            seed: of the blocks' initial weights, one generator each.
        """
        super().__init__()
        assert table.shape == (config.vocab_size, config.embedding_dim), (table.shape, config)
        self.config = config
        self.register_buffer("table", table)
        self.input_norm = nn.LayerNorm(config.embedding_dim, dtype=table.dtype).requires_grad_(
            False
        )  # frozen at identity
        with torch.no_grad():
            self.register_buffer("embedded", self.input_norm(table), persistent=False)
        d, e = config.context_dim, config.embedding_dim
        self.context_block = ContextBlock(d, e, config.context_layers, seeded(seed, "context init"))
        self.token_block = TokenBlock(d, e, config.reads, seeded(seed, "token init"))
        self.to(table.dtype)

    def contexts(self, tokens: Tensor, tolerance: float, compute: Compute | None = None) -> StreamContexts:
        """The exact contexts of one stream, run from zero, kept as operands of `compute`."""  # tokens (N,)
        return exact_contexts(self.context_block, self.embedded, tokens, tolerance, compute)

    def logits(self, tokens: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Next-token logits at every position of one stream, in full precision."""  # (N,) -> (N, V)
        contexts = self.contexts(tokens, tolerance).read(self.config.reads)
        hidden = TokenPass(self.token_block, self.embedded, Compute()).forward(tokens, contexts)
        product: Tensor = hidden @ self.table.T
        return product

    def num_parameters(self) -> int:
        """All parameters: the tied table, the frozen input LayerNorm and both blocks."""
        return self.table.numel() + sum(p.numel() for p in self.parameters())
