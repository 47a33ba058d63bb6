"""What a person sees of one training: a bar for each phase on a terminal, plain lines elsewhere, a table at the end."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from trainables import metrics as names
from trainables.config import RunConfig
from trainables.evaluation.evaluate import SPLITS, UNITS, against, interval_metrics
from trainables.evaluation.intervals import FEW, FEW_UNITS
from trainables.metrics import split_metric
from trainables.phases.convergence import MARKED, converged
from trainables.progress import Progress as Step

if TYPE_CHECKING:
    from trainables.baselines.candidate import ComparedModel


class View:
    """Follows one run; `with` it while it goes."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self.console, self._config = console, config
        columns = (
            TextColumn("{task.description:8}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, TextColumn("{task.fields[latest]}", markup=False), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._phase = self._latest = self._mark = ""

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:  # elsewhere it would add an empty line
            self._bars.stop()

    def __call__(self, step: Step) -> None:
        """One step of the run."""
        if step.phase != self._phase:
            self._end_phase()
            self._phase, self._latest = step.phase, ""
            self._tasks[step.phase] = self._bars.add_task(step.phase, total=step.total, latest="")
        if names.SWEEP_CONVERGENCE in step.series:
            share = step.series[names.SWEEP_CONVERGENCE]
            self._latest = f"{step.step} sweeps, {math.floor(100 * share)}% converged"
            self._mark = "" if converged(self._config, {names.CONVERGENCE: share}) else f" ({MARKED})"
        elif names.EPOCH_VAL_PPL in step.series:
            train, val = step.series[names.EPOCH_TRAIN_PPL], step.series[names.EPOCH_VAL_PPL]
            self._latest = f"train PPL {train:.2f}, val PPL {val:.2f}"
            if not self.console.is_terminal:
                self.console.print(f"phase 2: epoch {step.step} of at most {step.total}, {self._latest}")
        self._bars.update(self._tasks[step.phase], completed=step.step, total=step.total, latest=self._latest)

    def _end_phase(self) -> None:
        """A phase may end before its last step."""
        if self._phase not in self._tasks:
            return
        task = self._bars.tasks[self._tasks[self._phase]]
        self._bars.update(task.id, total=max(task.completed, 1), completed=max(task.completed, 1))
        if self._phase == "phase 1" and not self.console.is_terminal:
            self.console.print(f"phase 1: {self._latest}{self._mark}")

    def end(self) -> None:
        """All phases have ended."""
        self._end_phase()
        self._phase = ""


def _shown(form: str, metrics: dict[str, float], split: str, figure: str, scale: float = 1.0) -> str:
    value, low, high = (metrics.get(split_metric(split, figure, end)) for end in ("", "low", "high"))
    if value is None:
        return "–"
    shown = form.format(scale * value)
    return (
        shown if low is None or high is None else f"{shown} [{form.format(scale * low)}, {form.format(scale * high)}]"
    )


def result_table(metrics: dict[str, float]) -> Table:
    """What a finished model is worth, from the metrics of its record."""
    table = Table(title="95 % intervals over documents", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("", *SPLITS):
        table.add_column(heading, header_style="bold underline", no_wrap=True)
    rows: tuple[tuple[str, Any], ...] = (
        ("PPL", ("{:.2f}", "ppl")),
        ("accuracy", ("{:.1f}%", "accuracy", 100.0)),
        ("top-5 accuracy", ("{:.1f}%", "top5", 100.0)),
        ("bits per byte", ("{:.3f}", "bits_per_byte")),
        ("PPL of bigrams (Kneser-Ney)", ("{:.2f}", "bigram_ppl")),
        ("PPL of unigrams (add one)", ("{:.2f}", "unigram_ppl")),
    )
    for name, (form, *rest) in rows:
        table.add_row(name, *(_shown(form, metrics, split, *rest) for split in SPLITS))
    table.add_row("independent documents", *(_documents(metrics, split) for split in SPLITS))
    return table


_YES_NO = {1.0: "yes", 0.0: "no"}


def _documents(metrics: dict[str, float], split: str) -> str:
    """How many documents the intervals of a split are over, and whether they are few."""
    number = metrics.get(split_metric(split, UNITS))
    if number is None:
        return "–"
    return f"{number:.0f}, {FEW}" if 1 < number < FEW_UNITS else f"{number:.0f}"


def comparison_table(compared: "Sequence[ComparedModel]") -> Table:
    """One column for each model, one row for each figure; in Markdown's form."""
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for each in compared:
        table.add_column(each.kind, justify="right")
    first, known = compared[0], [each.metrics for each in compared]

    def row(name: str, metric: str, form: str = "{:,.0f}", scale: float = 1.0) -> None:
        table.add_row(name, *(form.format(m[metric] / scale) if metric in m else "–" for m in known))

    def interval_row(name: str, figure: str, form: str, scale: float = 1.0) -> None:
        table.add_row(f"{name} [95 %]", *(_shown(form, m, "test", figure, scale) for m in known))

    table.add_row("shape", *(each.shape for each in compared))
    row("validation PPL", names.VAL_PPL, "{:.2f}")
    interval_row("test PPL", "ppl", "{:.2f}")
    others = (interval_metrics("test", "ppl", against(first.test, each.test)) for each in compared[1:])
    shown = (_shown("{:.1f}", difference, "test", "ppl", 100) for difference in others)
    table.add_row("test PPL against the first, % [95 %]", "–", *shown)
    interval_row("test accuracy, %", "accuracy", "{:.1f}", 100)
    interval_row("test top-5, %", "top5", "{:.1f}", 100)
    interval_row("test bits per byte", "bits_per_byte", "{:.3f}")
    table.add_row("test documents", *(_documents(m, "test") for m in known))
    row("parameters trained", names.TRAINED_PARAMS)
    table.add_row("learning rate", *map(_rate, compared))
    row("epochs", names.EPOCHS)
    table.add_row("Phase 1 converged", *(_YES_NO.get(m.get(names.CONVERGED, math.nan), "–") for m in known))
    row("seconds of one training", names.TOTAL_SECONDS, "{:.1f}")
    row("training tokens/s", names.TOKENS_PER_SECOND)
    row("peak memory, MB", names.PEAK_BYTES, scale=1e6)
    for length in names.STATE_LENGTHS:
        row(f"state after {length:,} tokens, bytes", names.state_bytes(length))
    return table


def _rate(model: "ComparedModel") -> str:
    """The learning rate, among how many it is the best, and whether a better one may lie beyond them."""
    rate, tried = model.rate, model.rates
    if len(tried) == 1:
        return f"{rate:g}"
    end = {min(tried): ", the lowest", max(tried): ", the highest"}.get(rate, "")
    return f"{rate:g} (best of {len(tried)}{end})"
