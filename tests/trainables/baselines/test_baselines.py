"""The baselines: what they see, what they learn, and how large they are."""

import pytest
import torch
import torch.nn.functional as F
from small import E, N, model_config

from model.language_model import LanguageModel
from model.ops.compute import Compute
from trainables.baselines.fit import FittedBaseline, fit_baseline
from trainables.baselines.networks import MODELS, Baseline, smallest_hidden
from trainables.config import Phase2Config
from trainables.errors import DivergedError
from trainables.evaluation.ngrams import bigram_losses

KINDS = list(MODELS)
SYMBOLS = 8


def second_order(length: int, seed: int) -> torch.Tensor:
    """Each token is the sum of the two before it or, one time in ten, anything: the last one alone says nothing."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(SYMBOLS, (length,), generator=generator).tolist()
    surprise = (torch.rand(length, generator=generator) < 0.1).tolist()
    stream = noise[:2]
    for at in range(2, length):
        stream.append(noise[at] if surprise[at] else (stream[-1] + stream[-2]) % SYMBOLS)
    return torch.tensor(stream)


def model(kind: str, table: torch.Tensor, hidden: int = 16, batch_size: int = 64) -> Baseline:
    torch.manual_seed(1)
    return MODELS[kind](F.layer_norm(table, (E,)), hidden, batch_size)


def fitted(kind: str, table: torch.Tensor, stream: torch.Tensor, seed: int = 1) -> FittedBaseline:
    like = LanguageModel(model_config(), table, 0)
    config = Phase2Config(batch_size=64, epochs=16, patience=3, learning_rate=0.01)
    return fit_baseline(kind, like, stream, second_order(500, 3), config, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_no_bigram_can(kind: str, table: torch.Tensor) -> None:
    train, test = second_order(3_000, 2), second_order(1_000, 4)
    found = fitted(kind, table, train)
    losses, correct, ranks = found.evaluate(test)
    by_counting = bigram_losses(train.numpy(), test.numpy(), SYMBOLS)
    assert losses.mean() < by_counting.mean() - 0.5
    assert correct.double().mean() > 0.5  # a guess is right one time in eight
    assert torch.equal(ranks == 0, correct)


@pytest.mark.parametrize("kind", KINDS)
def test_every_next_token_is_judged_by_what_came_before(kind: str, table: torch.Tensor, tokens: torch.Tensor) -> None:
    trained = fitted(kind, table, second_order(300, 2))
    losses, _, ranks = trained.evaluate(tokens)
    assert losses.shape == ranks.shape == (N - 1,)
    changed = tokens.clone()
    changed[200] = (changed[200] + 1) % 37
    other, _, _ = trained.evaluate(changed)
    assert torch.equal(other[:199], losses[:199])  # target 200 is losses[199]
    assert not torch.equal(other[200:], losses[200:])


def test_a_carried_state_is_that_of_one_pass(table: torch.Tensor, tokens: torch.Tensor) -> None:
    gru = model("gru", table)
    whole, _ = gru(tokens[None])
    in_parts = torch.cat(list(gru.over(tokens, rows=7)))
    assert torch.allclose(in_parts, whole[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_goes_on_from_the_state(kind: str, table: torch.Tensor, tokens: torch.Tensor) -> None:
    ours = model(kind, table, batch_size=128)  # a window of 16
    whole, _ = ours(tokens[None, :16])
    last, _ = ours(tokens[None, 15:16], ours.state_of(tokens[:15]))
    assert torch.allclose(last[0, 0], whole[0, 15], atol=1e-5)


@pytest.mark.parametrize("num", [1, 2, 5, 8, 15, 16, 17, 300])
@pytest.mark.parametrize("rows", [1, 40, 10_000])
def test_windows_cover_a_stream_once_with_half_a_window_before_each(
    table: torch.Tensor, tokens: torch.Tensor, num: int, rows: int
) -> None:
    ours = model("transformer", table, batch_size=72)  # a window of 9
    hidden = torch.cat(list(ours.over(tokens[:num], rows)))
    assert len(hidden) == num
    for at in range(num):
        begin = 0 if at < 9 else (at - 9) // 4 * 4 + 4
        wanted, _ = ours(tokens[None, begin : at + 1])
        assert at - begin >= min(at, 4)
        assert torch.allclose(hidden[at], wanted[0, -1], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [1, 7, 64, 300])
def test_an_epoch_takes_no_position_twice_and_leaves_few_out(kind: str, table: torch.Tensor, num: int) -> None:
    ours = model(kind, table)
    taken = torch.cat([where.flatten() for where, _ in ours.batches(num, torch.Generator().manual_seed(0))])
    assert len(taken.unique()) == len(taken) > num - 2 * 8 - 1
    assert taken.min() >= 0
    assert taken.max() < num
    largest = max(where.numel() for where, _ in ours.batches(num, torch.Generator().manual_seed(0)))
    assert largest <= 64


def test_lanes_go_on_where_they_stopped(table: torch.Tensor) -> None:
    steps = list(model("gru", table).batches(300, torch.Generator()))
    assert [goes_on for _, goes_on in steps] == [False] + [True] * (len(steps) - 1)
    assert torch.equal(torch.cat([where for where, _ in steps], dim=1), torch.arange(296).view(8, 37))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [1, 5_000, 265_216])
def test_sizes_are_the_least_that_match(kind: str, trained: int) -> None:
    hidden = smallest_hidden(kind, 192, 256, trained)
    step = MODELS[kind].STEP
    sizes = [model_of(kind, size).num_trained() for size in (hidden, hidden - step) if size > 0]
    assert sizes[0] >= trained
    assert all(size < trained for size in sizes[1:])


def model_of(kind: str, hidden: int) -> Baseline:
    return MODELS[kind](torch.zeros(1, 192), hidden, 256)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights(kind: str, table: torch.Tensor) -> None:
    stream = second_order(700, 2)
    runs = [fitted(kind, table, stream, seed) for seed in (1, 1, 2)]
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_gru_keeps_one_state_and_a_transformer_no_more_than_its_window(table: torch.Tensor) -> None:
    stream = second_order(300, 2)
    gru, transformer = (fitted(kind, table, stream) for kind in KINDS)
    hidden = gru.model.recurrence.hidden_size
    assert gru.state_bytes(stream, (1, 100, 300)) == [4 * hidden] * 3
    window, width = transformer.model.window, transformer.model.into.out_features
    assert window == 8
    expected = [4 * 2 * 2 * width * held for held in (1, 4, 8, 8)]  # two layers' keys and values
    assert transformer.state_bytes(stream, (1, 4, 8, 300)) == expected


def test_the_learning_rate_is_the_configurations_and_may_diverge(table: torch.Tensor) -> None:
    like, train, validation = LanguageModel(model_config(), table, 0), second_order(2_000, 2), second_order(300, 3)
    found: dict[float, list[float]] = {}
    for rate in (1e-5, 0.01):
        config, seen = Phase2Config(batch_size=64, epochs=2, learning_rate=rate), found.setdefault(rate, [])
        fit_baseline("gru", like, train, validation, config, 1, lambda epoch, seen=seen: seen.append(epoch.val_ppl))
    assert len(found[0.01]) == 2
    assert found[0.01][-1] < found[1e-5][-1]
    with pytest.raises(DivergedError):
        fit_baseline("gru", like, train, validation, Phase2Config(batch_size=64, learning_rate=1e30), 1)


def test_the_table_stays_as_it_is(table: torch.Tensor) -> None:
    like, before = LanguageModel(model_config(), table.clone(), 0), table.clone()
    weights = {name: tensor.clone() for name, tensor in like.state_dict().items()}
    fit_baseline("gru", like, second_order(300, 2), second_order(100, 3), Phase2Config(batch_size=64, epochs=1), 1)
    assert torch.equal(like.table, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in like.state_dict().items())


def test_operators_in_c_train_as_torch_does(table: torch.Tensor) -> None:
    like, train, validation = LanguageModel(model_config(), table, 0), second_order(700, 2), second_order(200, 3)
    config = Phase2Config(batch_size=64, epochs=1)
    ways = [Compute(), Compute.of("cpu")]
    runs = [fit_baseline("transformer", like, train, validation, config, 1, compute=way) for way in ways]
    assert runs[0].result.best.val_ppl == pytest.approx(runs[1].result.best.val_ppl, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_trains_about_as_fp32_does(kind: str, table: torch.Tensor) -> None:
    like, train, validation = LanguageModel(model_config(), table, 0), second_order(700, 2), second_order(200, 3)
    config = Phase2Config(batch_size=64, epochs=2, learning_rate=0.005)
    ways = [Compute(), Compute(bf16=True)]
    runs = [fit_baseline(kind, like, train, validation, config, 1, compute=way) for way in ways]
    assert runs[0].result.best.val_ppl == pytest.approx(runs[1].result.best.val_ppl, rel=0.02)
    assert runs[0].result.best.val_ppl != runs[1].result.best.val_ppl
    (whole,), (kept,) = (run.state_bytes(train, (100,)) for run in runs)
    # neither a GRU's state nor keys, which are turned by their positions, are rounded; values are
    assert kept == (whole if kind == "gru" else 3 / 4 * whole)
