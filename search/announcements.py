"""What a study says on the screen before its first trial and after its last."""

import shlex
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.console import Console

from search.findings.leaderboard import BEST, failures
from search.ledger.ledger import Ledger
from search.ledger.results import METRICS, Configuration, trial_config
from search.options import Settings
from search.report import HTML
from search.screen import duration
from trainables.inputs.overlap import SEQUENCES, told
from trainables.metrics import CONVERGENCE
from trainables.phases.convergence import shortfall
from trainables.tracking.destination import Destination

if TYPE_CHECKING:  # Ray is not imported where nothing is to run
    from search.execution.cluster import Resources


def say_prepared(console: Console, settings: Settings, resources: "Resources", summary: dict[str, Any]) -> None:
    """On what its trials run."""
    splits = {"train": "training", "val": "validation", "test": "test"}
    tokens = ", ".join(f"{summary[f'{key}_tokens']:,} {name}" for key, name in splits.items())
    console.print(f"data {settings.data.spec}: {tokens} tokens")
    console.print(f"{SEQUENCES}: {told(summary)}")
    bigram = f", validation PPL {summary['bigram_val_ppl']:.2f}" if summary["bigram_val_ppl"] else ""
    size = f"V={summary['vocab_size']:,}, E={summary['embedding_dim']}"
    console.print(f"embedding {settings.embedding.spec}: {size}{bigram}")
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
    settings: Settings,
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
        console.print(f"trial {number} ({config}) failed: {reason}", style="red")
    if profiled:
        console.print("traces of the first trial that ran: its run's artifacts in MLflow, folder profile/")
    shown = settings.shown_root
    finished, pruned = len(ledger.finished()), len(ledger.pruned())
    seeds = f" and {len(more)} replicates" if (more := ledger.replicates(TrialState.COMPLETE)) else ""
    counted = f"{finished} trials{seeds} finished, {f'{pruned} pruned, ' if pruned else ''}{len(failed)} failed"
    console.print(f"\n{counted} in all; {ran} ran now, in {duration(seconds)}")
    enough = settings.budgets.used_up(ledger.ended()) if ledger.open_trials() or ledger.open_replicates() else ""
    if enough and ran:
        console.print(f"stopped: {enough}", style="bold")
    if cut_off:
        console.print("interrupted: the same command continues this study", style="bold")
    if finished:
        console.print(f"best configuration: {shown / 'studies' / ledger.name / BEST}")
        if (leader := ledger.leader()) and not leader.converged:
            console.print(_at_cap(leader), style="bold")
        if reported:
            console.print(f"the report:         {shown / 'studies' / ledger.name / HTML}")
    if where.uri is None:
        console.print(f"look at the runs:   python search/ui.py --mlruns {shlex.quote(str(shown))}")
    elif where.uri.startswith("http"):
        console.print(f"look at the runs:   {where.remembered}")
