"""How well a model predicts a split: figures with 95 % intervals over documents, and what counting would give."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from trainables.evaluation.intervals import Interval, merged, ratio_interval, share_interval, transformed
from trainables.evaluation.ngrams import bigram_losses, unigram_losses
from trainables.inputs.corpus import Corpus, Split
from trainables.metrics import split_metric

SPLITS = ("validation", "test")  # what a finished model is scored on
UNITS = "documents"  # of a scored split: how many independent ones its intervals are over
TOP = 5  # a target among the so many most likely tokens is a hit of `top5`


@dataclass(frozen=True)
class SplitScores:
    """Figures of one model on one split; an interval's ends are NaN where a single document has targets."""

    ppl: Interval  # exp of the mean loss over targets
    accuracy: Interval  # share of targets that were the most likely token
    top5: Interval  # share of targets among the five most likely tokens
    bits_per_byte: Interval  # loss in bits, by the UTF-8 bytes of the targets (`model.text.documents.predicted_bytes`)
    nats: np.ndarray  # (documents,) summed over each document's targets
    targets: np.ndarray  # (documents,)
    units: np.ndarray  # (documents,) as `corpus.Split.units`

    @property
    def num_units(self) -> int:
        """How many independent documents the intervals are over."""
        return len(np.unique(self.units[self.targets > 0]))

    def metrics(self, split: str) -> dict[str, float]:
        """All figures by name (`metrics.split_metric`), with their intervals' ends where there are any."""
        found: dict[str, float] = {}
        for field in fields(self)[:4]:
            found |= interval_metrics(split, field.name, getattr(self, field.name))
        return found | {split_metric(split, UNITS): float(self.num_units)}


def interval_metrics(split: str, figure: str, interval: Interval) -> dict[str, float]:
    """A figure of a split, and its interval's ends where it has any, by name."""
    ends = {"": interval.value, "low": interval.low, "high": interval.high}
    return {split_metric(split, figure, end): value for end, value in ends.items() if math.isfinite(value)}


def score_split(split: Split, losses: np.ndarray, correct: np.ndarray, top5: np.ndarray) -> SplitScores:
    """Score a model by what it made of each target `tokens[1:]` of `split`.

    Intervals are over documents; those of the same tokens count as one.
    Without a target (a stream's first document, if it is one token long) a document is no part of the figures.

    Args:
        losses: in nats.  # (N-1,)
        correct: whether the most likely token was the target.  # (N-1,)
        top5: whether the target was among the five most likely.  # (N-1,)
    """
    nats, targets = split.by_document(losses)
    counts = [split.by_document(each)[0] for each in (correct, top5)]
    each = _by_unit(split.units, np.stack([nats, *counts, split.document_bytes]), targets)
    return SplitScores(
        ppl=transformed(ratio_interval(each[0], each[-1]), math.exp),
        accuracy=share_interval(each[1], each[-1]),
        top5=share_interval(each[2], each[-1]),
        bits_per_byte=transformed(ratio_interval(each[0], each[3]), lambda per_byte: per_byte / math.log(2)),
        nats=nats,
        targets=targets,
        units=split.units,
    )


def _by_unit(units: np.ndarray, columns: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Columns and, as the last, targets, by unit; units without a target left out.  # (columns + 1, units)"""
    each = merged(units, np.concatenate([columns, targets[None]]).astype(np.float64))
    return each[:, each[-1] > 0]


def score_splits(
    corpus: Corpus, device: torch.device | str, evaluate: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
) -> dict[str, SplitScores]:
    """A model scored on `SPLITS`.

    Args:
        evaluate: of a stream (N,) int64 on `device`: losses in nats, hits and ranks of its N-1 targets.
    """
    found = {}
    for name in SPLITS:
        split: Split = getattr(corpus, name)
        losses, correct, ranks = evaluate(torch.tensor(split.tokens, dtype=torch.int64, device=device))
        found[name] = score_split(split, *(each.cpu().numpy() for each in (losses, correct, ranks < TOP)))
    return found


def score_metrics(scored: dict[str, SplitScores], corpus: Corpus, vocab_size: int) -> dict[str, float]:
    """Figures of a scored model by name, and what counting would give on the same splits.

    Args:
        vocab_size: as in `ngram_baselines`.
    """
    found: dict[str, float] = {}
    for name, scores in scored.items():
        found |= scores.metrics(name)
        for line, interval in ngram_baselines(corpus.train, getattr(corpus, name), vocab_size).items():
            found |= interval_metrics(name, f"{line}_ppl", interval)
    return found


def against(first: SplitScores, other: SplitScores) -> Interval:
    """By how much the PPL of `other` is above that of `first`, as a share, document by document."""
    difference, targets = _by_unit(first.units, (other.nats - first.nats)[None], first.targets)
    return transformed(ratio_interval(difference, targets), math.expm1)


def ngram_baselines(train: Split, split: Split, vocab_size: int) -> dict[str, Interval]:
    """PPL of `split` by counting in `train`: of `unigram` and `bigram`.

    Args:
        vocab_size: V, over which probability is spread.
    """
    each = {"unigram": unigram_losses, "bigram": bigram_losses}
    losses = [split.by_document(of(train.tokens, split.tokens, vocab_size)) for of in each.values()]
    *sums, sizes = _by_unit(split.units, np.stack([nats for nats, _ in losses]), losses[0][1])
    return {name: transformed(ratio_interval(of, sizes), math.exp) for name, of in zip(each, sums, strict=True)}
