"""One run from inputs to figures, without Ray: embedding → Phase 1 → contexts → Phase 2 → metrics.

Phase 1 is looked up by content first: whatever run trained it, its weights and figures are reused.
"""

import gc
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.chunks import out_of_memory
from model.compute import Compute
from model.contexts import StreamContexts, last_sweep_contexts
from model.language_model import LanguageModel
from model.losses import effective_rank
from model.seeds import seed_of
from trainables import metrics as names
from trainables.artifacts import ArtifactStore, content_key
from trainables.config import RunConfig
from trainables.corpus import Corpus, load_corpus
from trainables.embeddings import Embedding, load_embedding
from trainables.phase1 import DivergedError, Phase1Result, Sweep, fit_phase1
from trainables.phase2 import Checkpoints, Epoch, Phase2Result, Stream, evaluate, fit_phase2, ranks
from trainables.sources import DataSource, EmbeddingSource

WEIGHTS, FIGURES = "context_block.safetensors", "figures.json"


class DoesNotFitError(RuntimeError):
    """The GPU's memory is too small for a configuration: it has no result on this hardware."""


class CollapsedError(RuntimeError):
    """Phase 1 ended with contexts of so few directions that Phase 2 is not worth its time."""

    def __init__(self, reason: str, figures: dict[str, float]) -> None:
        super().__init__(reason)
        self.figures = figures  # Phase 1's


@dataclass(frozen=True)
class Inputs:
    """What all runs of a study share; arrays only, so that Ray's object store maps it without a copy."""

    corpus: Corpus
    embedding: Embedding
    digest: str  # of the training tokens and the table, byte for byte


@dataclass(frozen=True)
class Progress:
    """One step of a run, for whoever listens."""

    phase: str  # "phase 1", "contexts" or "phase 2"
    step: int
    total: int  # an upper bound: both phases may stop early
    series: dict[str, float] = field(default_factory=dict)  # metric name (trainables.metrics) -> value at `step`


Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class DocumentLosses:
    """A stream's losses, summed over each of its documents; lists, so that they are JSON as they are."""

    nats: list[float]
    targets: list[int]


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
    config: RunConfig, data: DataSource, embedding: EmbeddingSource, store: ArtifactStore, device: str
) -> Inputs:
    """Token ids and embedding table, from the cache or made now.

    Raises:
        ValueError: the data or the embedding cannot be used.
    """
    vocab_size = config.bigram.vocab_size if config.bigram else None
    corpus = load_corpus(data, config.samples, embedding, vocab_size, store)
    loaded = load_embedding(embedding, corpus, config.bigram, store, device)
    digest = hashlib.sha256(corpus.train.tokens.tobytes())
    digest.update(loaded.table.tobytes())
    return Inputs(corpus, loaded, digest.hexdigest()[:16])


class _Run:
    """The state of one run while it goes: model and streams on their device."""

    def __init__(
        self,
        config: RunConfig,
        inputs: Inputs,
        store: ArtifactStore,
        device: torch.device,
        listen: Listener,
        compute: Compute,
        again: bool,
    ) -> None:
        self.again = again  # a second attempt
        self.config, self.store, self.listen, self.compute = config, store, listen, compute
        # By settings, by content (a table that was made again on other hardware differs in the last digits) and by how
        # it is computed: a run repeats itself bit by bit, whoever trained its Phase 1.
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.get_num_threads()
        self.phase1_key = content_key([config.phase1_key(), inputs.digest, device.type, where, str(self.compute)])
        table = torch.tensor(inputs.embedding.table)
        self.model = LanguageModel(config.model_config(*table.shape), table, config.seed).to(device)
        self.train = torch.tensor(inputs.corpus.train.tokens, dtype=torch.int64, device=device)
        self.validation = torch.tensor(inputs.corpus.validation.tokens, dtype=torch.int64, device=device)
        self.phase1_by = ""
        self.train_contexts: StreamContexts | None = None
        self.val_contexts: StreamContexts | None = None

    def _on_wait(self) -> None:
        """Another run trains this Phase 1: a sign of life."""
        self.listen(Progress("phase 1", 1, self.config.phase1.max_sweeps))

    def _on_sweep(self, sweep: Sweep) -> None:
        series = {names.SWEEP_CONVERGENCE: sweep.convergence, names.SWEEP_LOSS: sweep.loss}
        self.listen(Progress("phase 1", sweep.number, self.config.phase1.max_sweeps, series))

    def _on_epoch(self, epoch: Epoch) -> None:
        series = {
            names.EPOCH_TRAIN_PPL: epoch.train_ppl,
            names.EPOCH_VAL_PPL: epoch.val_ppl,
            names.EPOCH_VAL_ACC: epoch.val_acc,
        }
        self.listen(Progress("phase 2", epoch.number, self.config.phase2.epochs, series))

    def _fill_contexts(self, last_state: Tensor | None) -> None:
        self.listen(Progress("contexts", 0, 1))
        tolerance = self.config.contexts.tolerance
        if last_state is None:
            self.train_contexts = self.model.contexts(self.train, tolerance, self.compute)
        else:
            block, embedded = self.model.context_block, self.model.embedded
            self.train_contexts = last_sweep_contexts(block, embedded, self.train, last_state, self.compute)
        self.val_contexts = self.model.contexts(self.validation, tolerance, self.compute)
        for contexts in (self.train_contexts, self.val_contexts):
            # where the last step spoiled the weights after its loss was fine
            if not torch.stack(torch.aminmax(contexts.states)).isfinite().all():
                raise DivergedError("Phase 1 diverged: its contexts are not finite")

    def _rank(self, tokens: Tensor) -> float:
        """Effective rank of a stream's exact contexts, per cent of D."""
        known = {id(self.validation): self.val_contexts}
        if self.config.contexts.train == "exact":
            known[id(self.train)] = self.train_contexts
        contexts = known.get(id(tokens)) or self.model.contexts(tokens, self.config.contexts.tolerance, self.compute)
        rows = self.config.contexts.rank_rows
        return 100 * effective_rank(contexts.final, rows, seed_of(self.config.seed, "rank rows"))

    def _train_phase1(self, folder: Path | None) -> dict[str, float]:
        """Fit Phase 1 and compute the contexts on the way; weights and figures go into `folder`."""
        result: Phase1Result = fit_phase1(
            self.model, self.train, self.config.phase1, self.config.seed, self._on_sweep, self.compute
        )
        if self.config.contexts.train == "exact":
            result.state = None  # not needed, and as large as the contexts themselves
        self._fill_contexts(result.state)
        self.phase1_by = self.config.config_hash()
        figures = {
            names.SWEEPS: float(result.num_sweeps),
            names.CONVERGENCE: result.sweeps[-1].convergence,
            names.TRAIN_ER: self._rank(self.train),
            names.VAL_ER: self._rank(self.validation),
            names.PHASE1_SECONDS: result.seconds,
        }
        if folder is not None:
            save_file(dict(self.model.context_block.state_dict()), folder / WEIGHTS)
            series = [vars(sweep) for sweep in result.sweeps]
            content = {"metrics": figures, "sweeps": series, "trained_by": self.phase1_by}
            (folder / FIGURES).write_text(json.dumps(content))
        return figures

    def phase1(self) -> dict[str, float]:
        """Phase 1's figures, its weights in the model and both streams' contexts in place."""
        self.listen(Progress("phase 1", 1, self.config.phase1.max_sweeps))
        if self.config.contexts.train == "last_sweep":  # needs the last state, too large to keep
            return self._train_phase1(None) | {names.PHASE1_SHARED: 0.0, names.PHASE1_SAVED: 0.0}
        made: dict[str, float] = {}
        folder, shared = self.store.get_or_make(
            "phase1", self.phase1_key, lambda scratch: made.update(self._train_phase1(scratch)), self._on_wait
        )
        began = time.perf_counter()
        if shared:
            stored = json.loads((folder / FIGURES).read_text())
            self.model.context_block.load_state_dict(load_file(folder / WEIGHTS))
            for sweep in stored["sweeps"]:
                self._on_sweep(Sweep(**sweep))
            self._fill_contexts(None)
            made, self.phase1_by = stored["metrics"], stored["trained_by"]
        if self.again and self.phase1_by == self.config.config_hash():
            shared = False  # this very run's earlier attempt left it behind
        saved = made[names.PHASE1_SECONDS] - (time.perf_counter() - began) if shared else 0.0
        return made | {names.PHASE1_SHARED: float(shared), names.PHASE1_SAVED: saved}

    def phase2(self, checkpoints: Checkpoints | None) -> Phase2Result:
        """Phase 2's result; the best weights are in the model."""
        assert self.train_contexts is not None
        assert self.val_contexts is not None
        reads = self.model.config.reads
        train = Stream(self.train, self.train_contexts.read(reads))
        validation = Stream(self.validation, self.val_contexts.read(reads))
        self.listen(Progress("phase 2", 0, self.config.phase2.epochs))
        return fit_phase2(self.model, train, validation, self.config.phase2, self._on_epoch, self.compute, checkpoints)


def run(
    config: RunConfig,
    inputs: Inputs,
    store: ArtifactStore,
    device: torch.device | str = "cpu",
    on_progress: Listener = lambda progress: None,
    checkpoints: Checkpoints | None = None,
) -> RunResult:
    """Train one configuration and judge it on the validation split.

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
    listen: Listener,
    compute: Compute,
    checkpoints: Checkpoints | None,
    again: bool,
) -> RunResult:
    """As `run`, once; the whole run's seconds are not yet among the metrics."""
    current = _Run(config, inputs, store, device, listen, compute, again)
    figures = current.phase1()
    if figures[names.VAL_ER] < config.contexts.min_rank:
        shown = f"{figures[names.VAL_ER]:.1f} % of D, under {config.contexts.min_rank:g} %"
        raise CollapsedError(f"Phase 1 collapsed: effective rank {shown}", figures)
    result = current.phase2(checkpoints)
    assert current.train_contexts is not None
    model_config = current.model.config
    figures |= {
        names.CONTEXT_SWEEPS: float(current.train_contexts.passes),
        names.CONTEXT_RESIDUAL: current.train_contexts.residual,
        names.VAL_PPL: result.best.val_ppl,
        names.VAL_ACC: result.best.val_acc,
        names.TRAIN_PPL: result.best.train_ppl,
        names.BEST_EPOCH: float(result.best.number),
        names.EPOCHS: float(len(result.epochs)),
        names.PHASE2_SECONDS: result.seconds,
        names.TOTAL_PARAMS: float(model_config.total_params),
        names.PHASE1_PARAMS: float(model_config.phase1_params),
        names.PHASE2_PARAMS: float(model_config.phase2_params),
    }
    if inputs.embedding.bigram is not None:
        figures[names.BIGRAM_VAL_PPL] = inputs.embedding.bigram.val_ppl
    unusable = [name for name, value in figures.items() if not math.isfinite(value)]
    if unusable:
        raise DivergedError(f"diverged: {', '.join(unusable)} not finite")
    nats, targets = inputs.corpus.validation.by_document(result.val_losses.cpu().numpy())
    return RunResult(
        current.model,
        figures,
        DocumentLosses(nats.tolist(), targets.tolist()),
        compute,
        current.phase1_by,
        config.contexts.tolerance,
    )
