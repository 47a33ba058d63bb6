"""One run of a study, from its open ledger to its exit code: prepare, train, report, hand over to MLflow."""

import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from model.errors import Exit, UserError, user_errors, without_passwords
from search.continuation import accept, refusal, threads_before, without_replicates
from search.execution.reconcile import complete_mlflow
from search.findings.leaderboard import as_table, leaderboard, origins_told, trial_name, write_results
from search.ledger.ledger import Ledger
from search.ledger.records import (
    HISTORY,
    bigram_figures,
    continued,
    read_study_record,
    study_record,
    with_trials,
    write_study_record,
)
from search.ledger.trials import METRICS, trial_config
from search.options import StudySettings
from search.screen import Display, print_verdict, say_end, say_prepared
from trainables.host.digests import Provenance
from trainables.host.provenance import git_state
from trainables.host.signals import Interrupts
from trainables.phases.convergence import with_converged
from trainables.tracking.destination import Destination
from trainables.tracking.operations import EndStudy, StartStudy

if TYPE_CHECKING:  # Ray is not imported where nothing is to run, MLflow only once the inputs are being made
    from search.execution.cluster import Resources
    from search.execution.tuner import Outcome


class StudyRun:
    """One locked study."""

    def __init__(
        self,
        settings: StudySettings,
        where: Destination,
        ledger: Ledger,
        console: Console,
        resources: "Resources | None",
        began: float,
    ) -> None:
        """Take over what the driver has opened.

        Args:
            resources: what trials get of the Ray that is connected; None where nothing is to run, and so there is none.
            began: when the command did, by the monotonic clock.
        """
        self.settings, self.where, self.ledger, self.console, self.began = settings, where, ledger, console, began
        self.records, self.name, self.study = settings.records, ledger.name, ledger.study
        self._resources = resources
        self._made_before = len(ledger.made_with_replicates())
        self._summary = ledger.summary()  # of the inputs; empty until a run of the study has made them
        self._profiled = self._reported = False
        entry = "/".join(Path(sys.argv[0]).resolve().parts[-2:])  # as from the project's folder
        self._typed = without_passwords(shlex.join(["python", entry, *sys.argv[1:]]))
        begun = read_study_record(self.records.study_record(self.name))
        self._command = begun.get("command", self._typed)  # which the study was begun by

    @property
    def resources(self) -> "Resources":
        """What trials get; there is no Ray where nothing is to run."""
        assert self._resources is not None
        return self._resources

    def go(self, nothing_to_run: str | None, interrupts: Interrupts) -> int:
        """Run what is open, show the result and hand it to MLflow; the exit code.

        Args:
            nothing_to_run: why that is so, if it is.
        """
        refs = None if nothing_to_run else self._start_preparing()  # on a worker, while MLflow's store is opened here
        self._open_mlflow()
        outcome, status, through = None, "FAILED", False
        try:
            if nothing_to_run:
                self._complete_records(nothing_to_run)
            else:
                outcome = self._train(refs)
            cut_off = outcome is not None and outcome.cut_off > 0
            status = "KILLED" if cut_off or interrupts.first else "FAILED" if outcome and outcome.bug else "FINISHED"
            through = True
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:  # also where the inputs cannot be made: no run stays open
            self._close_mlflow(status, self._report(), through)
        seen = {"cut_off": status == "KILLED", "profiled": self._profiled, "reported": self._reported}
        ran, seconds = len(self.ledger.made_with_replicates()) - self._made_before, time.monotonic() - self.began
        say_end(self.console, self.settings, self.where, self.ledger, ran=ran, seconds=seconds, **seen)
        if status == "KILLED":
            return interrupts.exit_code
        if outcome is not None and outcome.bug:
            self.console.print(f"stopped: one trial after the other failed with {outcome.bug}", style="bold red")
            return Exit.FAILED
        return Exit.OK if self.ledger.finished() else Exit.FAILED

    def _start_preparing(self) -> Any:
        from search.execution.preparation import start_preparing

        return start_preparing(self.settings, self.study.base, self.resources, self._summary.get("inputs"))

    def _open_mlflow(self) -> None:
        """Open the study's runs there, and begin to hand over to them."""
        with self.console.status("opening the records …"):
            from trainables.tracking.study_runs import StudyRuns
            from trainables.tracking.writer import BackgroundWriter

            with user_errors():
                self._runs = runs = StudyRuns(self.records, self.name, self.ledger.study_id, self.where.uri)
                if runs.mended:
                    self.console.print(runs.mended)
                is_synced = not runs.mended and self.ledger.is_synced(runs.ending)
                journal = self.records.journal(self.name, self.where.remembered)
                self._writer = BackgroundWriter(runs, journal, self.console.print)
                self._ended = None if is_synced else runs.ended_hashes()
            if self.settings.address is None:  # across hosts the folder is a network folder
                self.records.use_write_ahead_logs()

    def _complete_records(self, nothing_to_run: str) -> None:
        """Nothing is to run: say so, and complete MLflow's runs of what has run."""
        self.console.print(f"nothing to run: {nothing_to_run}")
        if self.settings.profile:
            self.console.print("so nothing is profiled: a larger --trials or another --seed runs one")
        if not self._summary:
            return  # no trial was ever begun
        record = self._recorded()
        record.pop(HISTORY, None)  # too long for a param
        self._writer.put(StartStudy(params=record))
        complete_mlflow(self.ledger, self._writer, self._ended, self.records, self._runtime())

    def _train(self, refs: Any) -> "Outcome":
        """Wait for the inputs, and run what is open on them."""
        from search.execution.preparation import prepared

        with self.console.status("preparing token ids and embedding (cached for next time) …"):
            inputs, about = prepared(self.settings, refs)
        made = about.provenance
        if made.threads:  # those of the preparation
            made = replace(made, threads=self.resources.threads)
        self._check_code(made, inputs)
        summary = about.as_params() | {"digest": made.digest, "code": made.code, "device": made.device}
        summary |= {"threads": self.resources.threads, "gpus": self.resources.gpus}
        summary |= git_state(Path(__file__).resolve())
        self._summary = summary
        with user_errors():
            self.ledger.keep_summary(summary)
        say_prepared(self.console, self.settings, self.resources, summary)
        record = study_record(self.settings, self.study, self._command, self._typed, summary)
        history = continued(self._recorded().get(HISTORY, []), record, self._typed)
        write_study_record(self.records.study_record(self.name), {**record, HISTORY: history})
        self._writer.put(StartStudy(params=record))
        complete_mlflow(self.ledger, self._writer, self._ended, self.records, self._runtime())
        return self._run_trials(inputs)

    def _check_code(self, now: Provenance, inputs: Any) -> None:
        """Whether new trials can be compared with those on record; with --accept-code it is tried.

        Raises:
            UserError: they may not, and the study was not told to go on.
        """
        from search.execution.preparation import repeater

        self.ledger.keep_threads(threads_before(self.ledger, self.records))
        said = []
        if (reason := refusal(self.ledger, now)) is not None:
            if not self.settings.accept_code:
                raise UserError(reason)
            with self.console.status("training a trial again, to compare …"):
                said = accept(self.ledger, self.records, now, repeater(inputs, self.resources))
        self.ledger.digest = now.digest
        for sentence in [*said, without_replicates(self.ledger, now)]:
            if sentence:
                self.console.print(sentence)

    def _run_trials(self, inputs: Any) -> "Outcome":
        from search.execution.tuner import run_trials

        leader = self.ledger.leader()
        known = (leader.ppl, trial_name(leader.config)) if leader else None
        planned = self.study.trials + self.ledger.planned_replicates()
        display = Display(self.console, planned, self._made_before, known)
        self._profiled = self.settings.profile
        return run_trials(
            self.ledger, self._writer, display, inputs, self.records, self.resources, self._runtime(),
            self._traces if self._profiled else None, self.settings.budgets, self.settings.trial_timeout,
        )  # fmt: skip

    @property
    def _traces(self) -> Path:
        """Where the profiled trial leaves its traces until they are artifacts; seen from all nodes, as the cache is."""
        return self.records.study(self.name) / "profile"

    def _runtime(self) -> dict[str, Any]:
        """Params of every trial's run that are no part of its configuration."""
        return {"threads": self._summary["threads"], "gpus": self._summary["gpus"]}

    def _recorded(self) -> dict[str, Any]:
        """The study's record, its history with every trial that has ended by now."""
        record = read_study_record(self.records.study_record(self.name))
        ended = [t.number for t in self.ledger.made_with_replicates()]
        return record | ({HISTORY: with_trials(record[HISTORY], ended)} if HISTORY in record else {})

    def _report(self) -> list[Path]:
        """Write the study's results, then show them; the files."""
        ledger, console = self.ledger, self.console
        if not self._summary:
            return []
        frame, best = leaderboard(ledger, bigram_figures(self._summary)), ledger.best()
        if record := self._recorded():
            write_study_record(self.records.study_record(self.name), record)
        files = write_results(ledger, frame, self.records.study(self.name), self._command)
        found, error = self._write_report()
        if ledger.finished():
            console.print()
            console.print(as_table(frame, f"{self.name}: best first", best.number if best else None))
            for line in origins_told(ledger):
                console.print(line)
        if found is None:
            console.print(f"the report could not be made: {error}", style="red")
            return files
        reports, comparison, claims = found
        if comparison.leader is not None:
            print_verdict(console, comparison, claims)
        return [*files, *reports]

    def _write_report(self) -> tuple[Any, str]:
        """What `write_report` gives; None where it cannot, and why. The study's result is safe by now."""
        try:
            with self.console.status("writing the report …"):
                from search.findings.document import write_report  # plotly takes a second to import

                found = write_report(self.ledger, self.records)
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"
        self._reported = True
        return found, ""

    def _close_mlflow(self, status: str, files: list[Path], through: bool) -> None:
        """End the study's run, and wait for what MLflow has not got yet.

        Args:
            through: whether the run came to its end, a signal's included.
        """
        best = self.ledger.best()
        figures = with_converged(trial_config(best), best.user_attrs[METRICS]) if best else {}
        self._writer.put(EndStudy(status=status, figures=figures, files=list(map(self.records.inside, files))))
        with self.console.status("handing the records to MLflow …"):
            lacking = self._writer.close()
        if lacking:
            self.console.print(
                f"MLflow is away and lacks the last of {lacking} run(s); the same command completes them", style="bold"
            )
            return
        # the traces were handed over, or their trial has ended without them
        shutil.rmtree(self._traces, ignore_errors=True)
        if through and not self._writer.refused:
            self.ledger.mark_synced(self._runs.ending)
