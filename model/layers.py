"""The parameters of the two blocks. `model.ops.passes` computes with them."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from model.modes import Reads

WEIGHT_STD = 0.1
BIAS_STD = 0.01


class _Layer(nn.Module):
    """`LayerNorm(x + GELU(W [other; x] + b))`-shaped layer: weights, bias, norm; eps 1e-5, exact GELU."""

    def __init__(self, out_dim: int, in_dim: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim).normal_(0, WEIGHT_STD, generator=generator))
        self.bias = nn.Parameter(torch.empty(out_dim).normal_(0, BIAS_STD, generator=generator))
        self.norm = nn.LayerNorm(out_dim)


class ContextLayer(_Layer):
    """`h' = LayerNorm(h + GELU(A [h; e] + b))`; `weight` is A (D × (D+E)), the h columns first."""

    def halves(self) -> tuple[Tensor, Tensor]:
        """A's columns for h (D, D) and for e (D, E): the embedding is frozen, so the second half is a table."""
        size = len(self.bias)
        return self.weight[:, :size], self.weight[:, size:]


class ContextBlock(nn.Module):
    """C context layers in a row; the recurrence feeds the last layer's output to the next position."""

    def __init__(self, context_dim: int, embedding_dim: int, num_layers: int, generator: torch.Generator | None = None):
        super().__init__()
        self.context_dim = context_dim
        in_dim = context_dim + embedding_dim
        self.layers = nn.ModuleList(ContextLayer(context_dim, in_dim, generator) for _ in range(num_layers))

    def __iter__(self) -> Iterator[ContextLayer]:
        return cast(Iterator[ContextLayer], iter(self.layers))


class TokenLayer(_Layer):
    """`x' = LayerNorm(x + GELU(B [c; x] + b))`; `weight` is B, the c columns first, or E × E without context."""

    @property
    def reads_context(self) -> bool:
        """Whether there are columns for a context."""
        return self.weight.shape[1] > len(self.bias)


class TokenBlock(nn.Module):
    """T token layers; which context each of them reads is given by `reads` (model.modes)."""

    def __init__(self, context_dim: int, embedding_dim: int, reads: Reads, generator: torch.Generator | None = None):
        super().__init__()
        self.context_dim = context_dim
        self.layers = nn.ModuleList(
            TokenLayer(embedding_dim, embedding_dim + (context_dim if read else 0), generator) for read in reads
        )

    def __iter__(self) -> Iterator[TokenLayer]:
        return cast(Iterator[TokenLayer], iter(self.layers))
