"""What counting the training tokens gives: unigrams and bigrams, the lines below which a model is of no use.

Both are proper distributions over all V tokens.
"""

import numpy as np


def unigram_losses(train: np.ndarray, stream: np.ndarray, vocab_size: int) -> np.ndarray:
    """Losses in nats of the targets `stream[1:]` by how often each token is in `train`, one added to each count.

    # (N,), (M,) -> (M-1,)
    """
    counts = np.bincount(train, minlength=vocab_size) + 1
    losses: np.ndarray = -np.log(counts / counts.sum())[stream[1:]]
    return losses


def bigram_losses(train: np.ndarray, stream: np.ndarray, vocab_size: int) -> np.ndarray:
    """Losses in nats of the targets `stream[1:]` given the token before each: interpolated Kneser-Ney.

    A pair's count less a discount, and the discounted rest shared out by how many different tokens come before the
    target in `train` (one added to each). The discount is Ney's estimate, from how many pairs were seen once and twice,
    kept off 0 and 1.  # (N,), (M,) -> (M-1,)
    """
    pairs, counts = np.unique(_pairs(train, vocab_size), return_counts=True)  # (P,)
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = (once + 1) / (once + 2 * twice + 2)
    before = np.bincount(pairs % vocab_size, minlength=vocab_size) + 1  # different tokens before each
    lower = before / before.sum()
    seen = np.bincount(train[:-1], minlength=vocab_size)  # how often each token is followed by another
    after = np.bincount(pairs // vocab_size, minlength=vocab_size)  # by how many different ones
    wanted = _pairs(stream, vocab_size)
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[at] == wanted, counts[at], 0)
    first, target = stream[:-1], stream[1:]
    known = np.maximum(seen[first], 1)
    above = np.maximum(count - discount, 0) / known
    share = np.where(seen[first] > 0, discount * after[first] / known, 1.0)  # what is left for the lower order
    losses: np.ndarray = -np.log(above + share * lower[target])
    return losses


def _pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Each pair of neighbours as one number."""
    pairs: np.ndarray = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
    return pairs
