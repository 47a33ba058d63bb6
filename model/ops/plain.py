"""The operators of both blocks' training passes in torch's own functions: any device, any float type.

`model.ops.fused` has the same functions as Triton kernels; these are their oracle, and the fast path of a CPU.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.seeds import seeded

NORM_EPS = 1e-5


@dataclass(frozen=True)
class BlockGradient:
    """The gradient of a loss over consecutive blocks of rows whose derivative is affine in each row."""

    scale: Tensor  # (B,)
    shift: Tensor  # (B, W)
    length: int  # rows per block

    def times(self, factor: float) -> "BlockGradient":
        """The gradient of `factor` times the loss."""
        return BlockGradient(self.scale * factor, self.shift * factor, self.length)

    def dense(self, rows: Tensor) -> Tensor:
        """The gradient of all rows: `scale * row + shift` of the row's block.  # (B*length, W)"""
        blocks = rows.view(len(self.scale), self.length, -1)
        return torch.addcmul(self.shift[:, None], blocks, self.scale[:, None, None]).view_as(rows)


class Noise:
    """Gaussian noise of all sweeps of one seed."""

    def __init__(self, seed: int, std: float, size: int, device: torch.device) -> None:
        """`size` entries of a row get noise: here all of them."""
        self.std = std
        self.generator = seeded(seed, "sweep noise", device)

    def on_previous(self, carry: Tensor, state: Tensor, sweep: Tensor, start: int, length: int) -> Tensor:
        """What positions `start`.. read: the row before each, with noise. Calls must follow the stream.

        Args:
            carry: the row before the first one.  # (W,)
            state: the rows of these positions.  # (n, W)
            length: rows per loss block.
        """
        noise = torch.empty_like(state)
        for rows in noise.split(length):  # block by block, so that the size of a pass changes no noise
            rows.normal_(0, self.std, generator=self.generator)
        noise[0] += carry
        noise[1:] += state[:-1]
        return noise


Sums = tuple[Tensor, Tensor, Tensor]  # gradients of a LayerNorm's weight and bias, and of the term  # (D,) each


class Saved(NamedTuple):
    """What `residual_norm_backward` needs of a forward."""

    out: Tensor
    total: Tensor  # before the norm
    active: Tensor  # before the GELU
    mean: Tensor
    rstd: Tensor


def join(left: Tensor, right: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of `left` and, behind them, those of `right`, or those that `tokens` pick of it: together, and the latter.

    # (n, W), (n, E) or (V, E), (n,) -> (n, W+E), (n, E)
    """
    rows = right if tokens is None else F.embedding(tokens, right)
    return torch.cat([left, rows], dim=1), rows


def residual_norm(
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Saved]:
    """`LayerNorm(x + GELU(product + term))`, with exact GELU; `product` is overwritten.

    Args:
        x, product: (n, D)
        term: a bias (D,), or a table (V, D) of which `tokens` (n,) picks the rows.
        weight, bias: of the LayerNorm.  # (D,)
        size: D.
    """
    product += term if tokens is None else F.embedding(tokens, term)
    total = F.gelu(product).add_(x)
    out, mean, rstd = torch.native_layer_norm(total, [size], weight, bias, NORM_EPS)
    return out, Saved(out, total, product, mean, rstd)


def residual_norm_backward(
    grad: Tensor | BlockGradient, saved: Saved, weight: Tensor, bias: Tensor, size: int, want_x: bool = True,
    into: Sums | None = None,
) -> tuple[Tensor, Tensor, Sums]:  # fmt: skip
    """Gradients of `residual_norm`: of x and of product (n, D), and what is summed over the rows.

    The first may be anything unless `want_x`.

    Args:
        into: where the sums are put.
    """
    if isinstance(grad, BlockGradient):
        grad = grad.dense(saved.out)
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad, saved.total, [size], saved.mean, saved.rstd, weight, bias, [True, True, True]
    )
    grad_product = torch.ops.aten.gelu_backward(grad_x, saved.active)
    return grad_x, grad_product, put((grad_weight, grad_bias, grad_product.sum(0)), into)


def put(sums: Sums, into: Sums | None) -> Sums:
    """The sums, copied to `into` if that is given."""
    for source, place in zip(sums, into or (), strict=False):
        place.copy_(source)
    return sums


class Settled(NamedTuple):
    """What one step of the fixed-point iteration did to equally long blocks of rows."""

    still: Tensor  # how many rows hardly changed  # () int64
    mean: Tensor  # of each block's new rows  # (B, W)
    deviation: Tensor  # ||X - mean(X)||_F of each block's new rows X  # (B,)


def settling_norm(
    state: Tensor, num_blocks: int, threshold: float,
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int,
) -> tuple[Settled, Saved]:  # fmt: skip
    """`residual_norm` into `state`, which holds older rows, and what became of its blocks.

    Args:
        state: (n, W)
        num_blocks: equally long, one after the other.
        threshold: a mean squared change of a row under this counts as none.

    Returns:
        That, and what the backward needs.
    """
    out, saved = residual_norm(x, product, term, tokens, weight, bias, size)
    return settle(state, out, num_blocks, threshold * size), saved


def settle(state: Tensor, rows: Tensor, num_blocks: int, limit: float) -> Settled:
    """Put `rows` (n, W) into `state`; those that changed by less than `limit`, squared and summed, stand still."""
    change = torch.sub(rows, state).square_().sum(dim=1)
    state.copy_(rows)
    return Settled((change < limit).sum(), *spread(rows, num_blocks))


def spread(rows: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Mean and Frobenius norm of the deviation of each of equally long blocks.  # (n, W) -> (B, W), (B,)"""
    blocks = rows.view(num_blocks, -1, rows.shape[1])
    mean = blocks.mean(dim=1)
    return mean, torch.linalg.vector_norm(blocks - mean[:, None], dim=(1, 2))


class TokenSums:
    """Sums of rows by token, for one pass of a stream."""

    def __init__(self, tokens: Tensor, vocab_size: int) -> None:
        self.tokens, self.vocab_size = tokens, vocab_size

    def add_to(self, table: Tensor, rows: Tensor) -> None:
        """Add row t to `table[tokens[t]]`.  # (V, W), (n, W)"""
        table += torch.ops.aten.embedding_dense_backward(rows, self.tokens, self.vocab_size, -1, False)


def head_gradient(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, count: int, losses: Tensor, gradient: Tensor
) -> None:
    """Cross-entropy of the logits `hidden @ weight.T` into `losses`, and its gradient into `gradient`.

    Args:
        hidden: (n, E)
        weight: (columns, E); columns from `vocab_size` on never get probability.
        targets: (n,)
        count: by which the gradient is divided.
        losses: in nats.  # (n,)
        gradient: of `hidden`.  # (n, E)
    """
    logits = hidden @ weight.T
    losses[:], sums = softmax_gradient_(logits, targets, vocab_size)
    torch.mm(logits, weight, out=gradient)
    gradient /= (count * sums)[:, None]


def softmax_gradient_(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Logits become the cross-entropy's gradient times their row's sum of exponentials.  # (n, columns), (n,)

    Returns:
        Each row's loss in nats, and that sum, of exponentials of its logits less any one number.  # (n,), (n,)
    """
    logits = logits[:, :vocab_size]
    logits -= logits.amax(dim=1, keepdim=True)
    at_target = logits.gather(1, targets[:, None])
    total = logits.exp_().sum(dim=1, keepdim=True)
    logits.scatter_add_(1, targets[:, None], -total)
    return (total.log() - at_target)[:, 0], total[:, 0]
