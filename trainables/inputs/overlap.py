"""How much of the validation and test text stands word for word in the training text.

Counted in sequences of `WORDS` words, whatever white space lies between them: what somebody would take for a quotation.
They are words of the text and not token ids, so that the shares of one data set are the same under every tokenizer
that gives its text back.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np

WORDS = 12
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no factor of a hash is lost modulo 2**64
SEQUENCES = f"{WORDS}-word sequences that training has too"  # what the shares are of, for people
NOT_MEASURED = "not measured"
LARGELY = 0.2  # of the validation text in training: from here on figures say little of text that is new


def shares_in_training(train: Iterable[str], splits: Mapping[str, Iterable[str]]) -> dict[str, float | None]:
    """The share of each split's sequences of `WORDS` words that the training documents have too.

    A sequence lies within one document, and counts as often as it occurs. They are compared by hashes of 64 bits.

    Args:
        train: the training documents' texts.
        splits: the other documents' texts by the split's name.

    Returns:
        Shares from 0 to 1 by name; None for a split of which no document has so many words.
    """
    ids: defaultdict[str, int] = defaultdict(count().__next__)  # every new word gets the next number
    known = np.sort(_hashes(train, ids))
    each = {name: _hashes(texts, ids) for name, texts in splits.items()}
    return {name: _share(found, known) for name, found in each.items()}


def _share(found: np.ndarray, known: np.ndarray) -> float | None:
    """The share of `found` that is in the sorted `known`; `np.isin` takes thirty times as long.  # (N,), (M,)"""
    if len(found) == 0:
        return None
    first, behind = (np.searchsorted(known, found, side) for side in ("left", "right"))
    return float((behind > first).mean())


def _hashes(texts: Iterable[str], ids: defaultdict[str, int]) -> np.ndarray:
    """A hash of every sequence of words, which `ids` numbers.  # (sequences,) uint64"""
    numbers: list[int] = []
    starts: list[int] = []  # of sequences that go beyond their document: its last words, or all where it has few
    for text in texts:
        begin = len(numbers)
        numbers.extend(map(ids.__getitem__, text.split()))
        starts.extend(range(max(begin, len(numbers) - WORDS + 1), len(numbers)))
    if len(numbers) < WORDS:
        return np.empty(0, dtype=np.uint64)
    values = _mixed(np.asarray(numbers, dtype=np.uint64))
    number = len(values) - WORDS + 1
    found = np.zeros(number, dtype=np.uint64)
    for offset in range(WORDS):
        found = found * MULTIPLIER + values[offset : offset + number]
    beyond = np.asarray(starts, dtype=np.int64)
    return np.delete(found, beyond[beyond < number])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers as ones that look random, one for one: the finaliser of SplitMix64."""
    mixed = (numbers + np.uint64(1)) * MULTIPLIER
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def as_params(overlap: Mapping[str, float | None]) -> dict[str, float | None]:
    """A corpus's shares by split under the names that a study's and a training's record have them by."""
    return {"val_overlap": overlap.get("validation"), "test_overlap": overlap.get("test")}


def describe_overlap(about: Mapping[str, Any]) -> str:
    """Both shares in a line for people, from a study's record or its summary; earlier ones have none."""
    return f"validation {_percent(about.get('val_overlap'))}, test {_percent(about.get('test_overlap'))}"


def largely_in_training(about: Mapping[str, Any]) -> str | None:
    """A sentence where so much of the validation text is training text; None where it is not, or is not known."""
    share = about.get("val_overlap")
    if share is None or share < LARGELY:
        return None
    return (
        f"The validation text is largely in the training text ({_percent(share)} of its {SEQUENCES}): "
        "its figures say little of text that is new."
    )


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"
