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
from search.interrupts import Interrupts
from search.lock import study_lock
from search.options import Settings, build_parser, check
from search.spaces import Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from search.cluster import Resources
    from search.ledger import Ledger
    from search.tuner import Outcome
    from trainables.spool import Spool

OK, FAILED, BAD_INPUT = 0, 1, 2

# Set before anything heavy is imported. What each is for:
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own live table: ours is shown instead
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials that ask for no GPU see none
    # No CSV, JSON and TensorBoard copies of what MLflow has. It empties Tune's ResultGrid, which nothing here reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The spool tries again itself; MLflow's own seven times with growing pauses would hold it up for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `search.interrupts` hears the signals and tells Tune
    "TOKENIZERS_PARALLELISM": "true",
}


def main(describe: str, make_study: Callable[[Settings], Study], sampled: bool) -> int:
    """Run one entry with the process's arguments; the exit code.

    0: done. 1: no trial succeeded, or one error stopped the study. 2: bad input, in one sentence. 130 (Ctrl-C) and
    143 (SIGTERM): interrupted; the same command continues.
    """
    args = build_parser(describe, sampled).parse_args()
    interrupts = Interrupts()
    interrupts.listen()
    try:
        with user_errors():
            settings = check(args, sampled)
            study = make_study(settings)
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        if settings.address is not None and (Path.home() / ".ray" / "auth_token").exists():
            # A cluster that was started where a token file lies wants the token. Ray reads this when it is imported.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        return _run(settings, study, interrupts)
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues this study", file=sys.stderr)
        return interrupts.exit_code


def _run(settings: Settings, study: Study, interrupts: Interrupts) -> int:
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
        interrupts.listen()
        return _StudyRun(settings, study, name, console, resources, began).go(interrupts)


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
        self.profiled = False
        self.command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])

    def go(self, interrupts: Interrupts) -> int:
        """Prepare, run what is open, and show the result."""
        prepared = self._start_preparing()  # on a worker, while the stores are opened here
        folder = self.settings.records.study(self.name)
        with self.console.status("opening the records …"):
            from search.ledger import Ledger
            from trainables.spool import Spool
            from trainables.tracking import Tracker

            with user_errors():
                ledger = Ledger(self.study, self.name, self.settings.records.optuna_database)
                tracker = Tracker(self.settings.records, self.name, self.settings.tracking_uri)
                spool = Spool(tracker, folder / "mlflow.journal", self.console.print)
            if self.settings.address is None:  # across hosts the folder is a network folder
                self.settings.records.use_write_ahead_logs()
            spool.start()
        summary: dict[str, Any] = {}
        status, outcome = "FAILED", None
        try:
            with self.console.status("preparing token ids and embedding (cached for next time) …"):
                inputs, summary = self._prepared(prepared)
            outcome = self._run(ledger, spool, inputs, summary)
            cut_off = outcome is not None and outcome.cut_off > 0
            status = "KILLED" if cut_off or interrupts.first else "FAILED" if outcome and outcome.bug else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:  # also where the inputs cannot be made: no run stays open
            files = [str(file) for file in self._report(ledger, summary)] if summary else []
            best = ledger.best()
            spool.put("end_study", status=status, figures=best.user_attrs["metrics"] if best else {}, files=files)
            with self.console.status("handing the records to MLflow …"):
                lacking = spool.close()
            if lacking:
                self.console.print(
                    f"[bold]MLflow is away and lacks the last of {lacking} run(s); the same command completes them[/]"
                )
            else:  # the traces were handed over, or their trial has ended without them
                shutil.rmtree(folder / "profile", ignore_errors=True)
        self._say_end(ledger, status == "KILLED")
        if status == "KILLED":
            return interrupts.exit_code
        if outcome is not None and outcome.bug:
            from rich.markup import escape

            self.console.print(
                f"[bold red]stopped: one trial after the other failed with {escape(outcome.bug)}; "
                "mend it, and the same command runs these trials again and continues[/]"
            )
            return FAILED
        return OK if ledger.finished() else FAILED

    def _start_preparing(self) -> Any:
        import ray

        from trainables.two_phase import prepare

        # Nothing else computes meanwhile: on this machine it may use every core.
        threads = self.resources.threads if self.settings.address else os.cpu_count() or 1
        task = ray.remote(prepare).options(
            num_cpus=self.resources.cpus, num_gpus=self.resources.gpus, num_returns=2, max_retries=2
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

    def _study_params(self, summary: dict[str, Any]) -> dict[str, Any]:
        from importlib.metadata import version

        packages = ("torch", "ray", "optuna")
        return {
            "command": self.command,
            "data": self.settings.data.spec,
            "embedding": self.settings.embedding.spec,
            "sampler": self.study.sampler or "grid",
            **self.study.definition(),
            **summary,
            **{f"version_{package}": version(package) for package in packages},
        }

    @staticmethod
    def _complete_mlflow(ledger: "Ledger", spool: "Spool", runtime: dict[str, Any]) -> None:
        """End MLflow's runs of trials that the ledger has as ended: a driver was killed between the two."""
        from search.leaderboard import trial_name
        from search.ledger import COMPUTE, HASH, METRICS, REASON, trial_config

        for status, trials in (("FINISHED", ledger.finished()), ("FAILED", ledger.failed())):
            for trial in trials:
                key = trial.user_attrs[HASH]
                if key in spool.ended[status]:
                    continue
                config = trial_config(trial)
                params = config.flat() | runtime
                spool.put("start_trial", key, number=trial.number, name=trial_name(config), params=params)
                if status == "FAILED":
                    spool.put("fail_trial", key, reason=trial.user_attrs[REASON], details="")
                else:
                    compute = trial.user_attrs.get(COMPUTE, "")
                    spool.put("finish_trial", key, figures=trial.user_attrs[METRICS], compute=compute)

    def _run(self, ledger: "Ledger", spool: "Spool", inputs: Any, summary: dict[str, Any]) -> "Outcome | None":
        """Run what is open; None if nothing is."""
        self._say_prepared(summary)
        spool.put("start_study", params=self._study_params(summary))
        runtime = {
            "device_name": summary["hardware"],
            "threads": self.resources.threads,
            "gpus": self.resources.gpus,
        }
        from search.leaderboard import trial_name
        from search.progress import Display
        from search.tuner import run_trials

        self._complete_mlflow(ledger, spool, runtime)
        if ledger.open_trials() == 0:
            self.console.print("all trials of this study are finished: nothing to run")
            if self.settings.profile:
                self.console.print("so nothing is profiled: a larger --trials or another --seed runs one")
            return None
        from search.ledger import trial_config

        best = ledger.best()
        known = (best.value, trial_name(trial_config(best))) if best and best.value is not None else None
        done = self.study.trials - ledger.open_trials()
        display = Display(self.console, self.study.trials, done, known)
        self.profiled = self.settings.profile
        # where the profiled trial leaves its traces until they are artifacts; seen from all nodes, as the cache is
        traces = self.settings.records.study(self.name) / "profile" if self.profiled else None
        cache, timeout = self.settings.records.cache, self.settings.trial_timeout
        return run_trials(ledger, spool, display, inputs, cache, self.resources, runtime, traces, timeout)

    def _report(self, ledger: "Ledger", summary: dict[str, Any]) -> list[Path]:
        from search.leaderboard import as_table, leaderboard, write_results

        bigram = (summary["bigram_val_ppl"], summary["bigram_val_acc"]) if summary["bigram_val_ppl"] else None
        frame = leaderboard(ledger, bigram)
        if ledger.finished():
            self.console.print()
            self.console.print(as_table(frame, f"{self.name}: best first"))
        return write_results(ledger, frame, self.settings.records.study(self.name), self.command)

    def _say_end(self, ledger: "Ledger", cut_off: bool) -> None:
        from rich.markup import escape

        from search.leaderboard import BEST, failures
        from search.progress import duration

        failed = failures(ledger)
        for number, config, reason in failed:
            self.console.print(f"[red]trial {number} ({config}) failed: {escape(reason)}[/]")
        if self.profiled:
            self.console.print("traces of the first trial that ran: its run's artifacts in MLflow, folder profile/")
        shown = self.settings.shown_root
        finished, elapsed = len(ledger.finished()), duration(time.monotonic() - self.began)
        self.console.print(f"\n{finished} trials finished, {len(failed)} failed, in {elapsed}")
        if cut_off:
            self.console.print("[bold]interrupted: the same command continues this study[/]")
        if finished:
            self.console.print(f"best configuration: {shown / 'studies' / self.name / BEST}")
        if self.settings.tracking_uri is None:
            self.console.print(f"look at the runs:   python search/ui.py --mlruns {shlex.quote(str(shown))}")
        elif self.settings.tracking_uri.startswith("http"):
            self.console.print(f"look at the runs:   {self.settings.tracking_uri}")
