"""Every operator of the training passes: torch's against autograd, Triton's against torch's.

Then both passes as a whole, kernels and all, against autograd on the textbook model. Without a GPU the kernels are
interpreted, on the CPU.
"""

import math
import secrets
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import context_sweep, dispersion_loss, read_contexts, sequential_contexts, token_forward, twin
from small import model_config
from torch import Tensor

from model.language_model import LanguageModel
from model.ops import plain
from model.ops.chunks import Chunks
from model.ops.compute import Compute
from model.ops.head import FrozenHead
from model.ops.passes import ContextPass, TokenPass
from model.ops.plain import BlockGradient, Sums
from trainables.config import Phase1Config
from trainables.phases.optimizer import FlatAdam
from trainables.phases.phase1 import _Stream

fused = pytest.importorskip("model.ops.fused", reason="needs Triton", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def rng() -> torch.Generator:
    """Fresh inputs every time; pytest shows the seed with a failure."""
    seed = secrets.randbelow(1 << 31)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with so few programs, and pieces so short, that each goes through several rows as at a large scale."""
    for name in ("NORM_PROGRAMS", "SETTLING_PROGRAMS", "SUM_PROGRAMS"):
        monkeypatch.setattr(fused, name, 9)
    monkeypatch.setattr(fused, "PIECE", 40)


def draw(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng).to(dtype).to(DEVICE)


def padded(rows: Tensor, stride: int) -> Tensor:
    return F.pad(rows, (0, stride - rows.shape[1]))


def flat(gradients: tuple[Tensor, Tensor, Sums]) -> list[Tensor]:
    return [*gradients[:2], *gradients[2]]


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    error = (found.double().cpu() - expected.double().cpu()).norm() / expected.double().cpu().norm()
    return bool(error < (1e-5 if dtype == torch.float32 else 1e-2))


def textbook(x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    total = x + F.gelu(product + (term if tokens is None else term[tokens]))
    return F.layer_norm(total, weight.shape, weight, bias, 1e-5)


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_plain_residual_norm_against_autograd(rng: torch.Generator, gather: bool, affine: bool) -> None:
    n, d, vocab = 12, 7, 5
    tokens = torch.randint(vocab, (n,), generator=rng) if gather else None
    shapes = [(n, d), (n, d), (vocab, d) if gather else (d,), (d,), (d,)]
    x, product, term, weight, bias = (torch.randn(*s, generator=rng, dtype=torch.float64) for s in shapes)
    leaves = [t.clone().requires_grad_() for t in (x, product, term, weight, bias)]
    expected = textbook(leaves[0], leaves[1], leaves[2], tokens, leaves[3], leaves[4])
    out, saved = plain.residual_norm(x, product.clone(), term, tokens, weight, bias, d)
    torch.testing.assert_close(out, expected)
    if affine:
        scale, shift = torch.randn(3, generator=rng).double(), torch.randn(3, d, generator=rng).double()
        upper: Tensor | BlockGradient = BlockGradient(scale, shift, 4)
        expected.backward(scale.repeat_interleave(4)[:, None] * expected.detach() + shift.repeat_interleave(4, 0))
    else:
        upper = torch.randn(n, d, generator=rng, dtype=torch.float64)
        expected.backward(upper)
    found = flat(plain.residual_norm_backward(upper, saved, weight, bias, d))
    term_grad = leaves[2].grad if not gather else leaves[1].grad.sum(0)
    wanted = [leaves[0].grad, leaves[1].grad, leaves[3].grad, leaves[4].grad, term_grad]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("n", "d", "stride"), [(60, 20, 32), (33, 50, 50), (3, 7, 16), (3, 1501, 1504), (6, 33, 33)])
def test_fused_residual_norm(
    rng: torch.Generator, dtype: torch.dtype, gather: bool, affine: bool, n: int, d: int, stride: int
) -> None:
    vocab = 11
    tokens = torch.randint(vocab, (n,), generator=rng).to(DEVICE) if gather else None
    x, product = draw(rng, n, d, dtype=dtype), draw(rng, n, d, dtype=dtype)
    term = draw(rng, vocab, d, dtype=dtype) if gather else draw(rng, d)
    weight, bias = draw(rng, d), draw(rng, d)
    wide = padded(term, stride) if gather else padded(term[None], stride)[0]
    norm = (padded(weight[None], stride)[0], padded(bias[None], stride)[0], d)
    out, saved = fused.residual_norm(padded(x, stride), padded(product, stride), wide, tokens, *norm)
    expected, kept = plain.residual_norm(x.float(), product.float(), term.float(), tokens, weight, bias, d)
    assert close(out[:, :d], expected, dtype)
    assert (out[:, d:] == 0).all()
    if affine:
        length = n // 3
        scale, shift = draw(rng, 3), draw(rng, 3, d)
        found = flat(fused.residual_norm_backward(BlockGradient(scale, padded(shift, stride), length), saved, *norm))
        wanted = flat(plain.residual_norm_backward(BlockGradient(scale, shift, length), kept, weight, bias, d))
    else:
        upper = draw(rng, n, d, dtype=dtype)
        found = flat(fused.residual_norm_backward(padded(upper, stride), saved, *norm))
        wanted = flat(plain.residual_norm_backward(upper.float(), kept, weight, bias, d))
    for mine, theirs in zip(found, wanted, strict=True):
        assert close(mine[..., :d], theirs, dtype)
        assert (mine[..., d:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", [1, 2, 13])
@pytest.mark.usefixtures("few")
def test_fused_settling_norm(rng: torch.Generator, dtype: torch.dtype, blocks: int) -> None:
    n, d, stride, vocab = 130, 20, 32, 11
    tokens = torch.randint(vocab, (n,), generator=rng).to(DEVICE)
    x, product, term = draw(rng, n, d, dtype=dtype), draw(rng, n, d, dtype=dtype), draw(rng, vocab, d, dtype=dtype)
    weight, bias = draw(rng, d), draw(rng, d)
    out, _ = plain.residual_norm(x.float(), product.float().clone(), term.float(), tokens, weight, bias, d)
    norm = (padded(weight[None], stride)[0], padded(bias[None], stride)[0], d)
    state = out + 0.3 * torch.rand(n, 1, generator=rng).to(DEVICE) * draw(rng, n, d)
    wide = padded(state, stride).to(dtype)
    before = wide[:, :d].float().clone()
    found, saved = fused.settling_norm(
        wide, blocks, 0.03, padded(x, stride), padded(product, stride), padded(term, stride), tokens, *norm
    )
    change = (out - before).square().mean(dim=1)
    assert 0 < int(found.still) == int((change < 0.03).sum()) < n
    assert close(wide[:, :d], out, dtype)
    assert (wide[:, d:] == 0).all()
    mine = state.clone()
    expected, _ = plain.settling_norm(
        mine, blocks, 0.03, x.float(), product.float().clone(), term.float(), tokens, weight, bias, d
    )
    assert torch.equal(mine, out)
    assert int(expected.still) == int(((out - state).square().mean(dim=1) < 0.03).sum())
    assert close(found.mean[:, :d], expected.mean, torch.float32)  # of the rows before they are rounded
    assert close(found.deviation, expected.deviation, torch.float32)
    upper = draw(rng, n, d, dtype=dtype)
    grads = fused.residual_norm_backward(padded(upper, stride), saved, *norm)
    assert close(grads[2][1][:d], upper.float().sum(0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_moments_do_not_cancel(rng: torch.Generator, dtype: torch.dtype) -> None:
    """Rows far from zero and close together."""
    n, d = 130, 20
    x, product, term = draw(rng, n, d, dtype=dtype), draw(rng, n, d, dtype=dtype), draw(rng, d, dtype=dtype)
    weight, bias = torch.full((d,), 0.1, device=DEVICE), 10 + draw(rng, d)
    state = torch.zeros(n, 32, dtype=dtype, device=DEVICE)
    norm = (padded(weight[None], 32)[0], padded(bias[None], 32)[0], d)
    found, _ = fused.settling_norm(
        state, 2, 0.03, padded(x, 32), padded(product, 32), padded(term[None], 32)[0], None, *norm
    )
    out, _ = plain.residual_norm(x.double(), product.double(), term.double(), None, weight.double(), bias.double(), d)
    mean, deviation = plain.spread(out, 2)
    assert close(found.mean[:, :d], mean, torch.float32)
    assert close(found.deviation, deviation, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("few")
def test_fused_sums_by_token(rng: torch.Generator, dtype: torch.dtype) -> None:
    n, d, stride, vocab = 500, 20, 32, 40
    tokens = (torch.rand(n, generator=rng) ** 4 * (vocab - 1)).long().to(DEVICE)  # one token has hundreds of rows
    rows, table = draw(rng, n, d, dtype=dtype), draw(rng, vocab, d)
    expected, wide = table.clone(), padded(table, stride)
    plain.TokenSums(tokens, vocab).add_to(expected, rows.float())
    fused.TokenSums(tokens, vocab).add_to(wide, padded(rows, stride))
    assert close(wide[:, :d], expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [37, 64, 9000])
def test_fused_softmax_gradient(rng: torch.Generator, dtype: torch.dtype, vocab: int) -> None:
    n, columns = 9, -(-vocab // 64) * 64
    logits = 5 * draw(rng, n, columns)
    logits = logits.to(dtype)
    targets = torch.randint(vocab, (n,), generator=rng).to(DEVICE)
    leaf = logits[:, :vocab].float().clone().requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="none")
    expected.sum().backward()
    for ops, rows in ((fused, logits.clone()), (plain, logits[:, :vocab].float().clone())):
        found, scales = ops.softmax_gradient_(rows, targets, vocab)
        assert close(found, expected.detach(), torch.float32)
        assert close(rows[:, :vocab] / scales[:, None], leaf.grad, dtype)
        assert (rows[:, vocab:] == 0).all()


# Rows of tiles that make more than one group, and more columns of them than are summed at once.
MANY_TILES = (2200, 9000) if DEVICE == "cuda" else (150, 1100)


def number(sweep: int) -> Tensor:
    return torch.tensor(sweep, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [10, 16, 72])  # the first is no multiple of what bulk copies take
@pytest.mark.parametrize(("n", "vocab"), [(9, 37), (150, 300), (3, 1100), MANY_TILES])
def test_fused_logit_gradient(
    rng: torch.Generator, dtype: torch.dtype, width: int, n: int, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if DEVICE == "cpu" and (n, vocab) == MANY_TILES:
        monkeypatch.setattr(fused, "LOGIT_TILE", fused._LogitTile(16, 32, 16, group=4, warps=4, stages=2))
    columns = -(-vocab // 64) * 64
    hidden = (draw(rng, n, width) / width**0.5).to(dtype)
    weight = padded((draw(rng, vocab, width) - 1).T, columns).T.contiguous().to(dtype)  # a pad would win
    targets = torch.randint(vocab, (n,), generator=rng).to(DEVICE)
    leaf = (hidden.float() @ weight[:vocab].float().T).requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="none")
    expected.sum().backward()
    rows, losses, sums = fused.logit_gradient(hidden, weight, targets, vocab)
    assert abs(losses.mean() - expected.mean()) < (1e-5 if dtype == torch.float32 else 5e-3) * expected.mean()
    error = (rows[:, :vocab] / sums[:, None] - leaf.grad).norm() / leaf.grad.norm()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    assert (rows[:, vocab:] == 0).all()


def test_fused_noise_is_normal_and_counted() -> None:
    n, d, stride = 4_000, 20, 32
    noise = fused.Noise(seed=3, std=0.1, size=d, device=torch.device(DEVICE))
    state = torch.zeros(n, stride, device=DEVICE)
    carry = torch.zeros(stride, device=DEVICE)
    drawn = noise.on_previous(carry, state, sweep=number(2), start=0, length=100)
    values = drawn[:, :d].double() / 0.1
    assert (drawn[:, d:] == 0).all()
    assert abs(values.mean()) < 4 / math.sqrt(n * d)
    assert abs(values.square().mean() - 1) < 4 * math.sqrt(2 / (n * d))
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / (n * d))
    neighbours = (values[1:] * values[:-1]).mean(), (values[:, 1:] * values[:, :-1]).mean()
    assert all(abs(c) < 4 / math.sqrt(n * (d - 1)) for c in neighbours)
    assert torch.equal(
        noise.on_previous(carry, state[:100], number(2), 50, 100), drawn[50:150]
    )  # wherever the pass starts
    other = noise.on_previous(carry, state, sweep=number(3), start=0, length=100)
    assert abs((other * drawn)[:, :d].double().mean()) < 4 * 0.01 / math.sqrt(n * d)


@pytest.mark.parametrize("ops", [plain, fused])
def test_noise_is_added_to_the_row_before(rng: torch.Generator, ops: object) -> None:
    state, carry = draw(rng, 10, 16), draw(rng, 16)
    noise = ops.Noise(seed=3, std=0.0, size=16, device=torch.device(DEVICE))
    assert torch.equal(noise.on_previous(carry, state, number(2), 0, 4), torch.cat([carry[None], state[:-1]]))


COMPUTES = [Compute(), Compute.of(DEVICE), Compute(fused=True), Compute(fused=True, bf16=True)]
SLOWLY = [pytest.param(each, marks=pytest.mark.slow if each.fused else ()) for each in COMPUTES]  # interpreted
BF16_LOSS = 1e-3 if DEVICE == "cuda" else 5e-3  # interpreted kernels cut bf16 off where hardware rounds


def agrees(found: list[Tensor], expected: list[Tensor], compute: Compute) -> bool:
    mine, theirs = (torch.cat([t.double().flatten().cpu() for t in ts]) for ts in (found, expected))
    near = (mine - theirs).norm() < (2e-2 if compute.bf16 else 1e-5) * theirs.norm()
    return bool(near and torch.cosine_similarity(mine, theirs, dim=0) > 0.999)


@pytest.mark.parametrize("compute", SLOWLY, ids=str)
# A last block that is short, a last block of one row more; few rows, for interpreted kernels are slow.
@pytest.mark.parametrize(("context_layers", "block", "rows"), [(1, 30, 110), (3, 20, 121)])
def test_a_sweep_equals_autograd(
    tokens: Tensor, table: Tensor, compute: Compute, context_layers: int, block: int, rows: int
) -> None:
    tokens = tokens[:rows]
    compute = replace(compute, chunks=Chunks(activation_bytes=44 * 32))  # several passes
    model = LanguageModel(model_config(context_layers), table, seed=1).to(DEVICE)
    book, tokens, size = twin(model).to(DEVICE), tokens.to(DEVICE), model.config.context_dim
    stream = _Stream(tokens, model, Phase1Config(block=block), 5, compute)
    embedded = compute.operand(model.embedded)
    state = torch.zeros(len(tokens), compute.width(size), dtype=embedded.dtype, device=DEVICE)
    state[:, :size] = torch.randn(len(tokens), size, device=DEVICE)
    before = state[:, :size].float().clone()
    # the noise that the sweep will draw, from a generator of its own
    noise = compute.ops.Noise(5, 0.1, size, torch.device(DEVICE))
    zeros, drawn = torch.zeros_like(state, dtype=torch.float32), []
    for spans in stream.passes:
        start, stop, length = spans[0][0], spans[-1][1], spans[0][1] - spans[0][0]
        drawn.append(noise.on_previous(zeros[0], zeros[start:stop], number(2), start, length)[:, :size])
    out = context_sweep(book, tokens, before, torch.cat(drawn))
    loss = dispersion_loss(out, block)
    loss.backward()
    optimizer = FlatAdam(model.context_block, 1e-3, 1.0, compute)
    figures = stream.sweep(ContextPass(model.context_block, embedded, compute), state, number(2))
    assert float(figures[0]) == pytest.approx(loss.item(), rel=BF16_LOSS if compute.bf16 else 1e-5)
    assert agrees([state[:, :size]], [out.detach()], compute)
    still = float(((out - before).square().mean(1) < 0.03).float().mean())
    assert float(figures[1]) == pytest.approx(still, abs=3 / rows if compute.bf16 else 1e-6)
    expected = [p.grad for layer in book.context_layers for p in layer.parameters()]
    assert agrees([p.grad for p in model.context_block.parameters()], expected, compute)
    assert optimizer.grad.norm() > 0


@pytest.mark.parametrize("compute", COMPUTES, ids=str)
@pytest.mark.parametrize("mode", ["layerwise", "prev_and_current"])
def test_a_training_step_equals_autograd(tokens: Tensor, table: Tensor, compute: Compute, mode: str) -> None:
    model = LanguageModel(model_config(2, 3, mode), table, seed=1).to(DEVICE)
    book, tokens, reads = twin(model).to(DEVICE), tokens[:40].to(DEVICE), model.config.reads
    contexts = read_contexts(sequential_contexts(book, tokens), reads)
    hidden = token_forward(book, tokens, contexts)[:-1]
    loss = F.cross_entropy(hidden @ book.table.T, tokens[1:])
    loss.backward()
    pad = compute.width(model.config.context_dim) - model.config.context_dim
    rows = [None if c is None else compute.operand(F.pad(c[:-1], (0, pad))) for c in contexts]
    FlatAdam(model.token_block, 1e-3, 1.0, compute)
    weights, tape = TokenPass(model.token_block, compute.operand(model.embedded), compute), []
    found = weights.forward(tokens[:-1], rows, tape)
    losses, gradient = FrozenHead(model.table, compute).gradient(found, tokens[1:])
    weights.backward(gradient, tape)
    assert float(losses.mean()) == pytest.approx(loss.item(), rel=BF16_LOSS if compute.bf16 else 1e-5)
    expected = [p.grad for layer in book.token_layers for p in layer.parameters()]
    assert agrees([p.grad for p in model.token_block.parameters()], expected, compute)
