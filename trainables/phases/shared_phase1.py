"""Phase 1 of one run: found by its content, whatever run trained it, or trained now; and the contexts it gives."""

import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.contexts import StreamContexts, last_sweep_contexts
from model.language_model import LanguageModel
from model.losses import effective_rank
from model.ops.compute import Compute
from model.seeds import seed_of
from trainables import metrics as names
from trainables.cache import ArtifactStore, content_key
from trainables.config import RunConfig
from trainables.errors import DivergedError
from trainables.host.digests import PHASE1, code_digest, device_model
from trainables.phases.phase1 import Phase1Result, Sweep, fit_phase1
from trainables.progress import Progress, ProgressCallback

WEIGHTS, FIGURES = "context_block.safetensors", "figures.json"


class SharedPhase1:
    """Phase 1 of a model on its two streams."""

    def __init__(
        self,
        config: RunConfig,
        model: LanguageModel,
        train: Tensor,
        validation: Tensor,
        digest: str,
        store: ArtifactStore,
        listen: ProgressCallback,
        compute: Compute,
        again: bool,
    ) -> None:
        """Nothing is computed yet.

        Args:
            train: token ids on the model's device.  # (N,) int64
            validation: the same of the other stream.  # (M,) int64
            digest: of the inputs, `pipeline.Inputs.digest`.
            again: whether this is a run's second attempt.
        """
        self.config, self.store, self.listen, self.compute, self.again = config, store, listen, compute, again
        self.model, self.train, self.validation = model, train, validation
        # By settings, by content (a table that was made again on other hardware differs in the last digits) and by how
        # it is computed (code, torch, device): a run repeats itself bit by bit, whoever trained its Phase 1.
        # Figures are of the validation stream too.
        scored_on = hashlib.sha256(validation.cpu().numpy().tobytes()).hexdigest()
        device = train.device
        where = [device_model(device), 0 if device.type == "cuda" else torch.get_num_threads()]
        how = [device.type, where, str(compute), torch.__version__, code_digest(PHASE1)]
        self.key = content_key([config.phase1_key(), digest, scored_on, *how])
        self.trained_by = ""
        self.train_contexts: StreamContexts | None = None
        self.val_contexts: StreamContexts | None = None

    def _on_wait(self) -> None:
        """Another run trains this Phase 1: a sign of life."""
        self.listen(Progress("phase 1", 1, self.config.phase1.max_sweeps))

    def _on_sweep(self, sweep: Sweep) -> None:
        series = {names.SWEEP_CONVERGENCE: sweep.convergence, names.SWEEP_LOSS: sweep.loss}
        self.listen(Progress("phase 1", sweep.number, self.config.phase1.max_sweeps, series))

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
        self.trained_by = self.config.config_hash()
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
            content = {"metrics": figures, "sweeps": series, "trained_by": self.trained_by}
            (folder / FIGURES).write_text(json.dumps(content))
        return figures

    def find_or_fit(self) -> dict[str, float]:
        """Phase 1's figures, its weights in the model and both streams' contexts in place."""
        self.listen(Progress("phase 1", 1, self.config.phase1.max_sweeps))
        if self.config.contexts.train == "last_sweep":  # needs the last state, too large to keep
            return self._train_phase1(None) | {names.PHASE1_SHARED: 0.0, names.PHASE1_SAVED: 0.0}
        made: dict[str, float] = {}
        folder, shared = self.store.get_or_make(
            "phase1", self.key, lambda scratch: made.update(self._train_phase1(scratch)), self._on_wait
        )
        began, loading = time.perf_counter(), 0.0
        if shared:
            stored = json.loads((folder / FIGURES).read_text())
            self.model.context_block.load_state_dict(load_file(folder / WEIGHTS))
            loading = time.perf_counter() - began
            for sweep in stored["sweeps"]:
                self._on_sweep(Sweep(**sweep))
            self._fill_contexts(None)
            made, self.trained_by = stored["metrics"], stored["trained_by"]
        if self.again and self.trained_by == self.config.config_hash():
            shared = False  # this very run's earlier attempt left it behind
        saved = made[names.PHASE1_SECONDS] - loading if shared else 0.0
        return made | {names.PHASE1_SHARED: float(shared), names.PHASE1_SAVED: saved}
