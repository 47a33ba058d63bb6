import pytest
import torch
from torch import nn

from model.ops.compute import Compute
from trainables.phases.optimizer import FlatAdam


def small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)


def run(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return module(inputs).square().sum() * 30


@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_equal_torchs(clip: float, dtype: torch.dtype) -> None:
    """In fp32 on a CPU with a C compiler the step is `model.ops.native`'s."""
    torch.manual_seed(0)
    ours, theirs = small(dtype), small(dtype)
    theirs.load_state_dict(ours.state_dict())
    flat = FlatAdam(ours, 0.01, clip, Compute.of("cpu"))
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(5):
        inputs = torch.randn(4, 5, dtype=dtype)
        flat.grad.zero_()
        run(ours, inputs).backward()
        flat.step()
        adam.zero_grad()
        run(theirs, inputs).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        adam.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("compute", [Compute(), Compute.of("cpu")], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_spoils_the_weights(compute: Compute, bad: float) -> None:
    """As with clip_grad_norm_: a divergence must show."""
    module = small(torch.float32)
    flat = FlatAdam(module, 0.01, 1.0, compute)
    flat.grad[3] = bad
    flat.step()
    assert not flat.flat.isfinite().all()


def test_weights_are_kept_and_come_back() -> None:
    module = small()
    flat = FlatAdam(module, 0.01, 1.0, Compute())
    kept, before = flat.weights(), [p.detach().clone() for p in module.parameters()]
    flat.grad.fill_(1.0)
    flat.step()
    assert all(not torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    flat.load(kept)
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_a_copy_with_its_state_goes_on_alike() -> None:
    module, inputs = small(), torch.randn(4, 5, dtype=torch.float64)
    flat = FlatAdam(module, 0.01, 1.0, Compute())

    def step(its_module: nn.Module, optimizer: FlatAdam) -> None:
        optimizer.grad.zero_()
        run(its_module, inputs).backward()
        optimizer.step()

    for _ in range(3):
        step(module, flat)
    other = small()
    copied = FlatAdam(other, 0.01, 1.0, Compute())
    copied.load_state({name: tensor.clone() for name, tensor in flat.state().items()})
    for _ in range(2):
        step(module, flat)
        step(other, copied)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), other.parameters(), strict=True))
