"""One run from inputs to figures, without Ray: embedding → Phase 1 → contexts → Phase 2 → metrics.

Phase 1 is looked up by content first: whatever run trained it, its weights and figures are reused.
"""

import gc
import hashlib
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.language_model import LanguageModel
from model.ops.chunks import out_of_memory
from model.ops.compute import Compute
from trainables import metrics as names
from trainables.cache import ArtifactStore
from trainables.config import RunConfig
from trainables.errors import CollapsedError, DivergedError, DoesNotFitError
from trainables.inputs.corpus import Corpus, load_corpus
from trainables.inputs.embeddings import Embedding, kept_tables, load_embedding
from trainables.inputs.sources import DataSource, EmbeddingSource
from trainables.phases.phase2 import Checkpoints, Epoch, Phase2Result, Stream, evaluate, fit_phase2, ranks
from trainables.phases.shared_phase1 import SharedPhase1
from trainables.progress import Progress, ProgressCallback
from trainables.reports import DocumentLosses


@dataclass(frozen=True)
class Inputs:
    """What all runs of a study share; arrays only, so that Ray's object store maps it without a copy."""

    corpus: Corpus
    embedding: Embedding
    digest: str  # of the training tokens and the table, byte for byte


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    model: LanguageModel  # with the best epoch's weights
    metrics: dict[str, float]  # by the names of trainables.metrics; all finite
    val_documents: DocumentLosses  # of the epoch that the metrics are of
    compute: Compute  # how it was computed
    phase1_by: str  # config hash of the run that trained Phase 1: this one's, or that of an earlier one
    tolerance: float  # of exact contexts, `ContextsConfig`'s

    def evaluate(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses in nats, hits and ranks of the N-1 targets `tokens[1:]`.  # (N-1,) float, bool, int64"""
        contexts = self.model.contexts(tokens, self.tolerance, self.compute)
        stream = Stream(tokens, contexts.read(self.model.config.reads))
        losses, correct = evaluate(self.model, stream, self.compute)
        return losses, correct, ranks(self.model, stream, self.compute)


def prepare_inputs(
    config: RunConfig,
    data: DataSource,
    embedding: EmbeddingSource,
    store: ArtifactStore,
    device: str,
    begun_with: str | None = None,
) -> Inputs:
    """Token ids and embedding table, from the cache or made now.

    Args:
        begun_with: digest of the inputs of a study that goes on: where a bigram's table that is made today is another
            (by other code, or on another processor), the study's own is taken if the store still has it.

    Raises:
        ValueError: the data or the embedding cannot be used.
    """
    vocab_size = config.bigram.vocab_size if config.bigram else None
    corpus = load_corpus(data, config.samples, embedding, vocab_size, store)
    loaded = load_embedding(embedding, corpus, config.bigram, store, device)
    made = Inputs(corpus, loaded, _digest(corpus, loaded))
    if begun_with in (None, made.digest) or config.bigram is None:
        return made
    kept = (Inputs(corpus, each, _digest(corpus, each)) for each in kept_tables(embedding, store))
    return next((inputs for inputs in kept if inputs.digest == begun_with), made)


def _digest(corpus: Corpus, embedding: Embedding) -> str:
    digest = hashlib.sha256(corpus.train.tokens.tobytes())
    digest.update(embedding.table.tobytes())
    return digest.hexdigest()[:16]


def _fit_phase2(
    phase1: SharedPhase1, config: RunConfig, listen: ProgressCallback, compute: Compute, checkpoints: Checkpoints | None
) -> Phase2Result:
    """Phase 2's result on what Phase 1 left; the best weights are in its model."""
    assert phase1.train_contexts is not None
    assert phase1.val_contexts is not None
    reads = phase1.model.config.reads
    train = Stream(phase1.train, phase1.train_contexts.read(reads))
    validation = Stream(phase1.validation, phase1.val_contexts.read(reads))

    def on_epoch(epoch: Epoch) -> None:
        series = {
            names.EPOCH_TRAIN_PPL: epoch.train_ppl,
            names.EPOCH_VAL_PPL: epoch.val_ppl,
            names.EPOCH_VAL_ACC: epoch.val_acc,
        }
        listen(Progress("phase 2", epoch.number, config.phase2.epochs, series))

    listen(Progress("phase 2", 0, config.phase2.epochs))
    return fit_phase2(phase1.model, train, validation, config.phase2, on_epoch, compute, checkpoints)


def run(
    config: RunConfig,
    inputs: Inputs,
    store: ArtifactStore,
    device: torch.device | str = "cpu",
    on_progress: ProgressCallback = lambda progress: None,
    checkpoints: Checkpoints | None = None,
) -> RunResult:
    """Train one configuration and score it on the validation split.

    Args:
        inputs: of this very config (`prepare_inputs`).
        store: where a shared Phase 1 is looked up and kept.
        on_progress: called at every sweep and epoch.
        checkpoints: where Phase 2 goes on from, and where each epoch's end is kept; Phase 1 is in the store.

    Raises:
        DivergedError: a loss became NaN or infinite.
        CollapsedError: the effective rank of Phase 1's validation contexts is under `ContextsConfig.min_rank`.
        DoesNotFitError: the GPU's memory is too small, also for half the chunks.
    """
    began = time.perf_counter()
    whole = Compute.of(device)
    for attempt, chunks in enumerate((whole.chunks, whole.chunks.halved()), start=1):
        try:
            compute = replace(whole, chunks=chunks)
            result = _attempt(
                config, inputs, store, torch.device(device), on_progress, compute, checkpoints, again=attempt > 1
            )
        except RuntimeError as error:  # of PyTorch's own class, of CUDA's libraries, of Triton
            reason = out_of_memory(error)
            if not reason:
                raise
        else:
            result.metrics[names.ATTEMPTS] = float(attempt)
            result.metrics[names.TOTAL_SECONDS] = time.perf_counter() - began
            return result
        # Here and not in the clause above: only after it the error is gone, and with its traceback all that the attempt
        # held, CUDA graphs included.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.set_stream(torch.cuda.default_stream())  # a recording that broke off leaves its own behind
            torch.cuda.empty_cache()
    raise DoesNotFitError(f"infeasible: does not fit the GPU's memory, nor with half the chunks: {reason}")


def _attempt(
    config: RunConfig,
    inputs: Inputs,
    store: ArtifactStore,
    device: torch.device,
    listen: ProgressCallback,
    compute: Compute,
    checkpoints: Checkpoints | None,
    again: bool,
) -> RunResult:
    """As `run`, once; the whole run's seconds are not yet among the metrics."""
    table = torch.tensor(inputs.embedding.table)
    model = LanguageModel(config.model_config(*table.shape), table, config.seed).to(device)
    train, validation = (
        torch.tensor(stream.tokens, dtype=torch.int64, device=device)
        for stream in (inputs.corpus.train, inputs.corpus.validation)
    )
    phase1 = SharedPhase1(config, model, train, validation, inputs.digest, store, listen, compute, again)
    figures = phase1.find_or_fit()
    if figures[names.VAL_ER] < config.contexts.min_rank:
        shown = f"{figures[names.VAL_ER]:.1f} % of D, under {config.contexts.min_rank:g} %"
        raise CollapsedError(f"Phase 1 collapsed: effective rank {shown}", figures)
    result = _fit_phase2(phase1, config, listen, compute, checkpoints)
    assert phase1.train_contexts is not None
    figures |= {
        names.CONTEXT_SWEEPS: float(phase1.train_contexts.passes),
        names.CONTEXT_RESIDUAL: phase1.train_contexts.residual,
        names.VAL_PPL: result.best.val_ppl,
        names.VAL_ACC: result.best.val_acc,
        names.TRAIN_PPL: result.best.train_ppl,
        names.BEST_EPOCH: float(result.best.number),
        names.EPOCHS: float(len(result.epochs)),
        names.PHASE2_SECONDS: result.seconds,
        names.TOTAL_PARAMS: float(model.config.total_params),
        names.PHASE1_PARAMS: float(model.config.phase1_params),
        names.PHASE2_PARAMS: float(model.config.phase2_params),
    }
    if inputs.embedding.bigram is not None:
        figures[names.BIGRAM_VAL_PPL] = inputs.embedding.bigram.val_ppl
    unusable = [name for name, value in figures.items() if not math.isfinite(value)]
    if unusable:
        raise DivergedError(f"diverged: {', '.join(unusable)} not finite")
    nats, targets = inputs.corpus.validation.by_document(result.val_losses.cpu().numpy())
    losses = DocumentLosses(nats.tolist(), targets.tolist(), inputs.corpus.validation.units.tolist())
    return RunResult(model, figures, losses, compute, phase1.trained_by, config.contexts.tolerance)
