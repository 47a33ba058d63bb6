"""One flat dict for a run, and the hashes that say which runs are the same."""

import json
from itertools import combinations, product
from typing import Any

import pytest

from model.modes import CONTEXT_MODES, MAX_LAYERS, context_reads
from trainables.config import BigramConfig, ContextsConfig, Phase1Config, Phase2Config, RunConfig

LAYERS = range(1, MAX_LAYERS + 1)


def with_bigram(**changes: Any) -> RunConfig:
    """A run on the bigram's embedding; nothing is read from disk."""
    base = RunConfig(
        data="chats/a.jsonl",
        data_fingerprint="d1",
        embedding="bigram",
        embedding_fingerprint="bigram",
        bigram=BigramConfig(vocab_size=300, embedding_dim=24),
        context_dim=16,
    )
    return base.replace(**changes)


def with_gpt2(**changes: Any) -> RunConfig:
    """A run on a pretrained embedding."""
    base = RunConfig(
        data="ultrachat",
        data_fingerprint="u1",
        samples=2_000,
        embedding="gpt2",
        embedding_fingerprint="gpt2@abc",
        context_dim=500,
        phase1=Phase1Config(noise=0.2, block=77),
        contexts=ContextsConfig(train="last_sweep"),
        phase2=Phase2Config(epochs=3),
    )
    return base.replace(**changes)


@pytest.mark.parametrize("config", [with_bigram(), with_gpt2(), with_bigram(phase2_epochs=9, seed=3)])
def test_a_config_survives_its_flat_form(config: RunConfig) -> None:
    assert RunConfig.from_flat(config.flat()) == config


@pytest.mark.parametrize("config", [with_bigram(), with_gpt2()])
def test_the_flat_form_survives_json(config: RunConfig) -> None:
    assert RunConfig.from_flat(json.loads(json.dumps(config.flat()))) == config


def test_the_flat_form_is_one_level_of_plain_values() -> None:
    flat = with_bigram().flat()
    assert all(value is None or isinstance(value, int | float | str) for value in flat.values())
    assert flat["bigram_vocab_size"] == 300
    assert flat["phase2_epochs"] == Phase2Config().epochs


def test_the_flat_form_without_a_bigram_names_none_of_its_settings() -> None:
    assert [key for key in with_gpt2().flat() if key.startswith("bigram")] == []


def test_from_flat_leaves_the_dict_as_it_was() -> None:
    flat = with_bigram().flat()
    before = dict(flat)
    RunConfig.from_flat(flat)
    assert flat == before


@pytest.mark.parametrize("key", ["dropout", "phase1_sweeps", "phase3_epochs"])
def test_an_unknown_field_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown config fields: {key}"):
        RunConfig.from_flat(with_bigram().flat() | {key: 1})


@pytest.mark.parametrize("key", ["data", "data_fingerprint", "embedding", "embedding_fingerprint", "context_dim"])
def test_a_missing_field_is_refused_by_name(key: str) -> None:
    flat = with_bigram().flat()
    del flat[key]
    with pytest.raises(ValueError, match=key):
        RunConfig.from_flat(flat)


def test_replace_changes_nested_fields_by_their_flat_names() -> None:
    changed = with_bigram(phase1_noise=0.3, phase2_epochs=2, bigram_vocab_size=999, contexts_tolerance=1e-4, seed=5)
    assert changed.phase1 == Phase1Config(noise=0.3)
    assert changed.phase2 == Phase2Config(epochs=2)
    assert changed.contexts == ContextsConfig(tolerance=1e-4)
    assert changed.bigram == BigramConfig(vocab_size=999, embedding_dim=24)
    assert changed.seed == 5


def test_replace_leaves_the_original_alone() -> None:
    config = with_bigram()
    config.replace(seed=9, phase1_noise=0.9)
    assert config == with_bigram()


def test_replace_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown config fields: epochs"):
        with_bigram(epochs=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_layers", 5),
        ("token_layers", 0),
        ("context_dim", 0),
        ("context_mode", "sideways"),
        ("seed", -1),
        ("samples", 0),
        ("samples", -3),
        ("phase1_block", 1),
        ("phase1_max_sweeps", 1),
        ("phase1_learning_rate", 0.0),
        ("phase1_noise", -0.5),
        ("phase1_grad_clip", 0.0),
        ("phase1_converged_share", 1.5),
        ("contexts_train", "refresh"),
        ("contexts_tolerance", 0.0),
        ("contexts_rank_rows", 0),
        ("contexts_min_rank", 101.0),
        ("phase2_batch_size", 0),
        ("phase2_epochs", 0),
        ("phase2_patience", 0),
        ("phase2_learning_rate", -0.1),
        ("phase2_grad_clip", 0.0),
        ("bigram_vocab_size", 10),
        ("bigram_embedding_dim", 1),
        ("bigram_epochs", 0),
        ("bigram_batch_size", 0),
        ("bigram_learning_rate", 0.0),
    ],
)
def test_a_bad_value_is_refused_and_quoted(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=repr(value)):
        with_bigram(**{name: value})


@pytest.mark.parametrize("name", ["phase1_learning_rate", "contexts_tolerance", "phase2_learning_rate"])
def test_not_a_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="nan"):
        with_bigram(**{name: float("nan")})


def test_a_bigram_embedding_needs_its_settings() -> None:
    flat = {k: v for k, v in with_bigram().flat().items() if not k.startswith("bigram_")}
    with pytest.raises(ValueError, match="bigram must be given with that embedding only, not None"):
        RunConfig.from_flat(flat)


def test_bigram_settings_belong_to_no_other_embedding() -> None:
    with pytest.raises(ValueError, match="bigram must be given with that embedding only"):
        with_gpt2(bigram_epochs=3)


def test_the_model_has_the_runs_depths_and_the_tables_sizes() -> None:
    model = with_bigram(context_layers=3, token_layers=2, context_mode="final_only").model_config(290, 24)
    assert (model.vocab_size, model.embedding_dim, model.context_dim) == (290, 24, 16)
    assert (model.context_layers, model.token_layers, model.context_mode) == (3, 2, "final_only")


def test_configs_share_a_hash_exactly_if_their_token_layers_read_the_same() -> None:
    by_layers = []
    for c, t, mode in product(LAYERS, LAYERS, CONTEXT_MODES):
        config = with_bigram(context_layers=c, token_layers=t, context_mode=mode)
        by_layers.append(((c, context_reads(mode, c, t)), config.config_hash()))
    for (model, own_hash), (other_model, other_hash) in combinations(by_layers, 2):
        assert (own_hash == other_hash) == (model == other_model)


SHARED_BY_PHASE1 = [
    {"token_layers": 3},
    {"context_mode": "previous_only"},
    {"phase2_learning_rate": 0.01},
    {"phase2_grad_clip": 2.0},
    {"phase2_batch_size": 64},
    {"phase2_epochs": 3},
    {"phase2_patience": 2},
]
MATTERS_TO_PHASE1 = [
    {"seed": 1},
    {"context_layers": 2},
    {"context_dim": 24},
    {"data_fingerprint": "d2"},
    {"samples": 10},
    {"embedding_fingerprint": "other"},
    {"bigram_vocab_size": 301},
    {"bigram_embedding_dim": 32},
    {"bigram_learning_rate": 0.1},
    {"bigram_weight_decay": 0.1},
    {"bigram_batch_size": 64},
    {"bigram_epochs": 9},
    {"bigram_seed": 1},
    {"phase1_learning_rate": 0.01},
    {"phase1_grad_clip": 1.0},
    {"phase1_noise": 0.2},
    {"phase1_block": 500},
    {"phase1_threshold": 0.1},
    {"phase1_converged_share": 0.8},
    {"phase1_max_sweeps": 10},
    {"contexts_train": "last_sweep"},
    {"contexts_tolerance": 1e-3},
    {"contexts_rank_rows": 50},
    {"contexts_min_rank": 5.0},
]


def test_these_tests_change_every_field_of_a_run() -> None:
    changed = {key for change in SHARED_BY_PHASE1 + MATTERS_TO_PHASE1 for key in change}
    assert set(with_bigram().flat()) - changed == {"data", "embedding"}  # names, not content


@pytest.mark.parametrize("change", SHARED_BY_PHASE1, ids=str)
def test_phase1_is_shared_whatever_the_token_block_and_phase2_are(change: dict[str, Any]) -> None:
    assert with_bigram(**change).phase1_key() == with_bigram().phase1_key()


@pytest.mark.parametrize("change", MATTERS_TO_PHASE1, ids=str)
def test_phase1_is_another_if_anything_it_depends_on_changes(change: dict[str, Any]) -> None:
    assert with_bigram(**change).phase1_key() != with_bigram().phase1_key()


@pytest.mark.parametrize("change", SHARED_BY_PHASE1[2:] + MATTERS_TO_PHASE1, ids=str)
def test_a_config_is_another_if_any_setting_changes(change: dict[str, Any]) -> None:
    base = with_bigram(context_layers=1, token_layers=2)
    assert base.replace(**change).config_hash() != base.config_hash()


def test_the_spelling_of_a_path_does_not_matter() -> None:
    assert with_bigram(data="./chats/../chats/a.jsonl").config_hash() == with_bigram().config_hash()
    assert with_gpt2(embedding="/models/gpt2").phase1_key() == with_gpt2().phase1_key()
