"""What a trial reports to the study that runs it. Importing this costs nothing: neither torch nor Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trainables.host.digests import Provenance
from trainables.progress import Progress

REPORT = "report"  # the only key of ours in a result of Tune's


class Point(NamedTuple):
    """One point of a curve."""

    name: str  # a series of trainables.metrics
    step: int
    value: float


@dataclass(frozen=True)
class DocumentLosses:
    """A stream's losses, summed over each of its documents; lists, so that they are JSON as they are."""

    nats: list[float]
    targets: list[int]
    units: list[int]  # documents of one number are one unit of what chance has drawn (`Split.units`)


@dataclass(frozen=True)
class Finished:
    """The trial has a result."""

    metrics: dict[str, float]  # by the names of trainables.metrics, an open set; all finite
    documents: DocumentLosses  # of the validation split
    phase1_by: str  # config hash of the run that trained Phase 1


@dataclass(frozen=True)
class Collapsed:
    """The trial ended before Phase 2, which its contexts are not worth."""

    reason: str
    metrics: dict[str, float]  # Phase 1's


@dataclass(frozen=True)
class Failed:
    """The trial has no result: it diverged, or does not fit the GPU's memory."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """How far a trial is, what happened since its last report, and how it ended, if it did."""

    at: Progress
    points: list[Point] = field(default_factory=list)  # each point of a run is in one of its reports
    device_name: str  # what the trial computes on, for people
    provenance: Provenance
    end: Finished | Collapsed | Failed | None = None

    def as_result(self) -> dict[str, Any]:
        """The report as Tune wants it."""
        return {REPORT: self}


@dataclass(frozen=True, kw_only=True)
class InputsSummary:
    """What a study records of its inputs and of where they were made."""

    train_tokens: int
    val_tokens: int
    test_tokens: int
    val_overlap: float | None  # shares of sequences that the training text has too; None: not measured
    test_overlap: float | None
    vocab_size: int
    embedding_dim: int
    bigram_val_ppl: float | None  # of the bigram model behind the embedding, if there is one
    bigram_val_acc: float | None
    inputs: str  # digest of the training tokens and the table
    hardware: str
    provenance: Provenance

    def as_params(self) -> dict[str, Any]:
        """Flat, as a study's record and MLflow have it."""
        rest = {key: value for key, value in vars(self).items() if key != "provenance"}
        return rest | {"compute": self.provenance.compute}


def report_of(result: Mapping[str, Any] | None) -> Report | None:
    """The report in a result of Tune's; None where the trial had made none."""
    found: Report | None = (result or {}).get(REPORT)
    return found
