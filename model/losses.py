"""Phase 1's loss and measure: dispersion (OACD) and effective rank."""

import random

import torch
from torch import Tensor

from model.ops.plain import BlockGradient

MEAN_WEIGHT = 0.1  # of the squared norm of a block's mean in the dispersion loss


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


def block_dispersion(mean: Tensor, deviation: Tensor, length: int) -> tuple[Tensor, BlockGradient]:
    """OACD of each block X of n rows, `-||X - mean(X)||_F / n + 0.1 ||mean(X)||^2`, and its gradient.

    Args:
        mean: of each block's rows.  # (B, W)
        deviation: `||X - mean(X)||_F`.  # (B,)
        length: n.

    Returns:
        The losses (B,), and d sum(losses) / dX: affine in each row, so no tensor of X's size is made.
    """
    losses = -deviation / length + MEAN_WEIGHT * mean.square().sum(dim=1)
    # -(x - mean) / (n ||X - mean||) + 0.2 mean / n; the norm's gradient at 0 is 0, as in autograd
    pull = torch.where(deviation > 0, 1 / (length * deviation), 0.0)
    shift = mean * (pull + 2 * MEAN_WEIGHT / length)[:, None]
    return losses, BlockGradient(-pull, shift, length)


def effective_rank(contexts: Tensor, max_rows: int, seed: int) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli, 2007), over D.

    Args:
        contexts: not centred.  # (N, D)
        max_rows: this many rows, drawn without replacement, if there are more.
        seed: of the draw.

    Returns:
        A share in (0, 1]; the reports quote it as per cent of D.
    """
    if len(contexts) > max_rows:
        rows = random.Random(seed).sample(range(len(contexts)), max_rows)  # its time does not grow with the stream
        contexts = contexts[torch.tensor(rows, device=contexts.device)]
    # The Gram matrix is D × D however many rows there are; fp64 keeps singular values down to 1e-8 of the largest.
    wide = contexts.double()
    singular = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0).sqrt()
    share = singular / singular.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return float(entropy.exp()) / contexts.shape[1]
