import pytest

from model.modes import CONTEXT_MODES, MAX_LAYERS, Read, context_reads, same_model_modes

LAYERS = range(1, MAX_LAYERS + 1)


def test_layerwise_is_the_identity_where_depths_are_equal() -> None:
    for depth in LAYERS:
        assert context_reads("layerwise", depth, depth) == tuple(Read(i, 0) for i in range(1, depth + 1))


def test_layerwise_rounds_up_elsewhere() -> None:
    assert [r.layer for r in context_reads("layerwise", 4, 2) if r] == [2, 4]
    assert [r.layer for r in context_reads("layerwise", 2, 4) if r] == [1, 1, 2, 2]
    assert [r.layer for r in context_reads("layerwise", 3, 2) if r] == [2, 3]


def test_prev_and_current_reads_no_context_between() -> None:
    assert context_reads("prev_and_current", 3, 4) == (Read(3, 1), None, None, Read(3, 0))


def test_same_models_as_the_method_lists_them() -> None:
    for c in LAYERS:
        assert same_model_modes("layerwise", c, 1) == (
            "layerwise",
            "final_only",
            "first_layer_only",
            "prev_and_current",
        )
        assert same_model_modes("previous_first", c, 1) == ("previous_only", "previous_first")
        assert same_model_modes("previous_first", c, 2) == ("prev_and_current", "previous_first")
    for t in (2, 3, 4):
        assert same_model_modes("final_only", 1, t) == ("layerwise", "final_only")
    assert len({context_reads(m, 2, 2) for m in CONTEXT_MODES}) == 5


@pytest.mark.parametrize(("c", "t"), [(0, 1), (1, 0), (5, 1), (1, 5)])
def test_depths_outside_the_range_are_refused(c: int, t: int) -> None:
    with pytest.raises(ValueError, match=r"must be 1\.\.4, not [05]"):
        context_reads("layerwise", c, t)


def test_an_unknown_mode_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown context mode 'sideways'"):
        context_reads("sideways", 1, 1)
