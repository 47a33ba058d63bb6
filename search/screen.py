"""What a person sees of a study: what it runs on, a live table or plain lines while it runs, and how it ended."""

import math
import shlex
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.findings.claims import Claim
from search.findings.evidence import Comparison, as_text
from search.findings.leaderboard import BEST, HTML, failures
from search.ledger.ledger import Ledger
from search.ledger.results import Configuration
from search.ledger.trials import METRICS, trial_config
from search.options import StudySettings
from trainables.config import RunConfig
from trainables.inputs.overlap import SEQUENCES, describe_overlap
from trainables.metrics import ATTEMPTS, CONVERGENCE, EPOCH_VAL_PPL, PHASE1_SHARED, SWEEP_CONVERGENCE, SWEEPS, VAL_PPL
from trainables.phases.convergence import MARK, MARKED, converged, shortfall
from trainables.reports import Report
from trainables.tracking.destination import Destination

if TYPE_CHECKING:  # Ray is not imported where nothing is to run
    from search.execution.cluster import Resources


RUNNERS_UP = 5  # shown on the terminal
SAY_EVERY = 30  # seconds between lines about a running trial where there is no live table


@dataclass
class _Running:
    name: str
    config: RunConfig
    began: float = field(default_factory=time.monotonic)
    phase: str = "starting"
    step: int = 0
    total: int = 0
    latest: str = ""
    converged: str = ""
    mark: str = ""  # behind it, if Phase 1 ends as it is now
    said: float = field(default_factory=time.monotonic)  # when a line about it was last printed


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Display:
    """Follows a study's trials; `with` it while they run."""

    def __init__(self, console: Console, total: int, done: int, best: tuple[float, str] | None) -> None:
        """Args: trials in all and done already, and the best value so far with its trial's name."""
        self.console, self.total, self.done, self.best = console, total, done, best
        self._done_before, self._began = done, time.monotonic()
        self._running: dict[int, _Running] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Display":
        self._began = time.monotonic()
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, number: int, name: str, config: RunConfig) -> None:
        """A trial was handed to a worker."""
        self._running[number] = _Running(name, config)
        if not self.console.is_terminal:
            self._say(number, name, "started")

    def update(self, number: int, report: Report) -> None:
        """A trial's report arrived."""
        running = self._running[number]
        changed = running.phase != report.at.phase
        running.phase, running.step, running.total = report.at.phase, report.at.step, report.at.total
        for name, _, value in report.points:
            if name == SWEEP_CONVERGENCE:
                running.latest = running.converged = f"converged {math.floor(100 * value)}%"
                running.mark = "" if converged(running.config, {CONVERGENCE: value}) else MARK
            elif name == EPOCH_VAL_PPL:
                running.latest = f"val PPL {value:.2f}"
        if changed and running.phase == "phase 2":  # before, a share may still grow
            behind = running.latest == running.converged
            running.converged += running.mark
            running.latest = running.converged if behind else running.latest
        if self.console.is_terminal:
            return
        if changed and running.phase == "phase 2":
            self._say(number, running.name, f"phase 1 done, {running.converged}; phase 2")
        elif time.monotonic() - running.said > SAY_EVERY:
            where = f"{running.phase} {running.step}/{running.total}"
            shown = [f"{where}, {running.latest}" if running.latest else where, self._time_left()]
            self._say(number, running.name, "; ".join(shown))
        else:
            return
        running.said = time.monotonic()

    def finish(self, number: int, figures: dict[str, float], may_lead: bool = True) -> None:
        """A trial ended with a result; a replicate's is none to lead by."""
        running = self._running.pop(number)
        self.done += 1
        value = figures[VAL_PPL]
        first = may_lead and (self.best is None or value < self.best[0])
        if first:
            self.best = (value, running.name)
        how = "reused" if figures[PHASE1_SHARED] else "trained"
        marked = "" if converged(running.config, figures) else MARK
        share = f"{math.floor(100 * figures[CONVERGENCE])}%{marked}"
        phase1 = f"phase 1 {how}: {figures[SWEEPS]:.0f} sweeps, {share} converged"
        again = "; GPU memory full, run again with half at once" if figures.get(ATTEMPTS, 1) > 1 else ""
        about = f"  ({phase1}; {duration(time.monotonic() - running.began)}{again})"
        mark = ("  ", ("best so far", "bold green")) if first else ()
        self._say(number, running.name, "val PPL ", (f"{value:.2f}", "bold"), about, *mark)

    def fail(self, number: int, reason: str) -> None:
        """A trial ended without a result."""
        running = self._running.pop(number)
        self.done += 1
        self._say(number, running.name, ("failed", "bold red"), f": {reason}")

    def prune(self, number: int, reason: str) -> None:
        """A trial was stopped early."""
        running = self._running.pop(number)
        self.done += 1
        self._say(number, running.name, ("pruned", "yellow"), f": {reason}")

    def on_worker_lost(self, number: int) -> None:
        """A trial's worker died; the trial will be started again."""
        running = self._running.pop(number)
        self._say(number, running.name, "the worker process died: it is run again")

    def on_restart(self, reason: str) -> None:
        """All trials that ran were cut off, and will be started again."""
        self._running.clear()
        self.console.print(f"{reason}: the trials that ran are run again", style="bold", soft_wrap=True)

    def _say(self, number: int, name: str, *parts: str | tuple[str, str]) -> None:
        """A line about a trial; each part is a text, or one with its style."""
        # Fixed columns: the numbers of a run of lines stand under each other.
        counted, about = (f"{self.done:>3}/{self.total}", "dim"), f"  trial {number:<3} {name:<29} "
        self.console.print(Text.assemble(counted, about, *parts), soft_wrap=True)

    def _time_left(self) -> str:
        made = self.done - self._done_before
        if made == 0:
            return "time left: known after the first trial"
        elapsed = time.monotonic() - self._began
        per_trial = elapsed / (made + 0.5 * len(self._running))  # running trials are half done on average
        return f"about {duration(max(0.0, per_trial * (self.total - self._done_before) - elapsed))} left"

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2), show_header=False)
        for number, running in sorted(self._running.items()):
            step = f"{running.step}/{running.total}" if running.total else ""
            elapsed = duration(time.monotonic() - running.began)
            table.add_row(f"trial {number}", running.name, running.phase, step, running.latest, elapsed)
        best = f"best {self.best[0]:.2f} ({self.best[1]})" if self.best else "no result yet"
        elapsed = duration(time.monotonic() - self._began)
        footer = f"{self.done}/{self.total} trials · {best} · {elapsed} · {self._time_left()}"
        return Group(table, Text(footer, style="bold"))


def say_prepared(console: Console, settings: StudySettings, resources: "Resources", summary: dict[str, Any]) -> None:
    """On what its trials run."""
    splits = {"train": "training", "val": "validation", "test": "test"}
    tokens = ", ".join(f"{summary[f'{key}_tokens']:,} {name}" for key, name in splits.items())
    console.print(f"data {settings.data.spec}: {tokens} tokens", soft_wrap=True)
    console.print(f"{SEQUENCES}: {describe_overlap(summary)}")
    bigram = f", validation PPL {summary['bigram_val_ppl']:.2f}" if summary["bigram_val_ppl"] else ""
    size = f"V={summary['vocab_size']:,}, E={summary['embedding_dim']}"
    console.print(f"embedding {settings.embedding.spec}: {size}{bigram}", soft_wrap=True)
    what = f"{resources.gpus:g} GPU" if resources.gpus else f"{resources.threads} CPU thread(s)"
    where = f"{summary['hardware']}: {summary['compute']}"
    limits = f" ({resources.limited_by})" if resources.limited_by else ""
    console.print(f"{resources.max_concurrent} trial(s) at once{limits}, {what} each, on {where}\n")


def _at_cap(leader: Configuration) -> str:
    """How far its worst seed came."""
    seeds = [(trial_config(trial), trial.user_attrs[METRICS]) for trial in leader.trials]
    return f"its {shortfall(*min(seeds, key=lambda seed: seed[1][CONVERGENCE]))}"


def say_end(
    console: Console,
    settings: StudySettings,
    where: Destination,
    ledger: Ledger,
    *,
    ran: int,
    seconds: float,
    cut_off: bool,
    profiled: bool,
    reported: bool,
) -> None:
    """What failed, how many trials there are, and where everything lies.

    Args:
        ran: trials of this command, which took so many seconds.
        cut_off: a signal ended it.
        profiled: its first trial left traces.
        reported: the report was made.
    """
    failed = failures(ledger)
    for number, config, reason in failed:
        console.print(f"trial {number} ({config}) failed: {reason}", style="red", soft_wrap=True)
    if profiled:
        console.print("traces of the first trial that ran: its run's artifacts in MLflow, folder profile/")
    shown = settings.shown_root
    finished, pruned = len(ledger.finished()), len(ledger.pruned())
    seeds = f" and {len(more)} replicates" if (more := ledger.replicates(TrialState.COMPLETE)) else ""
    counted = f"{finished} trials{seeds} finished, {f'{pruned} pruned, ' if pruned else ''}{len(failed)} failed"
    console.print(f"\n{counted} in all; {ran} ran now, in {duration(seconds)}")
    enough = settings.budgets.used_up(ledger.ended()) if ledger.open_trials() or ledger.open_replicates() else None
    if enough and ran:
        console.print(f"stopped: {enough}", style="bold")
    if cut_off:
        console.print("interrupted: the same command continues this study", style="bold")
    if finished:
        console.print(f"best configuration: {shown / 'studies' / ledger.name / BEST}", soft_wrap=True)
        if (leader := ledger.leader()) and not leader.converged:
            console.print(_at_cap(leader), style="bold")
        if reported:
            console.print(f"the report:         {shown / 'studies' / ledger.name / HTML}", soft_wrap=True)
    if where.uri is None:
        console.print(f"look at the runs:   python search/ui.py --mlruns {shlex.quote(str(shown))}", soft_wrap=True)
    elif where.uri.startswith("http"):
        console.print(f"look at the runs:   {where.remembered}", soft_wrap=True)


def print_verdict(console: Console, comparison: Comparison, claims: list[Claim]) -> None:
    """Leader against runners-up, then the claims, in a few lines."""
    console.print(f"\n{comparison.headline}", style="bold")
    for note in comparison.notes:
        console.print(note, style="bold", soft_wrap=True)
    shown = [row for row in comparison.rows if row.difference is not None][:RUNNERS_UP]
    if shown:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        seeds = any(row.difference.seeds_tested for row in shown if row.difference)
        corrected = "corrected, with seeds" if seeds else "corrected 95 % CI"
        for name in ("PPL against the leader", "documents [95 %]", corrected, "verdict"):
            table.add_column(name, no_wrap=name != "verdict")
        for row in map(as_text, shown):
            both = row["combined"]
            table.add_row(row["name"], row["documents"], both, row["verdict"])
        console.print(table)
        console.print(comparison.over, style="dim", soft_wrap=True)
    seen = [comparison.leader, *(row.other for row in shown)]
    if any(each is not None and not each.found.converged for each in seen):
        console.print(f"{MARK} {MARKED}: it ended at its cap of sweeps", style="bold")
    console.print("claims of the earlier reports", style="dim")
    for claim in claims:
        where = f" ({claim.where})" if claim.where else ""
        console.print(Text.assemble(f"  {claim.text}{where}: ", (claim.verdict, "bold")), soft_wrap=True)
