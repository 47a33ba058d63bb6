"""Train one configuration to the end: of a study's best, or of a file, with any field changed.

The same run as the trial's, outside of Ray: with nothing changed, on the same machine, it has the trial's very result.
It alone looks at the test split. It writes a model folder and a run in MLflow; interrupted, the same command resumes.
With --baseline the configuration and a GRU or a transformer of its size are trained from nothing and scored alike, in
one table and as runs in MLflow; no model is kept.
"""

import shlex
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from model.errors import Exit, UserError, user_errors
from model.output import print_without_fail
from trainables.errors import NoResultError
from trainables.host.digests import TRIAL, code_digest
from trainables.host.environment import LIBRARIES, set_defaults
from trainables.host.signals import TerminatedError, interrupt_on_sigterm
from trainables.tracking.places import in_use
from trainables.training.model_folder import CODE, ModelFolder
from trainables.training.options import TrainingSettings, parse

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def main() -> int:
    """Run with the process's arguments; the exit code.

    0: done. 1: the run diverged, collapsed, does not fit, or the disk is full. 2: bad input, in one sentence.
    130 (Ctrl-C) and 143 (SIGTERM): interrupted; the same command resumes, or begins a comparison anew.
    """
    print_without_fail()
    interrupt_on_sigterm()
    set_defaults(LIBRARIES)
    folder: ModelFolder | None = None
    try:
        with user_errors():
            settings = parse(__doc__ or "", sys.argv[1:])
            if not settings.baselines:
                identity = {
                    "hash": settings.config.config_hash(), "device": settings.device, "threads": settings.threads,
                    CODE: code_digest(TRIAL),
                }  # fmt: skip
                folder = ModelFolder(settings.out, identity)
                folder.check(settings.overwrite)
        if folder is None:
            _compare(settings)
        else:
            _train(settings, folder)
        return Exit.OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER_ERROR
    except NoResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.FAILED
    except OSError as error:  # a full disk, say; a training that has begun is where its last epoch left it
        resumes = "goes on" if folder else "begins anew"
        print(f"error: {error}; once that is mended, the same command {resumes}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt as error:
        resumes = f"; the same command {'resumes after the last epoch that has ended' if folder else 'begins anew'}"
        print(f"\ninterrupted{resumes}", file=sys.stderr)
        return Exit.TERMINATED if isinstance(error, TerminatedError) else Exit.INTERRUPTED


def _compare(settings: TrainingSettings) -> None:
    from trainables.host.console import open_console

    console = open_console()
    with console.status("starting …"):
        from trainables.baselines.comparison import run_comparison
    with ExitStack() as stack:
        with user_errors():
            stack.enter_context(in_use(settings.records))
        _say_only_read(settings, console)
        run_comparison(settings, console)


def _train(settings: TrainingSettings, folder: ModelFolder) -> None:
    from trainables.host.console import open_console

    console = open_console()
    with ExitStack() as stack:
        with user_errors():
            stack.enter_context(folder.locked())
            stack.enter_context(in_use(settings.records))
        record = None if settings.overwrite else folder.finished()
        state = "trained already" if record else "training"
        console.print(f"{settings.out.name}: {state}, in {settings.out}/{settings.destination.said}", soft_wrap=True)
        _say_only_read(settings, console)
        with console.status("starting …"):
            from trainables.training.run import compare, complete, train
        if record is None:
            record = train(settings, folder, console)
        else:
            complete(settings, folder, console)
    _say_end(settings, record, compare(settings, record), console)
    if settings.register is not None:
        _register(settings, settings.register, console)


def _say_only_read(settings: TrainingSettings, console: "Console") -> None:
    if settings.only_read:
        own = settings.records.root
        console.print(f"{settings.only_read}/ may only be read: records and cache of this go to {own}/", soft_wrap=True)


def _say_end(settings: TrainingSettings, record: dict[str, Any], comparison: "Text", console: "Console") -> None:
    from trainables import metrics as names
    from trainables.phases.convergence import shortfall
    from trainables.training.view import result_table

    metrics, folder = record["metrics"], shlex.quote(str(settings.out))
    console.print()
    console.print(result_table(metrics))
    epochs = f"{metrics[names.EPOCHS]:.0f} epochs, best {metrics[names.BEST_EPOCH]:.0f}"
    # a reused Phase 1 counts in full, as on a study's leaderboard
    seconds = metrics[names.PHASE1_SECONDS] + metrics[names.PHASE2_SECONDS]
    console.print(f"\n{metrics[names.TOTAL_PARAMS]:,.0f} parameters, {epochs}, {seconds:.1f} s in both phases")
    if short := shortfall(settings.config, metrics):
        console.print(short, style="bold")
    if comparison:
        console.print(comparison)
    console.print(f"model:         {folder}", soft_wrap=True)
    chat = " --chat" if record["chat"] else ""
    console.print(f'generate text: python model/generate.py {folder} "…"{chat}', soft_wrap=True)


def _register(settings: TrainingSettings, name: str, console: "Console") -> None:
    from trainables.tracking.registry import register_model

    uri = settings.destination.uri or settings.records.tracking_uri
    with user_errors():
        done = register_model(settings.out, name, uri, force=settings.force)
    champion = "the champion" if done.champion else "not the champion"
    console.print(f"registered:    {name} version {done.version}, {champion}: {done.reason}")


if __name__ == "__main__":
    sys.exit(main())
