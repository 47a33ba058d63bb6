"""From a command line to a finished study: check, connect, prepare, run, report."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import BadInputError, user_errors
from search.lock import study_lock
from search.options import Settings, build_parser, check
from search.spaces import Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from search.cluster import Resources
    from search.ledger import Ledger

OK, ALL_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Set before anything heavy is imported. What each is for:
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own live table: ours is shown instead
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials that ask for no GPU see none
    # No CSV, JSON and TensorBoard copies of what MLflow has. It empties Tune's ResultGrid, which nothing here reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "true",
}


def main(describe: str, make_study: Callable[[Settings], Study], sampled: bool) -> int:
    """Run one entry with the process's arguments; the exit code.

    0: done. 1: no trial succeeded. 2: bad input, in one sentence. 130: interrupted; the same command continues.
    """
    args = build_parser(describe, sampled).parse_args()
    try:
        with user_errors():
            settings = check(args, sampled)
            study = make_study(settings)
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        if settings.address is not None and (Path.home() / ".ray" / "auth_token").exists():
            # A cluster that was started where a token file lies wants the token. Ray reads this when it is imported.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        return _run(settings, study)
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues this study", file=sys.stderr)
        return INTERRUPTED


def _run(settings: Settings, study: Study) -> int:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # a log has no width of its own
    began = time.monotonic()
    name = settings.name or study.default_name(settings.data.label)
    console.print(f"study [bold]{name}[/]: {study.trials} trials, records in {settings.shown_root}/")
    with ExitStack() as stack:
        if settings.address is None:
            stack.enter_context(study_lock(settings.records.study(name)))
            resources = stack.enter_context(_ray(settings, console))
        else:  # whether a cluster is there and has what is asked for is found out before anything is written
            resources = stack.enter_context(_ray(settings, console))
            stack.enter_context(study_lock(settings.records.study(name)))
        return _StudyRun(settings, study, name, console, resources, began).go()


@contextmanager
def _ray(settings: Settings, console: "Console") -> "Iterator[Resources]":
    """A connection to Ray, and what each trial gets there."""
    import ray

    from search.cluster import plan_resources, start_ray

    try:
        with console.status("starting Ray …"), user_errors():
            start_ray(settings.address)
            resources = plan_resources(settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent)
        yield resources
    finally:
        ray.shutdown()


class _StudyRun:
    """One locked study on a running Ray."""

    def __init__(
        self, settings: Settings, study: Study, name: str, console: "Console", resources: "Resources", began: float
    ) -> None:
        self.settings, self.study, self.name, self.console = settings, study, name, console
        self.resources, self.began = resources, began
        self.profiled = self.reported = False
        self.command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])

    def go(self) -> int:
        """Prepare, run what is open, and show the result."""
        prepared = self._start_preparing()  # on a worker, while the stores are opened here
        with self.console.status("opening the records …"):
            from search.ledger import Ledger
            from trainables.tracking import Tracker

            with user_errors():
                ledger = Ledger(self.study, self.name, self.settings.records.optuna_database, self.settings.replicates)
                tracker = Tracker(self.settings.records, self.name, self.settings.tracking_uri)
            if self.settings.address is None:  # across hosts the folder is a network folder
                self.settings.records.use_write_ahead_logs()
            summary: dict[str, Any] = {}
            status, cut_off = "FAILED", 0
        try:
            with self.console.status("preparing token ids and embedding (cached for next time) …"):
                inputs, summary = self._prepared(prepared)
            cut_off = self._run(ledger, tracker, inputs, summary)
            status = "KILLED" if cut_off else "FINISHED"
        finally:  # also where the inputs cannot be made: no run stays open
            files = self._report(ledger, summary) if summary else []
            best = ledger.best()
            tracker.end_study(status, best.user_attrs["metrics"] if best else {}, files)
        self._say_end(ledger, cut_off)
        if cut_off:
            return INTERRUPTED
        return OK if ledger.finished() else ALL_FAILED

    def _start_preparing(self) -> Any:
        import ray

        from trainables.two_phase import prepare

        # Nothing else computes meanwhile: on this machine it may use every core.
        threads = self.resources.threads if self.settings.address else os.cpu_count() or 1
        task = ray.remote(prepare).options(
            num_cpus=self.resources.cpus, num_gpus=self.resources.gpus, num_returns=2, max_retries=0
        )
        arguments = (
            self.settings.data,
            self.settings.embedding,
            str(self.settings.records.cache),
            threads,
            self.resources.gpus,
        )
        return task.remote(self.study.base, *arguments)

    @staticmethod
    def _prepared(refs: Any) -> tuple[Any, dict[str, Any]]:
        import ray

        inputs, summary = refs
        try:
            return inputs, ray.get(summary)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise BadInputError(str(error.cause)) from error
            raise
        except ray.exceptions.WorkerCrashedError as error:
            raise BadInputError(
                "the process that prepares the inputs died; is there enough memory for them?"
            ) from error

    def _say_prepared(self, summary: dict[str, Any]) -> None:
        splits = {"train": "training", "val": "validation", "test": "test"}
        tokens = ", ".join(f"{summary[f'{key}_tokens']:,} {name}" for key, name in splits.items())
        self.console.print(f"data {self.settings.data.spec}: {tokens} tokens")
        bigram = f", validation PPL {summary['bigram_val_ppl']:.2f}" if summary["bigram_val_ppl"] else ""
        size = f"V={summary['vocab_size']:,}, E={summary['embedding_dim']}"
        self.console.print(f"embedding {self.settings.embedding.spec}: {size}{bigram}")
        what = f"{self.resources.gpus:g} GPU" if self.resources.gpus else f"{self.resources.threads} CPU thread(s)"
        where = f"{summary['hardware']}: {summary['compute']}"
        self.console.print(f"{self.resources.max_concurrent} trial(s) at once, {what} each, on {where}\n")

    @staticmethod
    def _complete_mlflow(ledger: "Ledger", tracker: Any, runtime: dict[str, Any]) -> None:
        """Finish MLflow's runs of trials that the ledger has as finished: a driver was killed between the two."""
        from search.leaderboard import trial_name
        from search.results import HASH, METRICS, REPLICATE_OF, trial_config

        missing = {t.user_attrs[HASH]: t for c in ledger.configurations() for t in c.trials}
        for config_hash in missing.keys() - tracker.finished_hashes():
            trial = missing[config_hash]
            config = trial_config(trial)
            first = trial.user_attrs.get(REPLICATE_OF)
            name, params = trial_name(config, first is not None), config.flat() | runtime
            run_id = tracker.start_trial(trial.number, config_hash, name, params, first)
            tracker.finish_trial(run_id, trial.user_attrs[METRICS])

    def _run(self, ledger: "Ledger", tracker: Any, inputs: Any, summary: dict[str, Any]) -> int:
        """Run what is open; how many trials were cut off."""
        self._say_prepared(summary)
        from search.study_record import study_record, write_study_record

        record = study_record(self.settings, self.study, self.command, summary)
        write_study_record(self.settings.records.study_record(self.name), record)
        tracker.start_study(record)
        runtime = {
            "device_name": summary["hardware"],
            "threads": self.resources.threads,
            "gpus": self.resources.gpus,
        }
        from search.leaderboard import trial_name
        from search.progress import Display
        from search.tuner import run_trials

        self._complete_mlflow(ledger, tracker, runtime)
        if ledger.open_trials() == 0 and not ledger.open_replicates():
            self.console.print("all trials of this study are finished: nothing to run")
            if self.settings.profile:
                self.console.print("so nothing is profiled: a larger --trials or another --seed runs one")
            return 0
        leader = ledger.leader()
        known = (leader.ppl, trial_name(leader.config)) if leader else None
        done = self.study.trials - ledger.open_trials() + len(ledger.replicates())
        display = Display(self.console, self.study.trials + ledger.planned_replicates(), done, known)
        self.profiled = self.settings.profile
        with self._traces() as traces:
            records = self.settings.records
            return run_trials(ledger, tracker, display, inputs, records, self.resources, runtime, traces)

    @contextmanager
    def _traces(self) -> "Iterator[Path | None]":
        """Where the profiled trial leaves its traces until they are artifacts; seen from all nodes, as the cache is."""
        if not self.settings.profile:
            yield None
            return
        folder = self.settings.records.study(self.name) / "profile"
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _report(self, ledger: "Ledger", summary: dict[str, Any]) -> list[Path]:
        from search.leaderboard import as_table, leaderboard, write_results

        bigram = (summary["bigram_val_ppl"], summary["bigram_val_acc"]) if summary["bigram_val_ppl"] else None
        frame, best = leaderboard(ledger, bigram), ledger.best()
        if ledger.finished():
            self.console.print()
            self.console.print(as_table(frame, f"{self.name}: best first", best.number if best else None))
        files = write_results(ledger, frame, self.settings.records.study(self.name), self.command)
        return files + self._write_report(ledger)

    def _write_report(self, ledger: "Ledger") -> list[Path]:
        """The report's files. The study's result is safe by now: where they cannot be made, it is said, no more."""
        from rich.markup import escape

        from search.report import print_verdict, write_report

        try:
            with self.console.status("writing the report …"):
                files, comparison, claims = write_report(ledger, self.settings.records)
            if comparison.leader is not None:
                print_verdict(self.console, comparison, claims)
        except Exception as error:
            self.console.print(f"[red]the report could not be made: {escape(f'{type(error).__name__}: {error}')}[/]")
            return []
        self.reported = True
        return files

    def _say_end(self, ledger: "Ledger", cut_off: int) -> None:
        from optuna.trial import TrialState
        from rich.markup import escape

        from search.leaderboard import BEST, failures
        from search.progress import duration
        from search.report import HTML

        failed = failures(ledger)
        for number, config, reason in failed:
            self.console.print(f"[red]trial {number} ({config}) failed: {escape(reason)}[/]")
        if self.profiled:
            self.console.print("traces of the first trial that ran: its run's artifacts in MLflow, folder profile/")
        shown = self.settings.shown_root
        finished, elapsed = len(ledger.finished()), duration(time.monotonic() - self.began)
        seeds = f" and {len(more)} replicates" if (more := ledger.replicates(TrialState.COMPLETE)) else ""
        self.console.print(f"\n{finished} trials{seeds} finished, {len(failed)} failed, in {elapsed}")
        if cut_off:
            self.console.print("[bold]interrupted: the same command continues this study[/]")
        if finished:
            self.console.print(f"best configuration: {shown / 'studies' / self.name / BEST}")
            if self.reported:
                self.console.print(f"the report:         {shown / 'studies' / self.name / HTML}")
        if self.settings.tracking_uri is None:
            self.console.print(f"look at the runs:   python search/ui.py --mlruns {shlex.quote(str(shown))}")
        elif self.settings.tracking_uri.startswith("http"):
            self.console.print(f"look at the runs:   {self.settings.tracking_uri}")
