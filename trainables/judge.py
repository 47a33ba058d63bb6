"""How well a model predicts a split: figures with 95 % intervals over documents, and what counting would give."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from trainables.bootstrap import Interval, percentiles, resampled_sums
from trainables.corpus import Corpus, Split
from trainables.metrics import judged
from trainables.ngrams import bigram_losses, unigram_losses

SPLITS = ("validation", "test")  # what a finished model is judged on
TOP = 5  # a target among the so many most likely tokens is a hit of `top5`


@dataclass(frozen=True)
class Judgement:
    """Figures of one model on one split; an interval's ends are NaN where a single document has targets."""

    ppl: Interval  # exp of the mean loss over targets
    accuracy: Interval  # share of targets that were the most likely token
    top5: Interval  # share of targets among the five most likely tokens
    bits_per_byte: Interval  # loss in bits, by the UTF-8 bytes of the targets (`model.documents.predicted_bytes`)
    nats: np.ndarray  # (documents,) summed over each document's targets
    targets: np.ndarray  # (documents,)

    def metrics(self, split: str) -> dict[str, float]:
        """All figures by name (`metrics.judged`), with their intervals' ends where there are any."""
        found: dict[str, float] = {}
        for field in fields(self)[:4]:
            found |= interval_metrics(split, field.name, getattr(self, field.name))
        return found


def interval_metrics(split: str, figure: str, interval: Interval) -> dict[str, float]:
    """A figure of a split, and its interval's ends where it has any, by name."""
    ends = {"": interval.value, "low": interval.low, "high": interval.high}
    return {judged(split, figure, end): value for end, value in ends.items() if math.isfinite(value)}


def judge(split: Split, losses: np.ndarray, correct: np.ndarray, top5: np.ndarray) -> Judgement:
    """Judge a model by what it made of each target `tokens[1:]` of `split`.

    Documents are drawn with replacement, with the same draws for every figure and every model on the same split.
    Without a target (a stream's first document, if it is one token long) a document is no part of the figures.

    Args:
        losses: in nats.  # (N-1,)
        correct: whether the most likely token was the target.  # (N-1,)
        top5: whether the target was among the five most likely.  # (N-1,)
    """
    nats, targets = split.by_document(losses)
    counts = [split.by_document(each)[0] for each in (correct, top5)]
    ratios = _Ratios(np.stack([nats, *counts, targets, split.document_bytes], axis=1)[targets > 0])
    return Judgement(
        ppl=ratios.interval(0, 3, np.exp),
        accuracy=ratios.interval(1, 3),
        top5=ratios.interval(2, 3),
        bits_per_byte=ratios.interval(0, 4, lambda per_byte: per_byte / math.log(2)),
        nats=nats,
        targets=targets,
    )


def judge_splits(
    corpus: Corpus, device: torch.device | str, evaluate: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
) -> dict[str, Judgement]:
    """A model judged on `SPLITS`.

    Args:
        evaluate: of a stream (N,) int64 on `device`: losses in nats, hits and ranks of its N-1 targets.
    """
    found = {}
    for name in SPLITS:
        split: Split = getattr(corpus, name)
        losses, correct, ranks = evaluate(torch.tensor(split.tokens, dtype=torch.int64, device=device))
        found[name] = judge(split, *(each.cpu().numpy() for each in (losses, correct, ranks < TOP)))
    return found


def judged_metrics(judged: dict[str, Judgement], corpus: Corpus, vocab_size: int) -> dict[str, float]:
    """Figures of a judged model by name, and what counting would give on the same splits.

    Args:
        vocab_size: as in `yardsticks`.
    """
    found: dict[str, float] = {}
    for name, judgement in judged.items():
        found |= judgement.metrics(name)
        for line, interval in yardsticks(corpus.train, getattr(corpus, name), vocab_size).items():
            found |= interval_metrics(name, f"{line}_ppl", interval)
    return found


def against(first: Judgement, other: Judgement) -> Interval:
    """By how much the PPL of `other` is above that of `first`, as a share, on the same resampled documents."""
    columns = np.stack([other.nats - first.nats, first.targets], axis=1)[first.targets > 0]
    if len(columns) < 2:
        return Interval(other.ppl.value / first.ppl.value - 1, math.nan, math.nan)
    drawn = resampled_sums(columns)
    return percentiles(other.ppl.value / first.ppl.value - 1, np.expm1(drawn[:, 0] / drawn[:, 1]))


def yardsticks(train: Split, split: Split, vocab_size: int) -> dict[str, Interval]:
    """PPL of `split` by counting in `train`: of `unigram` and `bigram`.

    Args:
        vocab_size: V, over which probability is spread.
    """
    each = {"unigram": unigram_losses, "bigram": bigram_losses}
    losses = [split.by_document(of(train.tokens, split.tokens, vocab_size)) for of in each.values()]
    targets = losses[0][1]
    ratios = _Ratios(np.stack([*(nats for nats, _ in losses), targets], axis=1)[targets > 0])
    return {name: ratios.interval(column, 2, np.exp) for column, name in enumerate(each)}


class _Ratios:
    """Ratios of sums over documents, all on the same draws."""

    def __init__(self, columns: np.ndarray) -> None:
        """`columns`: what each document adds to each sum.  # (documents, columns)"""
        self.total = columns.sum(axis=0, dtype=np.float64, keepdims=True)
        self.drawn = resampled_sums(columns) if len(columns) > 1 else None

    def interval(self, above: int, below: int, of: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Interval:
        """`of` the ratio of two columns' sums."""
        value = float(of(self.total[0, above : above + 1] / self.total[0, below])[0])
        if self.drawn is None:
            return Interval(value, math.nan, math.nan)
        return percentiles(value, of(self.drawn[:, above] / self.drawn[:, below]))
