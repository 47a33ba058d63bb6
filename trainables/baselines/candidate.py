"""One model of a comparison: trained from nothing in this process, timed and weighed, and scored as any trained model.

All are measured alike. Each has a process of its own, and there the same training once before with a single epoch: what
is made at a first call (kernels, libraries' plans) is in nobody's seconds. Seconds are those of the whole training,
memory is the most that it held.
"""

import gc
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.language_model import LanguageModel
from model.ops.compute import Compute
from trainables import metrics as names
from trainables.baselines.fit import fit_baseline
from trainables.cache import ArtifactStore
from trainables.config import RunConfig
from trainables.evaluation.evaluate import SplitScores, score_metrics, score_splits
from trainables.host.devices import choose_device
from trainables.metrics import STATE_LENGTHS
from trainables.phases.convergence import with_converged
from trainables.phases.phase2 import Epoch
from trainables.pipeline import Inputs, run
from trainables.progress import Progress

TWO_PHASE = "two-phase"
STATUS = Path("/proc/self/status")

Points = list[tuple[str, int, float]]  # of curves: name (trainables.metrics), step, value
ProgressCallback = Callable[[Points], None]


@dataclass(frozen=True)
class ComparedModel:
    """What training and scoring one model gave."""

    kind: str  # `TWO_PHASE` or one of `trainables.baselines.networks.MODELS`
    shape: str  # its sizes, in a word
    rate: float  # Phase 2's learning rate
    rates: tuple[float, ...]  # all that were tried
    metrics: dict[str, float]  # by the names of trainables.metrics, those of a trained model and of a comparison
    test: SplitScores
    points: Points  # its curves


@dataclass(frozen=True)
class _Trained:
    """A model, and what differs from kind to kind."""

    shape: str
    metrics: dict[str, float]
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # as `evaluate.score_splits` wants it
    state_bytes: Callable[[Tensor], list[int]]  # of a sequence in generation, behind each of `STATE_LENGTHS`


def train_and_score(kind: str, config: RunConfig, inputs: Inputs, gpus: float, threads: int) -> ComparedModel:
    """Train and score one model in this process, and tell how it goes.

    Args:
        config: a baseline takes its sizes, seed and Phase 2, the learning rate included.

    Raises:
        NoResultError: a loss is not finite, Phase 1 collapsed, or the GPU's memory is too small.
    """
    torch.set_num_threads(threads)
    device = choose_device(gpus, "--device cpu")
    points: Points = []
    told = kind if kind == TWO_PHASE else f"{kind}, learning rate {config.phase2.learning_rate:g}"

    def listen(new: Points) -> None:
        points.extend(new)
        for name, step, value in new:
            if name == names.EPOCH_VAL_PPL:
                print(f"  {told}: epoch {step}, val PPL {value:.2f}", flush=True)

    memory = _Memory(device)
    _train(kind, config.replace(phase2_epochs=1), inputs, device, lambda new: None)
    gc.collect()  # a module's hooks may refer to itself
    memory.begin()
    began = time.perf_counter()
    trained = _train(kind, config, inputs, device, listen)
    seconds, peak = time.perf_counter() - began, memory.peak()
    scored = score_splits(inputs.corpus, device, trained.evaluate)
    sizes = trained.state_bytes(_sequence(inputs, device))
    metrics = trained.metrics | score_metrics(scored, inputs.corpus, len(inputs.embedding.table))
    metrics[names.TOTAL_SECONDS] = seconds
    metrics[names.TOKENS_PER_SECOND] = len(inputs.corpus.train.tokens) * metrics[names.EPOCHS] / seconds
    metrics |= {names.state_bytes(length): float(size) for length, size in zip(STATE_LENGTHS, sizes, strict=True)}
    if peak is not None:
        metrics[names.PEAK_BYTES] = float(peak)
    rate = config.phase2.learning_rate
    return ComparedModel(kind, trained.shape, rate, (rate,), metrics, scored["test"], points)


class _Memory:
    """Most memory that a training holds.

    Of a GPU its tensors; on a CPU by how much the process grew, from before the first of the two trainings: the second
    takes again what the first has left.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.before = None if self.on_gpu else _resident("VmRSS")

    def begin(self) -> None:
        """The training that is weighed begins."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Bytes; None where the system does not say."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        most = _resident("VmHWM")
        return None if most is None or self.before is None else most - self.before


def _resident(key: str) -> int | None:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); None where the system does not say."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else None


def _sequence(inputs: Inputs, device: str) -> Tensor:
    """As many tokens as the longest sequence has, from the test stream's beginning; a short stream is repeated."""
    tokens = torch.tensor(inputs.corpus.test.tokens, dtype=torch.int64, device=device)
    return tokens[torch.arange(max(STATE_LENGTHS), device=device) % len(tokens)]


def _train(kind: str, config: RunConfig, inputs: Inputs, device: str, listen: ProgressCallback) -> _Trained:
    return (_two_phase if kind == TWO_PHASE else _baseline)(kind, config, inputs, device, listen)


def _two_phase(kind: str, config: RunConfig, inputs: Inputs, device: str, listen: ProgressCallback) -> _Trained:
    """The two-phase model; its Phase 1 is never taken from a cache."""

    def on_progress(progress: Progress) -> None:
        listen([(name, progress.step, value) for name, value in progress.series.items()])

    with tempfile.TemporaryDirectory() as scratch:
        result = run(config, inputs, ArtifactStore(Path(scratch)), device, on_progress)
    model, figures = result.model, with_converged(config, result.metrics)

    def state_bytes(tokens: Tensor) -> list[int]:
        """All that the next position needs of those before is the last one's final context."""
        last = [model.contexts(tokens[:length], config.contexts.tolerance).final[-1] for length in STATE_LENGTHS]
        return [context.numel() * context.element_size() for context in last]

    return _Trained(
        shape=f"C{config.context_layers}T{config.token_layers} D{config.context_dim} {config.context_mode}",
        metrics=figures | {names.TRAINED_PARAMS: figures[names.PHASE1_PARAMS] + figures[names.PHASE2_PARAMS]},
        evaluate=result.evaluate,
        state_bytes=state_bytes,
    )


def _baseline(kind: str, config: RunConfig, inputs: Inputs, device: str, listen: ProgressCallback) -> _Trained:
    """A baseline of the two-phase model's size."""

    def on_epoch(epoch: Epoch) -> None:
        series = ((names.EPOCH_TRAIN_PPL, epoch.train_ppl), (names.EPOCH_VAL_PPL, epoch.val_ppl))
        listen([(name, epoch.number, value) for name, value in (*series, (names.EPOCH_VAL_ACC, epoch.val_acc))])

    table = torch.tensor(inputs.embedding.table)
    like = LanguageModel(config.model_config(*table.shape), table, config.seed).to(device)
    splits = (inputs.corpus.train, inputs.corpus.validation)
    train, validation = (torch.tensor(split.tokens, dtype=torch.int64, device=device) for split in splits)
    fitted = fit_baseline(kind, like, train, validation, config.phase2, config.seed, on_epoch, Compute.of(device))
    result, trained = fitted.result, fitted.model.num_trained()
    return _Trained(
        shape=f"H{fitted.model.out.in_features}",
        metrics={
            names.VAL_PPL: result.best.val_ppl,
            names.VAL_ACC: result.best.val_acc,
            names.TRAIN_PPL: result.best.train_ppl,
            names.BEST_EPOCH: float(result.best.number),
            names.EPOCHS: float(len(result.epochs)),
            names.TOTAL_PARAMS: float(table.numel() + trained),
            names.TRAINED_PARAMS: float(trained),
        },
        evaluate=fitted.evaluate,
        state_bytes=lambda tokens: fitted.state_bytes(tokens, STATE_LENGTHS),
    )
