"""A two-phase model and its yardsticks, each trained in a process of its own and judged alike on the test split."""

import math
import multiprocessing
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.compute import Compute
from model.language_model import LanguageModel
from trainables import metrics as names
from trainables.artifacts import ArtifactStore
from trainables.baselines import fit_baseline
from trainables.bootstrap import Interval, percentiles, resampled_sums
from trainables.config import RunConfig
from trainables.devices import choose_device
from trainables.judge import TOP, Judgement, judge
from trainables.phase1 import DivergedError
from trainables.phase2 import Epoch, Stream, evaluate, ranks
from trainables.pipeline import CollapsedError, DoesNotFitError, Inputs, run
from trainables.progress import Progress

TWO_PHASE = "two-phase"
LENGTHS = (100, 1_000, 10_000)  # tokens of a sequence behind which its state is weighed
STATUS = Path("/proc/self/status")


class NoResultError(Exception):
    """A model ended without figures, for a reason of its configuration."""


@dataclass(frozen=True)
class Contender:
    """What training and judging one model gave."""

    kind: str  # `TWO_PHASE` or one of `model.baselines.MODELS`
    shape: str  # its sizes, in a word
    trained: int  # parameters trained, in both phases
    learning_rate: float  # Phase 2's, or the best of those tried
    val_ppl: float  # of the best epoch
    test: Judgement
    epochs: int
    seconds: float  # of one training, judging the validation split after each epoch included
    tokens_per_second: float  # training tokens times epochs, by those seconds
    peak_bytes: int | None  # most held: by a GPU's tensors, or by how much the process grew; None: unknown
    state_bytes: list[int]  # of one sequence in generation, behind each of `LENGTHS`
    points: list[tuple[str, int, float]] = field(default_factory=list)  # its curves, by the names of trainables.metrics


Say = Callable[[str], None]


class _Memory:
    """Most memory held since this was made."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.before = None if self.on_gpu else _resident("VmRSS")
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        most = _resident("VmHWM")
        return None if most is None or self.before is None else most - self.before


def _resident(key: str) -> int | None:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); None where the system does not say."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else None


def _sequence(tokens: Tensor) -> Tensor:
    """As many tokens as the longest sequence has, from the stream's beginning; a short stream is repeated."""
    return tokens[torch.arange(max(LENGTHS), device=tokens.device) % len(tokens)]


def _judged(inputs: Inputs, losses: Tensor, correct: Tensor, rank: Tensor) -> Judgement:
    arrays: list[np.ndarray] = [each.cpu().numpy() for each in (losses, correct, rank < TOP)]
    return judge(inputs.corpus.test, *arrays)


def _two_phase(config: RunConfig, inputs: Inputs, device: str, say: Say) -> Contender:
    """Train the two-phase model; its Phase 1 is never taken from a cache."""
    points: list[tuple[str, int, float]] = []

    def listen(progress: Progress) -> None:
        points.extend((name, progress.step, value) for name, value in progress.series.items())
        if names.EPOCH_VAL_PPL in progress.series:
            say(f"epoch {progress.step}: val PPL {progress.series[names.EPOCH_VAL_PPL]:.2f}")

    memory = _Memory(device)
    with tempfile.TemporaryDirectory() as scratch:
        result = run(config, inputs, ArtifactStore(Path(scratch)), device, listen)
    peak = memory.peak()
    model, figures, compute = result.model, result.metrics, Compute.of(device)
    tokens = torch.tensor(inputs.corpus.test.tokens, dtype=torch.int64, device=device)
    contexts = model.contexts(tokens, config.contexts.tolerance, compute).read(model.config.reads)
    stream = Stream(tokens, contexts)
    test = _judged(inputs, *evaluate(model, stream, compute), ranks(model, stream, compute))
    epochs, seconds = int(figures[names.EPOCHS]), figures[names.TOTAL_SECONDS]
    return Contender(
        kind=TWO_PHASE,
        shape=f"C{config.context_layers}T{config.token_layers} D{config.context_dim} {config.context_mode}",
        trained=int(figures[names.PHASE1_PARAMS] + figures[names.PHASE2_PARAMS]),
        learning_rate=config.phase2.learning_rate,
        val_ppl=figures[names.VAL_PPL],
        test=test,
        epochs=epochs,
        seconds=seconds,
        tokens_per_second=len(inputs.corpus.train.tokens) * epochs / seconds,
        peak_bytes=peak,
        state_bytes=_context_bytes(model, _sequence(tokens), config.contexts.tolerance),
        points=points,
    )


def _context_bytes(model: LanguageModel, tokens: Tensor, tolerance: float) -> list[int]:
    """All that the next position needs of those before is the last one's final context."""
    found = []
    for length in LENGTHS:
        last = model.contexts(tokens[:length], tolerance).final[-1]
        found.append(last.numel() * last.element_size())
    return found


def _baseline(kind: str, config: RunConfig, inputs: Inputs, device: str, say: Say) -> Contender:
    """Train a yardstick of the two-phase model's size."""
    points: dict[float, list[tuple[str, int, float]]] = {}

    def on_epoch(rate: float, epoch: Epoch) -> None:
        say(f"learning rate {rate:g}, epoch {epoch.number}: val PPL {epoch.val_ppl:.2f}")
        series = {
            names.EPOCH_TRAIN_PPL: epoch.train_ppl,
            names.EPOCH_VAL_PPL: epoch.val_ppl,
            names.EPOCH_VAL_ACC: epoch.val_acc,
        }
        points.setdefault(rate, []).extend((name, epoch.number, value) for name, value in series.items())

    memory = _Memory(device)
    table = torch.tensor(inputs.embedding.table)
    like = LanguageModel(config.model_config(*table.shape), table, config.seed).to(device)
    splits = (inputs.corpus.train, inputs.corpus.validation, inputs.corpus.test)
    train, validation, test = (torch.tensor(s.tokens, dtype=torch.int64, device=device) for s in splits)
    fitted = fit_baseline(kind, like, train, validation, config.phase2, config.seed, on_epoch, Compute.of(device))
    peak, result = memory.peak(), fitted.result
    return Contender(
        kind=kind,
        shape=f"H{fitted.model.out.in_features}",
        trained=fitted.model.num_trained(),
        learning_rate=fitted.learning_rate,
        val_ppl=result.best.val_ppl,
        test=_judged(inputs, *fitted.evaluate(test)),
        epochs=len(result.epochs),
        seconds=result.seconds,
        tokens_per_second=len(train) * len(result.epochs) / result.seconds,
        peak_bytes=peak,
        state_bytes=fitted.state_bytes(_sequence(test), LENGTHS),
        points=points[fitted.learning_rate],
    )


def against(first: Judgement, other: Judgement) -> Interval:
    """By how much the PPL of `other` is above that of `first`, as a share, on the same resampled documents."""
    columns = np.stack([other.nats - first.nats, first.targets], axis=1)[first.targets > 0]
    if len(columns) < 2:
        return Interval(other.ppl.value / first.ppl.value - 1, math.nan, math.nan)
    drawn = resampled_sums(columns)
    return percentiles(other.ppl.value / first.ppl.value - 1, np.expm1(drawn[:, 0] / drawn[:, 1]))


def contend(kind: str, config: RunConfig, inputs: Inputs, gpus: float, threads: int) -> Contender:
    """Train and judge one model in this process, and tell how it goes."""
    torch.set_num_threads(threads)
    device = choose_device(gpus)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"  {kind:<12} {text}  ({time.monotonic() - began:.0f} s)", flush=True)

    try:
        if kind == TWO_PHASE:
            return _two_phase(config, inputs, device, say)
        return _baseline(kind, config, inputs, device, say)
    except (DivergedError, CollapsedError, DoesNotFitError) as error:
        raise NoResultError(f"{kind}: {error}") from None


def contest(config: RunConfig, inputs: Inputs, kinds: Sequence[str], gpus: float, threads: int) -> Iterator[Contender]:
    """One model after the other, each in a fresh process: what one leaves in memory is not another's.

    Raises:
        NoResultError: a model diverged, collapsed or does not fit, or its process died.
    """
    spawn = multiprocessing.get_context("spawn")
    for kind in kinds:
        receive, send = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_hand_over, args=(send, kind, config, inputs, gpus, threads), daemon=True)
        process.start()
        send.close()
        try:
            found = receive.recv()
        except EOFError:
            process.join()
            raise NoResultError(f"{kind}: its process ended with exit code {process.exitcode}") from None
        finally:  # Ctrl-C included
            process.terminate()
            process.join()
        if isinstance(found, NoResultError):
            raise found
        yield found


def _hand_over(send: Connection, kind: str, config: RunConfig, inputs: Inputs, gpus: float, threads: int) -> None:
    """What `contend` returns, or why there is nothing, to the process that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits ends this one
    try:
        send.send(contend(kind, config, inputs, gpus, threads))
    except NoResultError as error:
        send.send(error)
