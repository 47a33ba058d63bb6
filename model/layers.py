"""The two blocks.

The ContextBlock splits `A [h; e]` into `A_h h + A_e e`. The embedding is frozen, so `A_e e + b` takes at most
V values: a V-row table, computed once per change of the weights and gathered by token. Nothing is concatenated.
The TokenBlock's inputs change at every step, and there one product of the concatenation is the faster one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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

    def token_terms(self, embedded: Tensor) -> Tensor:
        """`A_e e + b` for every row of `embedded`."""  # (V, E) -> (V, D)
        return F.linear(embedded, self.weight[:, self.bias.shape[0] :], self.bias)

    def forward(self, hidden: Tensor, token_term: Tensor) -> Tensor:
        """One step from `hidden` with the gathered token term."""  # (n, D), (n, D) -> (n, D)
        product = F.linear(hidden, self.weight[:, : self.bias.shape[0]])
        out: Tensor = self.norm(hidden + F.gelu(product + token_term))
        return out


class ContextBlock(nn.Module):
    """C context layers in a row; the recurrence feeds the last layer's output to the next position."""

    def __init__(self, context_dim: int, embedding_dim: int, num_layers: int, generator: torch.Generator | None = None):
        super().__init__()
        self.context_dim = context_dim
        in_dim = context_dim + embedding_dim
        self.layers = nn.ModuleList(ContextLayer(context_dim, in_dim, generator) for _ in range(num_layers))

    def token_table(self, embedded: Tensor) -> Tensor:
        """All layers' token terms side by side."""  # (V, E) -> (V, C*D)
        return torch.cat([layer.token_terms(embedded) for layer in self.layers], dim=1)  # type: ignore[operator]

    def forward(self, previous: Tensor, token_terms: Tensor) -> list[Tensor]:
        """Every layer's output at n positions.

        Args:
            previous: the final context each position starts from.  # (n, D)
            token_terms: rows of `token_table`, gathered by token.  # (n, C*D)

        Returns:
            C tensors, the last one the new final context.  # each (n, D)
        """
        outputs = []
        hidden = previous
        for layer, term in zip(self.layers, token_terms.split(self.context_dim, dim=1), strict=True):
            hidden = layer(hidden, term)
            outputs.append(hidden)
        return outputs


class TokenLayer(_Layer):
    """`x' = LayerNorm(x + GELU(B [c; x] + b))`; `weight` is B, the c columns first, or E × E without context."""

    def forward(self, hidden: Tensor, context: Tensor | None) -> Tensor:
        """One layer over n positions."""  # (n, E), (n, D) | None -> (n, E)
        inputs = hidden if context is None else torch.cat([context, hidden], dim=1)
        out: Tensor = self.norm(hidden + F.gelu(F.linear(inputs, self.weight, self.bias)))
        return out


class TokenBlock(nn.Module):
    """T token layers; which context each of them reads is given by `reads` (model.modes)."""

    def __init__(self, context_dim: int, embedding_dim: int, reads: Reads, generator: torch.Generator | None = None):
        super().__init__()
        self.layers = nn.ModuleList(
            TokenLayer(embedding_dim, embedding_dim + (context_dim if read else 0), generator) for read in reads
        )

    def forward(self, embedded: Tensor, contexts: Sequence[Tensor | None]) -> Tensor:
        """The hidden state whose product with the tied table is the logits of the next token.

        Args:
            embedded: the normalised input embeddings.  # (n, E)
            contexts: what each token layer reads.  # T times (n, D) or None
        """
        hidden = embedded
        for layer, context in zip(self.layers, contexts, strict=True):
            hidden = layer(hidden, context)
        return hidden  # (n, E)
