import math

import pytest
import reference
import torch

from model import losses as losses_module
from model.losses import block_dispersion, block_spans, effective_rank, frozen_head_cross_entropy, head_scores


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [2, 9, 10, 11, 20, 21, 22, 29])
def test_dispersion_equals_the_textbook(length: int) -> None:
    outputs = torch.randn(length, 6, generator=generator(), dtype=torch.float64) + 0.3
    spans = block_spans(length, 10)
    ours = sum(block_dispersion(outputs[a:b][None]).sum() for a, b in spans) / len(spans)
    assert torch.allclose(torch.as_tensor(ours), reference.dispersion_loss(outputs, 10), rtol=1e-12)


def test_a_block_of_one_row_joins_its_neighbour() -> None:
    assert block_spans(21, 10) == [(0, 10), (10, 21)]
    assert block_spans(22, 10) == [(0, 10), (10, 20), (20, 22)]
    assert block_spans(5, 10) == [(0, 5)]
    with pytest.raises(ValueError, match="at least 2 tokens, not 1"):
        block_spans(1, 10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("logits_per_chunk", [1, 53 * 7, 1 << 26])
def test_frozen_head_loss_and_gradient_equal_cross_entropy(
    dtype: torch.dtype, tolerance: float, logits_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses_module, "LOGITS_PER_CHUNK", logits_per_chunk)
    hidden = torch.randn(31, 12, generator=generator(1), dtype=dtype, requires_grad=True)
    table = torch.randn(53, 12, generator=generator(2), dtype=dtype)
    targets = torch.randint(53, (31,), generator=generator(3))
    expected = torch.nn.functional.cross_entropy(hidden @ table.T, targets)
    (3 * expected).backward()
    wanted, hidden.grad = hidden.grad, None
    loss = frozen_head_cross_entropy(hidden, table, targets)
    (3 * loss).backward()
    assert wanted is not None
    assert hidden.grad is not None
    assert abs(loss.item() - expected.item()) < tolerance * expected.item()
    assert (hidden.grad - wanted).norm() < tolerance * wanted.norm()
    scores, correct = head_scores(hidden.detach(), table, targets)
    assert abs(scores.mean().item() - expected.item()) < tolerance * expected.item()
    assert torch.equal(correct, (hidden @ table.T).argmax(dim=1) == targets)


def test_large_scores_do_not_overflow() -> None:
    hidden = (torch.randn(4, 8, generator=generator()) * 1e3).requires_grad_()
    loss = frozen_head_cross_entropy(hidden, torch.randn(9, 8, generator=generator(1)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert math.isfinite(float(loss))
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_effective_rank_equals_its_definition() -> None:
    rows = torch.randn(200, 10, generator=generator()) * torch.logspace(0, -3, 10)
    assert effective_rank(rows, 1_000, generator()) == pytest.approx(float(reference.effective_rank(rows.double())))
    assert effective_rank(torch.eye(10), 1_000, generator()) == pytest.approx(1.0)
    assert effective_rank(torch.ones(50, 10), 1_000, generator()) == pytest.approx(0.1, abs=1e-3)


def test_effective_rank_draws_rows_once_per_seed() -> None:
    rows = torch.randn(500, 10, generator=generator())
    drawn = [effective_rank(rows, 40, generator(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
