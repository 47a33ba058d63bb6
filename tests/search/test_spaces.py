"""Studies as data: which points they hold, and when two of them are one."""

from itertools import product
from typing import Any

import pytest
from entries import MODES, asym_layers, context_modes, four_cells
from optuna.trial import FixedTrial

from model.modes import MAX_LAYERS, context_reads
from search.spaces import Point, Space, Study
from trainables.config import BigramConfig, RunConfig

LAYERS = range(1, MAX_LAYERS + 1)
DIMS = (8, 16, 24)


def base_config(**changes: Any) -> RunConfig:
    base = RunConfig(
        data="a.jsonl",
        data_fingerprint="d1",
        embedding="bigram",
        embedding_fingerprint="bigram",
        bigram=BigramConfig(),
        context_dim=16,
    )
    return base.replace(**changes)


def layers_study(trials: int = 12, dims: tuple[int, ...] = DIMS, sampler: str = "gp", **changes: Any) -> Study:
    return asym_layers(base_config(**changes), dims, sampler, trials)


def whole_space() -> Space:
    return layers_study().space


def model_of(point: Point) -> tuple[Any, ...]:
    """What the point's model is: D, C and what its token layers read."""
    c, t = point["context_layers"], point["token_layers"]
    return point["context_dim"], c, context_reads(point["context_mode"], c, t)


def box() -> list[Point]:
    names = ("context_dim", "context_layers", "token_layers", "context_mode")
    return [dict(zip(names, values, strict=True)) for values in product(DIMS, LAYERS, LAYERS, MODES)]


def test_the_four_cells_come_first_in_their_order() -> None:
    cells = [(p["context_layers"], p["token_layers"]) for p in layers_study().fixed_points]
    assert cells == [(1, 1), (2, 1), (1, 2), (2, 2)]


def test_the_cells_differ_in_nothing_but_their_layers() -> None:
    rest = {(p["context_dim"], p["context_mode"]) for p in layers_study(context_dim=24).fixed_points}
    assert rest == {(24, "prev_and_current")}


def test_the_cells_are_points_of_the_space() -> None:
    study = layers_study()
    models = {model_of(p) for p in study.space.points()}
    assert all(model_of(p) in models for p in study.fixed_points)


def test_the_space_of_depths_goes_to_the_deepest_model() -> None:
    space = whole_space()
    assert (space.context_layers, space.token_layers) == ((1, MAX_LAYERS), (1, MAX_LAYERS))
    assert (space.context_dims, space.context_modes) == (DIMS, MODES)


@pytest.mark.parametrize("trials", [-1, 0, 3])
def test_fewer_trials_than_cells_are_refused(trials: int) -> None:
    with pytest.raises(ValueError, match=f"--trials must be at least 4.*not {trials}"):
        layers_study(trials=trials)


def test_four_trials_are_enough() -> None:
    assert layers_study(trials=4).trials == 4


def test_suggest_returns_the_point_whose_parameters_it_is_given() -> None:
    space = whole_space()
    for point in box():
        assert space.suggest(FixedTrial(space.params(point))) == point


def test_params_are_those_that_suggest_asked_for() -> None:
    space = whole_space()
    for rank, mode in product(range(len(DIMS)), MODES):
        params = {"context_dim_rank": rank, "context_layers": 2, "token_layers": 3, "context_mode": mode}
        trial = FixedTrial(params)
        assert space.params(space.suggest(trial)) == params == trial.params


def test_a_suggested_point_is_a_change_of_a_config() -> None:
    for point in whole_space().points():
        flat = base_config(**point).flat()
        assert {key: flat[key] for key in point} == point


def test_points_hold_no_model_twice() -> None:
    models = [model_of(p) for p in whole_space().points()]
    assert len(models) == len(set(models))


def test_points_hold_every_model_of_the_box() -> None:
    assert {model_of(p) for p in whole_space().points()} == {model_of(p) for p in box()}


def test_points_of_a_few_modes_hold_every_model_of_those() -> None:
    modes = ("previous_first", "prev_and_current", "final_only")
    space = Space(context_layers=(1, 2), token_layers=(1, 3), context_dims=(8,), context_modes=modes)
    wanted = {(8, c, context_reads(mode, c, t)) for c, t, mode in product(range(1, 3), range(1, 4), modes)}
    found = [model_of(p) for p in space.points()]
    assert (len(found), set(found)) == (len(wanted), wanted)


@pytest.mark.parametrize("dims", [(8,), (8, 16, 24)])
def test_the_study_of_modes_has_five_models_for_each_dim(dims: tuple[int, ...]) -> None:
    study = context_modes(base_config(), dims)
    assert [sum(p["context_dim"] == d for p in study.fixed_points) for d in dims] == [5] * len(dims)
    assert study.trials == len(study.fixed_points) == len({model_of(p) for p in study.fixed_points})


def test_the_study_of_modes_samples_nothing_and_keeps_two_layers_each() -> None:
    study = context_modes(base_config(), (8,))
    assert study.sampler is None
    assert {(p["context_layers"], p["token_layers"]) for p in study.fixed_points} == {(2, 2)}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data_fingerprint": "d2"},
        {"samples": 50},
        {"embedding_fingerprint": "other"},
        {"bigram_vocab_size": 300},
        {"bigram_embedding_dim": 32},
        {"phase1_noise": 0.2},
        {"contexts_tolerance": 1e-3},
        {"phase2_epochs": 3},
        {"phase2_batch_size": 64},
        {"context_dim": 24},
    ],
    ids=str,
)
def test_another_base_is_another_study(change: dict[str, Any]) -> None:
    assert layers_study(**change).definition() != layers_study().definition()
    assert layers_study(**change).default_name("a") != layers_study().default_name("a")


def test_other_dims_are_another_study() -> None:
    assert layers_study(dims=(8, 16)).default_name("a") != layers_study().default_name("a")
    assert context_modes(base_config(), (8,)).definition() != context_modes(base_config(), (16,)).definition()


def test_another_sampler_is_another_study() -> None:
    names = {layers_study(sampler=sampler).default_name("a") for sampler in ("gp", "tpe", "random")}
    assert len(names) == 3


def test_more_trials_are_the_same_study() -> None:
    assert layers_study(trials=40).definition() == layers_study(trials=12).definition()
    assert layers_study(trials=40).default_name("a") == layers_study(trials=12).default_name("a")


def test_another_spelling_of_a_path_is_the_same_study() -> None:
    assert layers_study(data="../here/a.jsonl").default_name("a") == layers_study().default_name("a")


def test_the_base_of_a_searched_field_is_no_part_of_a_study() -> None:
    changed = layers_study(context_layers=3, token_layers=4, context_mode="layerwise")
    assert changed.definition() == layers_study().definition()


def test_the_default_name_says_entry_and_data() -> None:
    assert layers_study().default_name("pydoc").startswith("asym_layers-pydoc-")
    assert context_modes(base_config(), (8,)).default_name("my-chats").startswith("context_modes-my-chats-")


def test_four_cells_are_six_models() -> None:
    """One token layer reads the same context in both modes."""
    grid = [
        (p["context_layers"], p["token_layers"], p["context_mode"])
        for p in four_cells(base_config(), (8,)).fixed_points
    ]
    shared = [(1, 1, "layerwise"), (2, 1, "layerwise")]
    assert sorted(grid) == sorted(shared + [(c, 2, m) for c in (1, 2) for m in ("layerwise", "prev_and_current")])
