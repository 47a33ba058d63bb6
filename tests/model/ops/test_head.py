"""The frozen head against cross-entropy and autograd on full logits."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.ops.chunks import Chunks
from model.ops.compute import Compute
from model.ops.head import FrozenHead

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textbook(hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (n,) and the gradient of their mean (n, E), in fp64."""
    leaf = hidden.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(leaf @ table.double().T, targets, reduction="none")
    losses.mean().backward()
    assert leaf.grad is not None
    return losses.detach(), leaf.grad


NATIVE = pytest.param(Compute.of("cpu"), torch.float32, 1e-5, marks=pytest.mark.skipif(DEVICE != "cpu", reason="a GPU"))


@pytest.mark.parametrize(
    ("compute", "dtype", "tolerance"), [(Compute(), torch.float64, 1e-12), (Compute(), torch.float32, 1e-5), NATIVE]
)
@pytest.mark.parametrize("logits_per_chunk", [1, 53 * 7, 1 << 26])
def test_loss_and_gradient_equal_cross_entropy(
    compute: Compute, dtype: torch.dtype, tolerance: float, logits_per_chunk: int
) -> None:
    hidden = torch.randn(31, 12, generator=generator(1), dtype=dtype).to(DEVICE)
    table = torch.randn(53, 12, generator=generator(2), dtype=dtype).to(DEVICE)
    targets = torch.randint(53, (31,), generator=generator(3)).to(DEVICE)
    expected, wanted = textbook(hidden, table, targets)
    head = FrozenHead(table, replace(compute, chunks=Chunks(logits=logits_per_chunk)))
    losses, gradient = head.gradient(hidden, targets)
    assert (losses - expected).norm() < tolerance * expected.norm()
    assert (gradient - wanted).norm() < tolerance * wanted.norm()
    scores, correct = head.scores(hidden, targets)
    assert (scores - expected).norm() < tolerance * expected.norm()
    logits = hidden @ table.T
    assert torch.equal(correct, logits.argmax(dim=1) == targets)
    order = logits.argsort(dim=1, descending=True)
    assert torch.equal(head.ranks(hidden, targets), (order == targets[:, None]).int().argmax(dim=1))


@pytest.mark.parametrize("vocab", [53, 64, 1000])
@pytest.mark.parametrize("logits_per_chunk", [64 * 70, 1 << 26])
def test_bf16_head_and_its_padded_columns(vocab: int, logits_per_chunk: int) -> None:
    pytest.importorskip("triton")
    table = (
        0.5 * torch.randn(vocab, 32, generator=generator(2)).to(DEVICE) - 0.5
    )  # a zero column would win every softmax
    hidden = torch.rand(301, 32, generator=generator(1)).to(DEVICE).bfloat16()
    targets = torch.randint(vocab, (301,), generator=generator(3)).to(DEVICE)
    expected, wanted = textbook(hidden, table.bfloat16(), targets)
    head = FrozenHead(table, Compute(fused=True, bf16=True, chunks=Chunks(logits=logits_per_chunk)))
    assert head.weight.shape[0] % 64 == 0
    losses, gradient = head.gradient(hidden, targets)
    assert abs(losses.double().mean() - expected.mean()) < 1e-3 * expected.mean()
    assert (gradient - wanted).norm() < 2e-2 * wanted.norm()
    assert torch.cosine_similarity(gradient.double().flatten(), wanted.flatten(), dim=0) > 0.999
    scores, correct = head.scores(hidden, targets)
    assert (scores - expected).norm() < 1e-5 * expected.norm()  # scored on logits that are not rounded
    logits = hidden.double() @ table.bfloat16().double().T
    assert torch.equal(correct, logits.argmax(dim=1) == targets)
    assert torch.equal(head.ranks(hidden, targets) == 0, correct)


def test_large_scores_do_not_overflow() -> None:
    hidden = torch.randn(4, 8, generator=generator(0)) * 1e3
    table = torch.randn(9, 8, generator=generator(1))
    losses, gradient = FrozenHead(table, Compute()).gradient(hidden, torch.tensor([0, 1, 2, 3]))
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
