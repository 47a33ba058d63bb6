"""Times each unit of a trial, fast path and textbook side by side: `python tests/bench.py [--json FILE]`.

It sizes itself to the machine: the reports' dimensions on a GPU, the demo's on a CPU. The textbook path is
tests/reference.py as it stands, in fp32 with torch's defaults, in the same process on the same tokens; where a GPU's
memory is too small for it, on the first half of them, or of those, and its time is scaled up.
"""

import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import tests.reference as reference
from model.cli import Parser
from model.config import ModelConfig
from model.contexts import full_products
from model.language_model import LanguageModel
from model.losses import effective_rank
from model.ops.chunks import out_of_memory
from model.ops.compute import Compute
from search.presets import demo, reports
from trainables import metrics as names
from trainables.cache import ArtifactStore
from trainables.config import Phase1Config, Phase2Config, RunConfig
from trainables.errors import DoesNotFitError
from trainables.host.arguments import as_threads
from trainables.host.devices import choose_device, hardware
from trainables.inputs.corpus import Corpus, Split, load_corpus
from trainables.inputs.embeddings import Embedding
from trainables.inputs.sources import resolve_data, resolve_embedding
from trainables.phases.optimizer import FlatAdam
from trainables.phases.phase1 import STATE_STD, Sweeps, fit_phase1
from trainables.phases.phase2 import Stream, _Steps
from trainables.pipeline import Inputs, run

UNIT_SECONDS = 15.0  # a unit that takes longer is timed less often
PIECE = 1 << 18  # rows of random operands made at once: at full length they would not fit in fp32
SHORTEST = 1_000  # tokens; also of --tokens
RANK_ROWS = 10_000
SWEEPS, EPOCHS = 14, 10  # of the trial; the reports' C2T2, where the initial state counts as a sweep


@dataclass
class Unit:
    """One line of the table."""

    unit: str
    fast_s: float
    textbook_s: float | None = None
    ratio: float | None = None  # textbook / fast
    tflops: float | None = None  # arithmetic that has to be done / fast_s
    floor_s: float | None = None  # the same at the rate of a large matrix product, measured here
    floor_share: float | None = None
    note: str = ""


class Bench:
    """Sizes, data and the units on one device."""

    def __init__(self, device: str, data: str | None, tokens: int | None, fast_only: bool = False) -> None:
        self.fast_only = fast_only
        self.device, self.cuda = torch.device(device), device == "cuda"
        preset = reports() if self.cuda else demo()
        self.e = preset.bigram.embedding_dim
        self.d, self.batch = preset.context_dim, preset.phase2.batch_size
        n, n_val = (2_403_563, 22_723) if self.cuda else (60_000, 7_500)
        self.compute = Compute.of(device)
        source = resolve_data(data or "pydoc", None)
        with tempfile.TemporaryDirectory() as cache:
            store = ArtifactStore(Path(cache))
            found = load_corpus(source, None, resolve_embedding("bigram"), preset.bigram.vocab_size, store)
        self.v = preset.bigram.vocab_size if self.cuda else found.vocab_size
        self.tokens = self._stream(found.train, tokens or n)
        self.val = self._stream(found.validation, n_val)
        self.table = 0.05 * torch.randn(self.v, self.e, generator=torch.Generator().manual_seed(0))
        self.table = self.table.to(self.device)
        self.corpus, self.units = found, list[Unit]()
        self.peak = self._peak()

    def _stream(self, split: Split, length: int) -> torch.Tensor:
        """The split's tokens, repeated to a length."""
        own = torch.tensor(split.tokens, dtype=torch.int64)
        return own.repeat(-(-length // len(own)))[:length].to(self.device)

    def _peak(self) -> float:
        """FLOP/s of a large product of operands."""
        size = 8192 if self.cuda else 1024
        a, b = (self.compute.operand(torch.randn(size, size, device=self.device)) for _ in range(2))
        return 2 * size**3 / self.clock(lambda: a @ b, 10)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call."""
        self.sync()
        began = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - began

    def clock(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of a call, after one that does not count."""
        first = self.seconds(work)
        return statistics.median(self.seconds(work) for _ in range(_fewer(repeats, first)))

    def pair(
        self, fast: Callable[[], object], textbook: Callable[[int], Callable[[], object]], length: int, repeats: int
    ) -> tuple[float, float | None, str]:
        """Median seconds of both, in turns, after one call each that does not count; what the second was scaled from.

        Args:
            textbook: makes what works on the first so many of `length` tokens.
        """
        if self.fast_only:
            return self.clock(fast, repeats), None, ""
        self.seconds(fast)
        own = length
        while True:
            try:
                mine, theirs = self._in_turns(fast, textbook(own), repeats)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or own < 2 * SHORTEST:
                    raise
            self.clear()  # here, where the error and all that it holds are gone
            own //= 2
        note = "" if own == length else f"textbook scaled from {own:,} tokens"
        return statistics.median(mine), statistics.median(theirs) * length / own, note

    def _in_turns(
        self, fast: Callable[[], object], slow: Callable[[], object], repeats: int
    ) -> tuple[list[float], list[float]]:
        """Seconds of each call; the first of `slow` does not count."""
        first, mine, theirs = self.seconds(slow), [], []
        for _ in range(_fewer(repeats, first)):
            mine.append(self.seconds(fast))
            theirs.append(self.seconds(slow))
        mine += [self.seconds(fast) for _ in range(_fewer(repeats, mine[-1]) - len(mine))]
        return mine, theirs

    def clear(self) -> None:
        """Give back what earlier units took of the GPU's memory."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def operands(self, rows: int) -> torch.Tensor:
        """Random contexts as a trial keeps them.  # (rows, W)"""
        width = self.compute.width(self.d)
        kept = self.compute.operand(torch.zeros(1, device=self.device)).new_zeros(rows, width)
        for start in range(0, rows, PIECE):
            piece = kept[start : start + PIECE, : self.d]
            piece.copy_(torch.randn(piece.shape, device=self.device))
        return kept

    def add(self, unit: str, fast: float, textbook: float | None, flops: float | None, note: str = "") -> None:
        floor = flops / self.peak if flops else None
        line = Unit(
            unit,
            fast,
            textbook,
            textbook / fast if textbook else None,
            flops / fast / 1e12 if flops else None,
            floor,
            floor / fast if floor else None,
            note,
        )
        self.units.append(line)
        print(_format(line), flush=True)

    def model(self, c: int, t: int) -> LanguageModel:
        config = ModelConfig(
            vocab_size=self.v,
            embedding_dim=self.e,
            context_dim=self.d,
            context_layers=c,
            token_layers=t,
            context_mode="layerwise",
        )
        return LanguageModel(config, self.table.cpu(), 0).to(self.device)

    def sweep(self, c: int) -> None:
        """One Phase-1 sweep with its optimiser step, whole stream."""
        self.clear()
        n, d, config = len(self.tokens), self.d, Phase1Config()
        model = self.model(c, 1)
        fit = Sweeps(model, self.tokens, config, 0, self.compute)
        fit.advance()  # on a GPU the next one records
        book = reference.ReferenceModel(model.config, self.table)

        def slow(length: int) -> Callable[[], object]:
            start = torch.randn(length, d, device=self.device) * STATE_STD
            return full_products()(  # torch's default, which the process has left
                lambda: reference.phase1(
                    book, self.tokens[:length], start, lambda sweep: torch.randn_like(start) * config.noise,
                    lr=config.learning_rate, clip=config.grad_clip, block=config.block, threshold=config.threshold,
                    converged_share=1.1, max_sweeps=2,
                )
            )  # fmt: skip

        fast, textbook, note = self.pair(fit.advance, slow, n, 9)
        split = 2 * n * d * d * (3 * c - 1) + 4 * self.v * self.e * d * c
        self.add(f"Phase-1 sweep C={c}", fast, textbook, split, note)

    def epoch(self, t: int) -> None:
        """One Phase-2 epoch over the training stream, without the validation."""
        self.clear()
        n = len(self.tokens)
        model = self.model(t, t)
        kept = self.operands(n)
        steps = _Steps(model, self.compute)
        optimizer = FlatAdam(model.token_block, 1e-3, 1.0, self.compute)
        contexts = [kept if read else None for read in model.config.reads]
        stream = Stream(self.tokens, contexts)
        book = reference.ReferenceModel(model.config, self.table)

        def slow(length: int) -> Callable[[], object]:
            share = kept[:length, : self.d].float()
            rows = [None if c is None else share for c in contexts]
            return full_products()(  # torch's default, which the process has left
                lambda: reference.phase2(
                    book, self.tokens[:length], self.val[:2], rows, [None if r is None else r[:2] for r in rows],
                    lr=1e-3, clip=1.0, batch_size=self.batch, epochs=1, patience=1,
                )
            )  # fmt: skip

        def fast() -> None:
            steps.train(stream, optimizer, self.batch)

        seconds, textbook, note = self.pair(fast, slow, n, 5)
        per_token = 4 * self.e * self.v + (3 * t - 1) * 2 * (self.e + self.d) * self.e + 2 * self.d * self.e
        self.add(f"Phase-2 epoch T={t}, batch {self.batch:,}", seconds, textbook, n * per_token, note)

    def contexts(self) -> None:
        """Exact contexts of a trained ContextBlock, both streams, and their effective rank."""
        self.clear()
        model = self.model(2, 2)
        fit_phase1(model, self.tokens, Phase1Config(max_sweeps=SWEEPS), 0, compute=self.compute)
        book = reference.ReferenceModel(model.config, self.table)
        weights = [
            [(x.weight, x.bias, x.norm.weight, x.norm.bias) for x in b]
            for b in (model.context_block, model.token_block)
        ]
        book.load_weights(*weights)
        sample = self.val[: 2_000 if self.cuda else None]
        per_token = None
        if not self.fast_only:
            with full_products():  # torch's default, which the process has left
                per_token = self.clock(lambda: reference.sequential_contexts(book, sample), 1) / len(sample)
        for name, tokens in (("validation", self.val), ("training", self.tokens)):
            self.clear()  # the longest stream's contexts need all that Phase 1 had, in one piece
            passes = model.contexts(tokens, 1e-4, self.compute).passes
            fast = self.clock(lambda tokens=tokens: model.contexts(tokens, 1e-4, self.compute), 3)
            note = f"{len(tokens):,} tokens, {passes} passes"
            if per_token is not None:
                note += f"; textbook scaled from {len(sample):,}"
            self.add(f"exact contexts, {name}", fast, per_token and per_token * len(tokens), None, note)
        self.clear()
        rows = model.contexts(self.tokens, 1e-4, self.compute).final
        ranked = min(RANK_ROWS, len(rows))
        fast, slow, note = self.pair(
            lambda: effective_rank(rows, RANK_ROWS, 0),
            lambda length: lambda: reference.effective_rank(rows[:length].float()),
            ranked,
            3,
        )
        self.add(f"effective rank, {ranked:,} x {self.d}", fast, slow, None, note)

    def trial(self, name: str) -> float | None:
        """A whole C2T2 trial through the pipeline; its seconds, or None where the GPU's memory is too small for it."""
        config = RunConfig(
            data="bench", data_fingerprint="", embedding="table", embedding_fingerprint="", context_layers=2,
            token_layers=2, context_dim=self.d, context_mode="layerwise",
            phase1=Phase1Config(max_sweeps=SWEEPS, converged_share=1.0),
            phase2=Phase2Config(batch_size=self.batch, epochs=EPOCHS, patience=EPOCHS),
        )  # fmt: skip
        ids = [t.cpu().int().numpy() for t in (self.tokens, self.val)]
        empty = self.corpus.test
        train, validation = (
            Split(t, empty.document_starts[:1], empty.document_bytes[:1], empty.document_sources[:1]) for t in ids
        )
        corpus = Corpus(train, validation, empty, "", self.v, "")
        inputs = Inputs(corpus, Embedding(self.table.cpu().numpy(), "table", None), name)
        self.clear()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = run(config, inputs, ArtifactStore(Path(folder)), self.device).metrics
        except DoesNotFitError as error:
            print(f"whole C2T2 trial: {error}", flush=True)
            return None
        assert result[names.SWEEPS] == SWEEPS, "the trial must have as many sweeps as were announced"
        peak = f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if self.cuda else ""
        self.note = f"{SWEEPS} sweeps, {EPOCHS} epochs, val PPL {result[names.VAL_PPL]:.2f}{peak}"
        return result[names.TOTAL_SECONDS]


def _fewer(repeats: int, seconds: float) -> int:
    """How often to time what takes so long: once at least."""
    return max(1, min(repeats, int(UNIT_SECONDS / seconds)))


def _format(unit: Unit) -> str:
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return (
        f"{unit.unit:34}{unit.fast_s:>10.4f}{cell(unit.textbook_s, '.3f'):>12}{cell(unit.ratio, '.1f'):>8}"
        f"{cell(unit.tflops, '.3g'):>9}{cell(unit.floor_s, '.4f'):>10}{cell(unit.floor_share, '.0%'):>8}  {unit.note}"
    )


def main() -> None:
    """Run all units and print, or write, the table."""
    parser = Parser(description=f"{__doc__} A minute or two on either.", allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--data", help="a .jsonl[.gz] file; default: Python's reference texts")
    parser.add_argument("--fast-only", action="store_true", help="leave out the textbook: for streams too long for it")
    parser.add_argument("--tokens", type=int, help="length of the training stream, to which the text is repeated")
    parser.add_argument("--threads", type=as_threads, default=1, help="CPU threads (default: 1, as a trial has)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"this PyTorch ({torch.__version__}) sees no GPU")
    if options.tokens is not None and not SHORTEST <= options.tokens < 1 << 40:
        parser.error(f"--tokens must be at least {SHORTEST}, and fit a machine")
    try:
        if options.json:
            options.json.open("a").close()
        resolve_data(options.data or "pydoc", None)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    kernels = tempfile.TemporaryDirectory()  # empty, so that the first trial pays what a new machine pays
    os.environ.setdefault("TRITON_CACHE_DIR", kernels.name)
    torch.set_num_threads(options.threads)
    device = choose_device(1 if options.device == "cuda" else 0)
    bench = Bench(device, options.data, options.tokens, options.fast_only)
    machine = f"{hardware(float(bench.cuda))}, {options.threads} CPU threads, torch {torch.__version__}, " + (
        f"python {platform.python_version()}, {bench.compute}"
    )
    print(f"{machine}; large products {bench.peak / 1e12:.3g} TFLOP/s")
    print(f"N={len(bench.tokens):,} D={bench.d} E={bench.e} V={bench.v:,}")
    heads = ("unit", "fast s", "textbook s", "ratio", "TFLOP/s", "floor s", "share")
    print("{:34}{:>10}{:>12}{:>8}{:>9}{:>10}{:>8}".format(*heads))
    first = None if options.fast_only else bench.trial("first")
    try:
        for layers in (1, 2):
            bench.sweep(layers)
        for layers in (1, 2):
            bench.epoch(layers)
        bench.contexts()
    except RuntimeError as error:
        if reason := out_of_memory(error):
            sys.exit(f"error: {len(bench.tokens):,} tokens are too many for this GPU: {reason}")
        raise
    seconds = {unit.unit.removesuffix(f", batch {bench.batch:,}"): unit for unit in bench.units}
    parts = [(seconds["Phase-1 sweep C=2"], SWEEPS - 1), (seconds["Phase-2 epoch T=2"], EPOCHS)]
    parts += [(seconds["exact contexts, training"], 1)]
    book = sum((unit.textbook_s or 0) * times for unit, times in parts)
    floor = sum((unit.floor_s or 0) * times for unit, times in parts)
    warm = bench.trial("second")
    if warm is not None and first is None:
        bench.add("whole C2T2 trial", warm, None, floor * bench.peak, bench.note)
    elif warm is not None and first is not None:
        bench.add("whole C2T2 trial", warm, book, floor * bench.peak, bench.note + "; textbook: its units added up")
        bench.add("first trial's extra", first - warm, None, None, "compilation, libraries' start")
    if options.json:
        lines = [asdict(unit) for unit in bench.units]
        sizes = {"N": len(bench.tokens), "D": bench.d, "E": bench.e, "V": bench.v, "batch": bench.batch}
        written = {"machine": machine, "large_products_tflops": bench.peak / 1e12, "sizes": sizes, "units": lines}
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
