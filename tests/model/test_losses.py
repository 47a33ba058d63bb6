import pytest
import reference
import torch

from model.losses import block_dispersion, block_spans, effective_rank
from model.ops import plain


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [2, 9, 10, 11, 20, 21, 22, 29])
def test_dispersion_equals_the_textbook(length: int) -> None:
    outputs = torch.randn(length, 6, generator=generator(), dtype=torch.float64) + 0.3
    spans = block_spans(length, 10)
    leaf = outputs.clone().requires_grad_()
    expected = reference.dispersion_loss(leaf, 10)
    expected.backward()
    loss, gradients = torch.zeros((), dtype=torch.float64), []
    for start, stop in spans:
        rows = outputs[start:stop]
        losses, gradient = block_dispersion(*plain.spread(rows, 1), stop - start)
        loss += losses.sum() / len(spans)
        gradients.append(gradient.times(1 / len(spans)).dense(rows))
    assert torch.allclose(loss, expected.detach(), rtol=1e-12)
    assert leaf.grad is not None
    assert torch.allclose(torch.cat(gradients), leaf.grad, rtol=1e-9)


def test_a_block_of_equal_rows_has_a_finite_gradient() -> None:
    rows = torch.ones(4, 3, dtype=torch.float64)
    leaf = rows.clone().requires_grad_()
    reference.dispersion_loss(leaf, 10).backward()
    losses, gradient = block_dispersion(*plain.spread(rows, 1), 4)
    assert float(losses) == pytest.approx(0.3)
    assert leaf.grad is not None
    assert torch.allclose(gradient.dense(rows), leaf.grad)


def test_a_block_of_one_row_joins_its_neighbour() -> None:
    assert block_spans(21, 10) == [(0, 10), (10, 21)]
    assert block_spans(22, 10) == [(0, 10), (10, 20), (20, 22)]
    assert block_spans(5, 10) == [(0, 5)]
    with pytest.raises(ValueError, match="at least 2 tokens, not 1"):
        block_spans(1, 10)


def test_effective_rank_equals_its_definition() -> None:
    rows = torch.randn(200, 10, generator=generator()) * torch.logspace(0, -3, 10)
    assert effective_rank(rows, 1_000, 0) == pytest.approx(float(reference.effective_rank(rows.double())))
    assert effective_rank(torch.eye(10), 1_000, 0) == pytest.approx(1.0)
    assert effective_rank(torch.ones(50, 10), 1_000, 0) == pytest.approx(0.1, abs=1e-3)


def test_effective_rank_draws_rows_once_per_seed() -> None:
    rows = torch.randn(500, 10, generator=generator())
    drawn = [effective_rank(rows, 40, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
