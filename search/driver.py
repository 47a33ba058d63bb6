"""From a command line to a finished study: check, connect, prepare, run, report."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import Exit, UserError, user_errors, without_passwords
from model.output import print_without_fail
from search.execution.environment import set_environment
from search.ledger.lock import study_lock
from search.options import StudySettings, build_parser, check
from search.resume import check_content, keep, parse
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
    from search.execution.tuner import Outcome
    from search.ledger.ledger import Ledger
    from trainables.host.digests import Provenance
    from trainables.tracking.spool import Spool


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
            study = make_study(settings)
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

            ledger = Ledger(study, name, settings.records.optuna_database, settings.replicates)
        if said := ledger.left_alone():
            console.print(said)
        keep_options(where, folder)
        enough = ledger.nothing_to_run(settings.budgets)
        if not enough and resources is None:
            resources = stack.enter_context(_ray(settings, console))
        interrupts.listen()
        return _StudyRun(settings, where, ledger, console, resources, began).go(enough, interrupts)


@contextmanager
def _ray(settings: StudySettings, console: "Console") -> "Iterator[Resources]":
    """A connection to Ray, and what each trial gets there."""
    import ray

    from search.execution.cluster import check_hosts, plan_resources, start_ray

    try:
        with console.status("starting Ray …"), user_errors():
            start_ray(settings.address)
            if settings.address is not None:
                check_hosts()
            wanted = settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent
            resources = plan_resources(*wanted, on_this_machine=settings.address is None)
        yield resources
    finally:
        ray.shutdown()


class _StudyRun:
    """One locked study on a running Ray."""

    def __init__(
        self,
        settings: StudySettings,
        where: Destination,
        ledger: "Ledger",
        console: "Console",
        resources: "Resources | None",
        began: float,
    ) -> None:
        self.settings, self.ledger, self.console, self.began = settings, ledger, console, began
        self.where = where
        self.study, self.name = ledger.study, ledger.name
        self._resources = resources
        self.made_before = len(ledger.made_with_replicates())
        self.profiled = self.reported = False
        self.typed = without_passwords(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
        from search.ledger.study_record import read_study_record

        begun = read_study_record(settings.records.study_record(self.name))
        self.command = begun.get("command", self.typed)  # which the study was begun by

    @property
    def resources(self) -> "Resources":
        """What trials get; there is no Ray where nothing is to run."""
        assert self._resources is not None
        return self._resources

    def go(self, enough: str, interrupts: Interrupts) -> int:
        """Prepare, run what is open, and show the result; `enough` says why nothing is to run, if so."""
        ledger, folder = self.ledger, self.settings.records.study(self.name)
        refs = None if enough else self._start_preparing()  # on a worker, while MLflow's store is opened here
        with self.console.status("opening the records …"):
            from search.ledger.results import METRICS, trial_config
            from trainables.phases.convergence import with_converged
            from trainables.tracking.spool import Spool
            from trainables.tracking.study_runs import Tracker

            with user_errors():
                tracker = Tracker(self.settings.records, self.name, ledger.study_id, self.where.uri)
                if tracker.mended:
                    self.console.print(tracker.mended)
                told = not tracker.mended and ledger.all_told(tracker.ending)
                journal = self.settings.records.journal(self.name, self.where.remembered)
                spool = Spool(tracker, journal, self.console.print, look=not told)
            if self.settings.address is None:  # across hosts the folder is a network folder
                self.settings.records.use_write_ahead_logs()
            spool.start()
        summary: dict[str, Any] = {}
        status, outcome, through = "FAILED", None, False
        try:
            if enough:
                from search.execution.reconcile import complete_mlflow
                from search.ledger.study_record import HISTORY

                summary = ledger.summary()
                self._say_nothing_to_run(enough)
                if summary:  # else no trial was ever begun
                    record = self._recorded()
                    record.pop(HISTORY, None)  # too long for a param
                    spool.put("start_study", params=record)
                    complete_mlflow(ledger, spool, self.settings.records, self._runtime(summary))
            else:
                from search.execution.preparation import prepared
                from trainables.host.provenance import git_state

                with self.console.status("preparing token ids and embedding (cached for next time) …"):
                    inputs, about = prepared(self.settings, refs)
                made = about.provenance
                if made.threads:  # those of the preparation
                    made = replace(made, threads=self.resources.threads)
                self._check_code(made, inputs)
                summary = about.as_params() | {"digest": made.digest, "code": made.code, "device": made.device}
                summary |= {"threads": self.resources.threads, "gpus": self.resources.gpus}
                summary |= git_state(Path(__file__).resolve())
                with user_errors():
                    ledger.keep_summary(summary)
                outcome = self._run(ledger, spool, inputs, summary)
            cut_off = outcome is not None and outcome.cut_off > 0
            status = "KILLED" if cut_off or interrupts.first else "FAILED" if outcome and outcome.bug else "FINISHED"
            through = True
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:  # also where the inputs cannot be made: no run stays open
            files = list(map(self.settings.records.inside, self._report(ledger, summary))) if summary else []
            figures = with_converged(trial_config(best), best.user_attrs[METRICS]) if (best := ledger.best()) else {}
            spool.put("end_study", status=status, figures=figures, files=files)
            with self.console.status("handing the records to MLflow …"):
                lacking = spool.close()
            if lacking:
                self.console.print(
                    f"MLflow is away and lacks the last of {lacking} run(s); the same command completes them",
                    style="bold",
                )
            else:  # the traces were handed over, or their trial has ended without them
                shutil.rmtree(folder / "profile", ignore_errors=True)
                if through and not spool.refused:
                    ledger.keep_told(tracker.ending)
        from search.screen import say_end

        ran, seconds = len(ledger.made_with_replicates()) - self.made_before, time.monotonic() - self.began
        seen = {"cut_off": status == "KILLED", "profiled": self.profiled, "reported": self.reported}
        say_end(self.console, self.settings, self.where, ledger, ran=ran, seconds=seconds, **seen)
        if status == "KILLED":
            return interrupts.exit_code
        if outcome is not None and outcome.bug:
            self.console.print(f"stopped: one trial after the other failed with {outcome.bug}", style="bold red")
            return Exit.FAILED
        return Exit.OK if ledger.finished() else Exit.FAILED

    def _say_nothing_to_run(self, enough: str) -> None:
        self.console.print(f"nothing to run: {enough}")
        if self.settings.profile:
            self.console.print("so nothing is profiled: a larger --trials or another --seed runs one")

    def _start_preparing(self) -> Any:
        from search.execution.preparation import start_preparing

        return start_preparing(self.settings, self.study.base, self.resources)

    def _check_code(self, now: "Provenance", inputs: Any) -> None:
        """Whether new trials can be compared with those on record; with --accept-code it is tried.

        Raises:
            UserError: they may not, and the study was not told to go on.
        """
        from search.continuation import accept, refusal, threads_before, without_replicates
        from search.execution.preparation import repeater

        self.ledger.keep_threads(threads_before(self.ledger, self.settings.records))
        said = []
        if (reason := refusal(self.ledger, now)) is not None:
            if not self.settings.accept_code:
                raise UserError(reason)
            with self.console.status("training a trial again, to compare …"):
                said = accept(self.ledger, self.settings.records, now, repeater(inputs, self.resources))
        self.ledger.digest = now.digest
        for sentence in [*said, without_replicates(self.ledger, now)]:
            if sentence:
                self.console.print(sentence)

    @staticmethod
    def _runtime(summary: dict[str, Any]) -> dict[str, Any]:
        """Params of every trial's run that are no part of its configuration."""
        return {"threads": summary["threads"], "gpus": summary["gpus"]}

    def _run(self, ledger: "Ledger", spool: "Spool", inputs: Any, summary: dict[str, Any]) -> "Outcome | None":
        """Run what is open; None if nothing is."""
        from search.screen import say_prepared

        say_prepared(self.console, self.settings, self.resources, summary)
        from search.ledger.study_record import HISTORY, continued, study_record, write_study_record

        record = study_record(self.settings, self.study, self.command, self.typed, summary)
        past = self._recorded().get(HISTORY, [])
        file = self.settings.records.study_record(self.name)
        write_study_record(file, {**record, HISTORY: continued(past, record, self.typed)})
        spool.put("start_study", params=record)
        from search.execution.reconcile import complete_mlflow
        from search.execution.tuner import run_trials
        from search.findings.leaderboard import trial_name
        from search.screen import Display

        complete_mlflow(ledger, spool, self.settings.records, self._runtime(summary))
        leader = ledger.leader()
        known = (leader.ppl, trial_name(leader.config)) if leader else None
        display = Display(self.console, self.study.trials + ledger.planned_replicates(), self.made_before, known)
        self.profiled = self.settings.profile
        # where the profiled trial leaves its traces until they are artifacts; seen from all nodes, as the cache is
        traces = self.settings.records.study(self.name) / "profile" if self.profiled else None
        return run_trials(
            ledger, spool, display, inputs, self.settings.records, self.resources, self._runtime(summary), traces,
            self.settings.budgets, self.settings.trial_timeout,
        )  # fmt: skip

    def _recorded(self) -> dict[str, Any]:
        """The study's record, its history with every trial that has ended by now."""
        from search.ledger.study_record import HISTORY, read_study_record, with_trials

        record = read_study_record(self.settings.records.study_record(self.name))
        ended = [t.number for t in self.ledger.made_with_replicates()]
        return record | ({HISTORY: with_trials(record[HISTORY], ended)} if HISTORY in record else {})

    def _report(self, ledger: "Ledger", summary: dict[str, Any]) -> list[Path]:
        """Write the study's results, then show them; the files."""
        from search.findings.leaderboard import as_table, leaderboard, origins_told, write_results
        from search.ledger.study_record import bigram_figures, write_study_record
        from search.report import print_verdict

        frame, best = leaderboard(ledger, bigram_figures(summary)), ledger.best()
        if record := self._recorded():
            write_study_record(self.settings.records.study_record(self.name), record)
        files = write_results(ledger, frame, self.settings.records.study(self.name), self.command)
        found, error = self._write_report(ledger)
        if ledger.finished():
            self.console.print()
            self.console.print(as_table(frame, f"{self.name}: best first", best.number if best else None))
            for line in origins_told(ledger):
                self.console.print(line)
        if found is None:
            self.console.print(f"the report could not be made: {error}", style="red")
            return files
        reports, comparison, claims = found
        if comparison.leader is not None:
            print_verdict(self.console, comparison, claims)
        return [*files, *reports]

    def _write_report(self, ledger: "Ledger") -> tuple[Any, str]:
        """What `write_report` gives; None where it cannot, and why. The study's result is safe by now."""
        from search.report import write_report

        try:
            with self.console.status("writing the report …"):
                found = write_report(ledger, self.settings.records)
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"
        self.reported = True
        return found, ""
