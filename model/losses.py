"""Losses and measures of both phases: dispersion (OACD), cross-entropy on a frozen head, effective rank."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN_WEIGHT = 0.1  # of the squared norm of a block's mean in the dispersion loss
LOGITS_PER_CHUNK = 1 << 26  # entries of the largest logits tensor: 256 MiB in fp32


def block_spans(length: int, block: int) -> list[tuple[int, int]]:
    """Consecutive blocks of a stream as (start, stop); a last block of one row joins its neighbour.

    Raises:
        ValueError: fewer than two positions.
    """
    if length < 2:
        raise ValueError(f"a stream needs at least 2 tokens, not {length}")
    starts = list(range(0, length, block))
    if len(starts) > 1 and length - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def block_dispersion(blocks: Tensor) -> Tensor:
    """OACD per block: `-||X - mean(X)||_F / n + 0.1 ||mean(X)||^2`.  # (B, n, D) -> (B,)"""
    mean = blocks.mean(dim=1)  # (B, D)
    deviation = torch.linalg.vector_norm(blocks - mean[:, None], dim=(1, 2))
    losses: Tensor = -deviation / blocks.shape[1] + MEAN_WEIGHT * mean.square().sum(dim=1)
    return losses


def effective_rank(contexts: Tensor, max_rows: int, generator: torch.Generator) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli, 2007), over D.

    Args:
        contexts: not centred.  # (N, D)
        max_rows: this many rows, drawn without replacement, if there are more.
        generator: on the CPU.

    Returns:
        A share in (0, 1]; the reports quote it as per cent of D.
    """
    if len(contexts) > max_rows:
        rows = torch.randperm(len(contexts), generator=generator)[:max_rows]
        contexts = contexts[rows.to(contexts.device)]
    # The Gram matrix is D × D however many rows there are; fp64 keeps singular values down to 1e-8 of the largest.
    wide = contexts.double()
    singular = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0).sqrt()
    share = singular / singular.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return float(entropy.exp()) / contexts.shape[1]


def _rows_per_chunk(vocab_size: int) -> int:
    return max(1, LOGITS_PER_CHUNK // vocab_size)


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ table.T`; the gradient of `hidden` is made on the way, none of `table`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.empty_like(hidden)  # (n, E)
        losses = hidden.new_empty(len(hidden))
        step = _rows_per_chunk(len(table))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            scores = hidden[rows] @ table.T  # (r, V)
            top = scores.amax(dim=1, keepdim=True)
            target = scores.gather(1, targets[rows, None]) - top
            total = scores.sub_(top).exp_().sum(dim=1, keepdim=True)  # scores now hold unnormalised probabilities
            losses[rows] = (total.log() - target)[:, 0]
            gradient[rows] = (scores @ table).div_(total).sub_(F.embedding(targets[rows], table))
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_outputs[0] / len(gradient)), None, None


def frozen_head_cross_entropy(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats under the frozen tied head.

    Two matrix products, not three: the table gets no gradient. Logits exist one chunk of rows at a time.

    Args:
        hidden: the TokenBlock's output.  # (n, E)
        table: the tied embedding.  # (V, E)
        targets: next tokens.  # (n,) int64
    """
    loss: Tensor = _FrozenHeadCrossEntropy.apply(hidden, table, targets)
    return loss


@torch.no_grad()
def head_scores(hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each position's loss in nats, and whether its most likely token is the target.

    Args as in `frozen_head_cross_entropy`.  # -> (n,) float, (n,) bool
    """
    losses = hidden.new_empty(len(hidden))
    correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    step = _rows_per_chunk(len(table))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        scores = hidden[rows] @ table.T  # (r, V)
        losses[rows] = torch.logsumexp(scores, dim=1) - scores.gather(1, targets[rows, None])[:, 0]
        correct[rows] = scores.argmax(dim=1) == targets[rows]
    return losses, correct
