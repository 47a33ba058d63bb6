import pytest
import torch
from torch import nn

from trainables.optimizer import FlatAdam


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def run(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return module(inputs).square().sum() * 30


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_steps_equal_torchs(clip: float) -> None:
    torch.manual_seed(0)
    ours, theirs = small(), small()
    theirs.load_state_dict(ours.state_dict())
    flat = FlatAdam(ours, learning_rate=0.01, grad_clip=clip)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(5):
        inputs = torch.randn(4, 5, dtype=torch.float64)
        flat.grad.zero_()
        run(ours, inputs).backward()
        flat.step()
        adam.zero_grad()
        run(theirs, inputs).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        adam.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_weights_are_kept_and_come_back() -> None:
    module = small()
    flat = FlatAdam(module, learning_rate=0.01, grad_clip=1.0)
    kept, before = flat.weights(), [p.detach().clone() for p in module.parameters()]
    flat.grad.fill_(1.0)
    flat.step()
    assert all(not torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    flat.load(kept)
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_a_copy_with_its_state_goes_on_alike() -> None:
    module, inputs = small(), torch.randn(4, 5, dtype=torch.float64)
    flat = FlatAdam(module, learning_rate=0.01, grad_clip=1.0)

    def step(its_module: nn.Module, optimizer: FlatAdam) -> None:
        optimizer.grad.zero_()
        run(its_module, inputs).backward()
        optimizer.step()

    for _ in range(3):
        step(module, flat)
    other = small()
    copied = FlatAdam(other, learning_rate=0.01, grad_clip=1.0)
    copied.load_state({name: tensor.clone() for name, tensor in flat.state().items()})
    for _ in range(2):
        step(module, flat)
        step(other, copied)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), other.parameters(), strict=True))
