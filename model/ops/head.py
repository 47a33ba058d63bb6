"""The frozen tied head: losses and the hidden state's gradient in two matrix products, none for the table."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.compute import Compute

COLUMNS = 64  # the vocabulary is padded to a multiple: odd sizes take bf16 products off their fast kernels


class FrozenHead:
    """`logits = hidden @ table.T` for losses, scores and gradients of `hidden`."""

    def __init__(self, table: Tensor, compute: Compute) -> None:
        """Lay the table (V, E) out for products; it is not copied where it already is."""
        self.compute, self.vocab_size = compute, len(table)
        columns = -(-len(table) // COLUMNS) * COLUMNS if compute.bf16 else len(table)
        padded = table if columns == len(table) else F.pad(table, (0, 0, 0, columns - len(table)))
        self.weight = compute.operand(padded)  # (columns, E), pads zero
        self.rows_per_chunk = max(1, compute.chunks.logits // columns)

    @torch.no_grad()
    def gradient(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the next tokens, and the gradient of its mean.

        Args:
            hidden: the TokenBlock's output, an operand.  # (n, E)
            targets: next tokens.  # (n,) int64

        Returns:
            Losses in nats, and d mean(losses) / d hidden.  # (n,) float, (n, E)
        """
        losses = torch.empty(len(hidden), device=hidden.device, dtype=self.compute.sums_dtype(hidden))
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), self.rows_per_chunk):
            rows = slice(start, start + self.rows_per_chunk)
            self.compute.ops.head_gradient(
                hidden[rows], self.weight, targets[rows], self.vocab_size, len(hidden), losses[rows], gradient[rows]
            )
        return losses, gradient

    @torch.no_grad()
    def scores(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each position's loss in nats, and whether its most likely token is the target; logits are never rounded.

        Args as in `gradient`.  # -> (n,) float, (n,) bool
        """
        losses = torch.empty(len(hidden), device=hidden.device, dtype=self.compute.sums_dtype(hidden))
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        step = max(1, self.rows_per_chunk // 8)  # fp32 logits, and as much again beside them
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            logits = self.compute.product(hidden[rows], self.weight.T)[:, : self.vocab_size]  # (r, V)
            losses[rows] = torch.logsumexp(logits, dim=1) - logits.gather(1, targets[rows, None])[:, 0]
            correct[rows] = logits.argmax(dim=1) == targets[rows]
        return losses, correct

    @torch.no_grad()
    def ranks(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """How many tokens are more likely than the target, at each position.

        Args as in `gradient`.  # -> (n,) int64
        """
        found = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
        step = max(1, self.rows_per_chunk // 8)  # as in `scores`
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            logits = self.compute.product(hidden[rows], self.weight.T)[:, : self.vocab_size]  # (r, V)
            found[rows] = (logits > logits.gather(1, targets[rows, None])).sum(dim=1)
        return found
