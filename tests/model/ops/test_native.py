"""The C operators against torch's, and what happens where they cannot be built."""

import logging
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops import native, plain
from model.ops.build_cache import build_folder
from model.ops.compute import Compute
from model.ops.plain import BlockGradient, Sums

pytestmark = pytest.mark.skipif(native.load() is None, reason="needs a C compiler")


@pytest.fixture
def rng() -> torch.Generator:
    """Fresh inputs every time; pytest shows the seed with a failure."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def flat(gradients: tuple[Tensor, Tensor, Sums]) -> list[Tensor]:
    return [*gradients[:2], *gradients[2]]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found.double() - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(30, 48), (3, 3), (33, 7), (6, 193)])
def test_residual_norm(rng: torch.Generator, gather: bool, affine: bool, rows: int, size: int) -> None:
    vocab = 11
    tokens = torch.randint(vocab, (rows,), generator=rng) if gather else None
    x, product = (3 * torch.randn(rows, size, generator=rng) for _ in range(2))
    term = torch.randn(vocab, size, generator=rng) if gather else torch.randn(size, generator=rng)
    weight, bias = torch.randn(size, generator=rng), torch.randn(size, generator=rng)
    exact = [t.double() for t in (x, product, term)]
    out, saved = native.residual_norm(x, product, term, tokens, weight, bias, size)
    expected, kept = plain.residual_norm(exact[0], exact[1], exact[2], tokens, weight.double(), bias.double(), size)
    assert close(out, expected)
    scale, shift = torch.randn(3, generator=rng), torch.randn(3, size, generator=rng)
    upper = BlockGradient(scale, shift, rows // 3) if affine else torch.randn(rows, size, generator=rng)
    wide = BlockGradient(scale.double(), shift.double(), rows // 3) if affine else upper.double()
    found = flat(native.residual_norm_backward(upper, saved, weight, bias, size))
    wanted = flat(plain.residual_norm_backward(wide, kept, weight.double(), bias.double(), size))
    for mine, theirs in zip(found, wanted, strict=True):
        assert close(mine, theirs, 1e-4)  # differences of near equals in the narrow rows


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_settling_norm(rng: torch.Generator, blocks: int) -> None:
    state, x, product, term = (torch.randn(50, 20, generator=rng) for _ in range(4))
    bias = 30 * torch.randn(20, generator=rng)  # far from zero: nothing may cancel
    arguments = (x, product, term[0], None, torch.full((20,), 0.1), bias, 20)
    expected, _ = plain.residual_norm(x, product.clone(), *arguments[2:])
    state[:17] = expected[:17] + 0.01
    settled, _ = native.settling_norm(state, blocks, 0.001, *arguments)
    assert int(settled.still) == 17
    assert close(state, expected.double())
    mean, deviation = plain.spread(state.double(), blocks)
    assert close(settled.mean, mean)
    assert close(settled.deviation, deviation)


@pytest.mark.parametrize("vocab", [1, 53, 512, 1001])
def test_head_gradient(rng: torch.Generator, vocab: int) -> None:
    hidden, weight = 4 * torch.randn(31, 12, generator=rng), torch.randn(vocab, 12, generator=rng)
    targets = torch.randint(vocab, (31,), generator=rng)
    leaf = (hidden.double() @ weight.double().T).requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="none")
    expected.sum().backward()
    losses, gradient = torch.empty(31), torch.empty(31, 12)
    native.head_gradient(hidden, weight, targets, vocab, 7, losses, gradient)
    assert leaf.grad is not None
    assert close(losses, expected.detach())
    assert (gradient - leaf.grad @ weight.double() / 7).norm() < 1e-5 * weight.norm()


def test_large_and_far_logits_are_finite() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4 + 1, -1e30]])
    hidden, weight = logits, torch.eye(3)
    losses, gradient = torch.empty(2), torch.empty(2, 3)
    native.head_gradient(hidden, weight, torch.tensor([0, 1]), 3, 2, losses, gradient)
    assert losses.tolist() == pytest.approx([0.0, math.log(1 + math.exp(-1))], abs=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    rows = torch.ones(4, 40)
    rows[2, 5] = bad
    norm = (torch.zeros(40), None, torch.ones(40), torch.zeros(40), 40)
    for x, product in ((rows, torch.ones(4, 40)), (torch.ones(4, 40), rows)):
        out, _ = native.residual_norm(x, product, *norm)
        assert not out[2].isfinite().all()
        assert out[[0, 1, 3]].isfinite().all()
    losses, gradient = torch.empty(4), torch.empty(4, 40)
    native.head_gradient(rows, torch.eye(40), torch.zeros(4, dtype=torch.int64), 40, 4, losses, gradient)
    assert not losses[2].isfinite()


def test_a_wrong_type_or_layout_is_refused() -> None:
    rows = torch.ones(4, 8)
    rest = (torch.zeros(8), None, torch.ones(8), torch.zeros(8), 8)
    with pytest.raises(AssertionError, match="fp32"):
        native.residual_norm(rows.double(), rows, *rest)
    with pytest.raises(AssertionError, match="float64"):
        native.residual_norm(rows, rows.double(), *rest)
    with pytest.raises(AssertionError, match="contiguous"):
        native.residual_norm(torch.ones(8, 4).T, rows, *rest)
    with pytest.raises(AssertionError, match="contiguous"):
        native.join(torch.ones(8, 4).T, rows, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("gather", [False, True])
def test_join(rng: torch.Generator, gather: bool) -> None:
    left, table = torch.randn(9, 3, generator=rng), torch.randn(5 if gather else 9, 4, generator=rng)
    tokens = torch.randint(5, (9,), generator=rng) if gather else None
    for mine, expected in zip(native.join(left, table, tokens), plain.join(left, table, tokens), strict=True):
        assert torch.equal(mine, expected)


def training_step(rng_state: Tensor) -> list[Tensor]:
    """What each operator makes of rows enough to be shared among threads, the same ones each time."""
    rng = torch.Generator()
    rng.set_state(rng_state)
    rows, size = 1001, 37
    x, product, upper = (torch.randn(rows, size, generator=rng) for _ in range(3))
    weight, bias, term = (torch.randn(size, generator=rng) for _ in range(3))
    joined, _ = native.join(x, upper, None)
    out, saved = native.residual_norm(x, product, term, None, weight, bias, size)
    found = flat(native.residual_norm_backward(upper, saved, weight, bias, size))
    losses, gradient = torch.empty(rows), torch.empty(rows, size)
    native.head_gradient(x, torch.eye(size), torch.arange(rows) % size, size, rows, losses, gradient)
    values, grad, mean = (torch.randn(20_001, generator=rng) for _ in range(3))
    native.adam(values, grad, mean, square := mean.square(), 3, 0.1, 1.0, (0.9, 0.999), 1e-8)
    return [joined, out, *found, losses, gradient, values, mean, square]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows(rng: torch.Generator, threads: int) -> None:
    """Rows come out the same, sums over rows but for rounding; and the same again with as many threads."""
    state = rng.get_state()
    alone = training_step(state)
    torch.set_num_threads(threads)
    try:
        shared, again = training_step(state), training_step(state)
    finally:
        torch.set_num_threads(1)
    for one, many, more in zip(alone, shared, again, strict=True):
        assert close(many, one.double())
        assert torch.equal(many, more)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of builds, for `load` to begin with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "load", native.load.__wrapped__)
    return tmp_path


def test_builds_are_kept_by_source_and_may_meet(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: native.load() is not None, range(4)))
    kept = list(build_folder().iterdir())
    assert len(kept) == 1
    changed = tmp_path / "changed.c"
    changed.write_text(native.SOURCE.read_text() + "\n/* another */\n")
    monkeypatch.setattr(native, "SOURCE", changed)
    assert native.load() is not None
    assert len(list(build_folder().iterdir())) == 2
    assert build_folder().is_relative_to(fresh)


@pytest.mark.parametrize("size", [0, 10, 5_000])
def test_a_build_that_was_cut_off_is_made_anew(fresh: Path, size: int) -> None:
    """Alone in its process: what is cut off is nothing that is loaded."""
    script = "from model.ops import native; assert native.load() is not None"
    command = [sys.executable, "-c", script]
    assert forked.run(command).returncode == 0
    (kept,) = build_folder().iterdir()
    whole = kept.read_bytes()
    os.truncate(kept, size)
    assert forked.run(command).returncode == 0
    assert list(build_folder().iterdir()) == [kept]
    assert kept.read_bytes() == whole


def test_a_compiler_without_openmp_builds_for_one_thread(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp\\ *) exit 1;; esac\nexec {shutil.which("gcc")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    library = native.load()
    assert library is not None
    monkeypatch.setattr(native, "load", lambda: library)
    test_threads_share_the_rows(torch.Generator().manual_seed(1), 2)
    built = Path(library._name).read_bytes()
    assert b"GOMP" not in built


def test_where_nothing_can_be_built_torch_is_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int main( {")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(native, "SOURCE", broken)
        assert native.load() is None
    assert "cannot be built" in caplog.text
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    assert native.load() is None
    assert Compute.of("cpu").ops is plain
