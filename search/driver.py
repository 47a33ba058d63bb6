"""From a command line to a finished study: check, connect, prepare, run, report."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import Exit, UserError, user_errors
from model.output import print_without_fail
from search.execution.environment import set_environment
from search.ledger.lock import study_lock
from search.options import StudySettings, build_parser, check
from search.resume import check_content, keep, parse, study_of
from search.spaces import Study
from trainables.errors import StoppedError, unwritable
from trainables.host.signals import Interrupts
from trainables.tracking.check import check_destination
from trainables.tracking.destination import Destination, destination
from trainables.tracking.places import in_use
from trainables.training.studies import runs_went

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from search.execution.cluster import Resources


def main(describe: str, make_study: Callable[[StudySettings], Study], sampled: bool) -> int:
    """Run one entry with the process's arguments; the exit code.

    0: done. 1: no trial succeeded, or one error (a full disk, say) stopped the study. 2: bad input, in one sentence.
    130 (Ctrl-C) and 143 (SIGTERM): interrupted; the same command continues.
    """
    print_without_fail()
    interrupts = Interrupts()
    interrupts.listen()
    try:
        with user_errors():
            if sys.flags.optimize > 1:
                raise UserError("python -OO leaves out the docstrings that Ray needs: start it without -OO")
            args = parse(build_parser(describe, sampled), sys.argv[1:])
            settings = check(args, sampled)
            check_content(args, settings)
            study = study_of(make_study, settings)
        with user_errors():
            set_environment(settings.address)
        return _run(settings, study, lambda where, folder: keep(args, settings, where, sys.argv[0], folder), interrupts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER_ERROR
    except Exception as error:
        if not (reason := str(error) if isinstance(error, StoppedError) else unwritable(error)):
            raise
        print(f"error: the study stops ({reason}); once that is mended, the same command continues it", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues this study", file=sys.stderr)
        return interrupts.exit_code


def _run(
    settings: StudySettings, study: Study, keep_options: Callable[[Destination, Path], None], interrupts: Interrupts
) -> int:
    from rich.text import Text

    from trainables.host.console import open_console

    console = open_console()
    began = time.monotonic()
    name = settings.name or study.default_name(settings.data.label)
    folder = settings.records.study(name)
    with user_errors():
        where = destination(settings.tracking_uri, runs_went(settings.records, name), settings.records)
        check_destination(where)
    about = f": {study.trials} trials, records in {settings.shown_root}/{where.said}"
    console.print(Text.assemble("study ", (name, "bold"), about), soft_wrap=True)
    with ExitStack() as stack:
        resources = None
        if settings.address is not None and not folder.exists():
            # whether a cluster is there and has what is asked for is found out before anything is written
            resources = stack.enter_context(_ray(settings, console))
        with user_errors():
            stack.enter_context(study_lock(folder))
            stack.enter_context(in_use(settings.records))
        with console.status("opening the records …"), user_errors():
            from search.ledger.ledger import Ledger
            from search.study_run import StudyRun

            _check_not_lost(settings, name)

            ledger = Ledger(study, name, settings.records.optuna_database, settings.replicates)
        if said := ledger.foreign_changes():
            console.print(said)
        keep_options(where, folder)
        enough = ledger.nothing_to_run(settings.budgets)
        if not enough and resources is None:
            resources = stack.enter_context(_ray(settings, console))
        interrupts.listen()
        return StudyRun(settings, where, ledger, console, resources, began).go(enough, interrupts)


def _check_not_lost(settings: StudySettings, name: str) -> None:
    """Raise ValueError where this study would begin anew and write over another one's results."""
    from search.audit.lost_studies import find_lost, study_ids

    if lost := find_lost(settings.records, name, study_ids(settings.records.optuna_database)):
        folder = settings.records.study(name)
        raise ValueError(f"{folder} {lost.what}: {lost.remedy}; or, to begin anew, move this folder away")


@contextmanager
def _ray(settings: StudySettings, console: "Console") -> "Iterator[Resources]":
    """A connection to Ray, and what each trial gets there."""
    with console.status("starting Ray …"):
        from search.execution import cluster  # imports Ray, which takes seconds
    wanted = settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent
    try:
        with console.status("starting Ray …"), user_errors():
            resources = cluster.connect(settings.address, *wanted)
        yield resources
    finally:
        cluster.disconnect()
