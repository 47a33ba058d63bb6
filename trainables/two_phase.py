"""The Ray trainable: one trial is one `pipeline.run`, reported to Tune as it goes. No torch until it runs."""

import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from trainables.config import RunConfig
from trainables.errors import CollapsedError, NoResultError, OtherCodeError
from trainables.host.devices import choose_device, hardware
from trainables.host.digests import ROOT, Provenance, own_code
from trainables.progress import Progress
from trainables.reports import Collapsed, Failed, Finished, InputsSummary, Point, Report

if TYPE_CHECKING:
    from trainables.inputs.sources import DataSource, EmbeddingSource
    from trainables.pipeline import Inputs

REPORT_EVERY = 0.5  # seconds between reports
TASK = "task"  # the only key of a trial's config, as Tune calls it


@dataclass(frozen=True)
class Task:
    """What a trial is to do."""

    config: RunConfig
    profile: Path | None = None  # the folder that traces of the run's beginning go to

    def as_config(self) -> dict[str, Any]:
        """The task as Tune wants it."""
        return {TASK: self}


class _Reporter:
    """Collects a run's progress and hands it to Tune, never more often than `REPORT_EVERY`."""

    def __init__(self, provenance: Provenance, device_name: str) -> None:
        self._provenance, self._device_name = provenance, device_name
        self._points: list[Point] = []
        self._sent: dict[str, int] = {}
        self._last = -math.inf
        self._at = Progress("start", 0, 0)

    def __call__(self, progress: Progress) -> None:
        for name, value in progress.series.items():
            if progress.step > self._sent.get(name, -1):  # a run that had to begin again goes through them again
                self._points.append(Point(name, progress.step, value))
                self._sent[name] = progress.step
        self._at = progress
        if time.monotonic() - self._last >= REPORT_EVERY:
            self.send()

    def send(self, end: Finished | Collapsed | Failed | None = None) -> None:
        """Report what has gathered."""
        sent = Report(
            at=self._at, points=self._points, device_name=self._device_name, provenance=self._provenance, end=end
        )
        tune.report(sent.as_result())
        self._points, self._last = [], time.monotonic()


def check_code(code: str, place: str) -> None:
    """Whether this process runs the code of the process that asked for the trial.

    Args:
        code: `digests.own_code` there.
        place: the folder that it lies in there.

    Raises:
        OtherCodeError: it does not.
    """
    if own_code() != code:
        raise OtherCodeError(
            f"the worker on {platform.node()} runs the code in {ROOT}, this study that in {place}: "
            "have every host run the same version"
        )


def two_phase(
    config: dict[str, Any],
    *,
    inputs: list[ray.ObjectRef],
    cache: str,
    threads: int,
    gpus: float,
    code: tuple[str, str],
) -> None:
    """One trial.

    Args:
        config: a `Task`, by `Task.as_config`.
        inputs: one reference to the study's `pipeline.Inputs`, in the object store once.
        cache: folder of shared Phase-1 results.
        threads: CPU threads of the computation; recorded, since the last digits depend on it.
        gpus: what Ray granted.
        code: as in `check_code`.
    """
    check_code(*code)
    import torch

    from model.ops.compute import Compute
    from trainables.cache import ArtifactStore
    from trainables.phases.traces import Profiler
    from trainables.pipeline import run

    torch.set_num_threads(threads)
    device = choose_device(gpus)
    report = _Reporter(Provenance.of(device, Compute.of(device)), hardware(gpus))
    task: Task = config[TASK]
    profiler = Profiler(task.profile, report) if task.profile else None
    store, listen = ArtifactStore(Path(cache)), profiler or report
    try:
        result = run(task.config, ray.get(inputs[0]), store, device, listen)
    except CollapsedError as error:
        report.send(Collapsed(str(error), error.figures))
    except NoResultError as error:  # an outcome, not a fault: the worker goes on with the next trial
        report.send(Failed(str(error)))
    else:
        report.send(Finished(result.metrics, result.val_documents, result.phase1_by))
    finally:
        if profiler:  # the worker is used again: nothing may go on recording
            profiler.stop()


def repeat(
    config: RunConfig, inputs: "Inputs", threads: int, gpus: float, code: tuple[str, str]
) -> tuple[dict[str, float], list[float]]:
    """Train a trial again, Phase 1 included, and keep nothing: figures and validation losses by document.

    Args:
        inputs: of this very config; the others as in `two_phase`.
    """
    check_code(*code)
    import tempfile

    import torch

    from trainables.cache import ArtifactStore
    from trainables.pipeline import run

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="repeat-") as scratch:
        result = run(config, inputs, ArtifactStore(Path(scratch)), choose_device(gpus))
    return result.metrics, result.val_documents.nats


def prepare_study(
    config: RunConfig,
    data: "DataSource",
    embedding: "EmbeddingSource",
    cache: str,
    threads: int,
    gpus: float,
    code: tuple[str, str],
    begun_with: str | None = None,
) -> tuple["Inputs", InputsSummary]:
    """Make a study's inputs where trials run; returned to the object store, with what the driver wants to know.

    Args:
        begun_with: as in `pipeline.prepare_inputs`; the others as in `two_phase`.
    """
    check_code(*code)
    import torch

    from model.ops.chunks import out_of_memory
    from model.ops.compute import Compute
    from trainables.cache import ArtifactStore
    from trainables.inputs.overlap import as_params
    from trainables.pipeline import prepare_inputs

    torch.set_num_threads(threads)
    device = choose_device(gpus)
    try:
        inputs = prepare_inputs(config, data, embedding, ArtifactStore(Path(cache)), device, begun_with)
    except RuntimeError as error:
        if not (reason := out_of_memory(error)):
            raise
        raise ValueError(f"the embedding does not fit the GPU's memory ({reason}): is another process on it?") from None
    corpus, bigram = inputs.corpus, inputs.embedding.bigram
    vocab_size, embedding_dim = inputs.embedding.table.shape
    return inputs, InputsSummary(
        train_tokens=len(corpus.train.tokens),
        val_tokens=len(corpus.validation.tokens),
        test_tokens=len(corpus.test.tokens),
        **as_params(corpus.overlap),
        vocab_size=vocab_size,
        embedding_dim=embedding_dim,
        bigram_val_ppl=bigram.val_ppl if bigram else None,
        bigram_val_acc=bigram.val_acc if bigram else None,
        inputs=inputs.digest,
        hardware=hardware(gpus),
        provenance=Provenance.of(device, Compute.of(device)),
    )
