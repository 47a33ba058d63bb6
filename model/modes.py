"""Context modes: which context each token layer reads.

A configuration's identity is what its token layers read, not the name of its mode: several names
describe the same model at some depths (at one token layer most do).
"""

from collections.abc import Callable
from typing import NamedTuple

MAX_LAYERS = 4  # context layers and token layers are each 1..MAX_LAYERS


class Read(NamedTuple):
    """One context source of one token layer."""

    layer: int  # context layer, 1..C
    shift: int  # 0: the current position, 1: the previous one (zeros at the stream's first position)


Reads = tuple[Read | None, ...]  # one entry per token layer; None: the layer reads no context


def _layerwise(num_context: int, num_token: int) -> Reads:
    return tuple(Read(-(-i * num_context // num_token), 0) for i in range(1, num_token + 1))


def _final_only(num_context: int, num_token: int) -> Reads:
    return (Read(num_context, 0),) * num_token


def _first_layer_only(num_context: int, num_token: int) -> Reads:
    return (Read(num_context, 0), *(None,) * (num_token - 1))


def _prev_and_current(num_context: int, num_token: int) -> Reads:
    if num_token == 1:
        return (Read(num_context, 0),)
    return (Read(num_context, 1), *(None,) * (num_token - 2), Read(num_context, 0))


def _previous_only(num_context: int, num_token: int) -> Reads:
    return (Read(num_context, 1),) * num_token


def _previous_first(num_context: int, num_token: int) -> Reads:
    return (Read(num_context, 1), *(Read(num_context, 0),) * (num_token - 1))


# Append only: a study that was begun with fewer knows the first ones (`search.resume.study_of`).
_READS: dict[str, Callable[[int, int], Reads]] = {
    "layerwise": _layerwise,
    "final_only": _final_only,
    "first_layer_only": _first_layer_only,
    "prev_and_current": _prev_and_current,
    "previous_only": _previous_only,
    "previous_first": _previous_first,
}
CONTEXT_MODES = tuple(_READS)


def context_reads(mode: str, context_layers: int, token_layers: int) -> Reads:
    """What each of `token_layers` token layers reads from `context_layers` context layers.

    Raises:
        ValueError: unknown mode, or a layer count outside 1..MAX_LAYERS.
    """
    if mode not in _READS:
        raise ValueError(f"unknown context mode {mode!r}: choose from {', '.join(CONTEXT_MODES)}")
    for name, count in (("context_layers", context_layers), ("token_layers", token_layers)):
        if not 1 <= count <= MAX_LAYERS:
            raise ValueError(f"{name} must be 1..{MAX_LAYERS}, not {count!r}")
    return _READS[mode](context_layers, token_layers)


def same_model_modes(mode: str, context_layers: int, token_layers: int) -> tuple[str, ...]:
    """The names, in `CONTEXT_MODES` order, that mean the same model as `mode` at these depths."""
    reads = context_reads(mode, context_layers, token_layers)
    return tuple(m for m in CONTEXT_MODES if context_reads(m, context_layers, token_layers) == reads)
