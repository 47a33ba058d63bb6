"""Train one configuration beside a GRU and a transformer of its size, on the same data, judged alike, in one table.

Each is trained from nothing in a process of its own and none is kept. The yardsticks have at least as many trained
parameters as both phases together, the same epochs, patience, clip and positions a step, and the best of a few learning
rates. The figures also go to MLflow.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.errors import BadInputError, user_errors
from trainables.train import BAD_INPUT, FAILED, OK, QUIET, TerminatedError, terminate
from trainables.train_options import Settings, build_parser, check

if TYPE_CHECKING:
    from rich.table import Table

    from trainables.bootstrap import Interval
    from trainables.contest import Contender
    from trainables.model_runs import ModelRun

BASELINES = ("gru", "transformer")  # model.baselines.MODELS, before torch is imported


def main() -> int:
    """Run with the process's arguments; the exit code: 0 done, 1 no result, 2 bad input, 130 and 143 interrupted."""
    signal.signal(signal.SIGTERM, terminate)
    parser = build_parser(__doc__ or "", model_folder=False)
    yardsticks = "one of them alone; may be given again (default: both)"
    parser.add_argument("--baseline", action="append", choices=BASELINES, help=yardsticks)
    args = parser.parse_args()
    try:
        with user_errors():
            settings = check(args)
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        return _compare(settings, list(dict.fromkeys(args.baseline or BASELINES)))
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        print("\ninterrupted", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT)


def _compare(settings: Settings, baselines: list[str]) -> int:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with console.status("preparing token ids and embedding …"):
        import torch

        from model.compute import Compute
        from trainables.artifacts import ArtifactStore
        from trainables.contest import TWO_PHASE, NoResultError, contest
        from trainables.devices import choose_device, hardware
        from trainables.model_runs import ModelRun
        from trainables.pipeline import prepare_inputs

        gpus = float(settings.device == "cuda")
        with user_errors():
            device = choose_device(gpus, "--device cpu")
            mlflow = ModelRun(settings.records, settings.tracking_uri, console.print)
            torch.set_num_threads(os.cpu_count() or 1)  # as a study does: a bigram's last digits depend on it
            store = ArtifactStore(settings.records.cache)
            inputs = prepare_inputs(settings.config, settings.data, settings.embedding, store, device)
    compute = str(Compute.of(device))
    console.print(f"on {hardware(gpus)}, {settings.threads} CPU thread(s): {compute}")
    found = []
    try:
        for contender in contest(settings.config, inputs, [TWO_PHASE, *baselines], gpus, settings.threads):
            found.append(contender)
            _log(mlflow, settings, contender, compute)
    except NoResultError as error:
        if found:  # those before it were trained for nothing otherwise
            console.print(table(found))
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    console.print(table(found))
    return OK


def _log(mlflow: "ModelRun", settings: Settings, contender: "Contender", compute: str) -> None:
    """One run of a contender; its curves are those of the learning rate that was kept."""
    from trainables import metrics as names
    from trainables.tracking import COMPUTE_TAG, HASH_TAG, ROLE_TAG

    role = f"compared: {contender.kind}"
    tags = {ROLE_TAG: role, HASH_TAG: settings.config.config_hash(), COMPUTE_TAG: compute}
    params = settings.config.flat() | {"model": contender.kind, "shape": contender.shape, "threads": settings.threads}
    params["phase2_learning_rate"] = contender.learning_rate
    figures = {
        names.VAL_PPL: contender.val_ppl,
        names.EPOCHS: float(contender.epochs),
        names.TOTAL_SECONDS: contender.seconds,
        names.TRAINED_PARAMS: float(contender.trained),
        names.TOKENS_PER_SECOND: contender.tokens_per_second,
        **contender.test.metrics("test"),
    }
    if contender.peak_bytes is not None:
        figures[names.PEAK_BYTES] = float(contender.peak_bytes)
    try:
        mlflow.start(f"{contender.kind} {contender.shape}", params, tags)
    except ValueError as error:  # away: the table is worth more
        print(f"the {contender.kind} is not recorded: {error}", file=sys.stderr)
        return
    mlflow.log(contender.points)
    with tempfile.TemporaryDirectory() as scratch:  # nothing takes up later what MLflow lacks
        if not mlflow.finish(figures, {}, Path(scratch) / "left.json"):
            print(f"MLflow is away and lacks the {contender.kind}'s figures", file=sys.stderr)


def table(contenders: "Sequence[Contender]") -> "Table":
    """One column for each model, one row for each figure; in Markdown's form."""
    from rich import box
    from rich.table import Table

    from trainables.contest import LENGTHS, against

    first = contenders[0]
    shown = Table(box=box.MARKDOWN)
    shown.add_column("")
    for each in contenders:
        shown.add_column(each.kind, justify="right")
    rows = {
        "shape": [c.shape for c in contenders],
        "validation PPL": [f"{c.val_ppl:.2f}" for c in contenders],
        "test PPL [95 %]": [_interval(c.test.ppl, 1, 2) for c in contenders],
        "test PPL against the first, % [95 %]": [
            "–" if c is first else _interval(against(first.test, c.test), 100, 1) for c in contenders
        ],
        "test accuracy, % [95 %]": [_interval(c.test.accuracy, 100, 1) for c in contenders],
        "test top-5, % [95 %]": [_interval(c.test.top5, 100, 1) for c in contenders],
        "test bits per byte [95 %]": [_interval(c.test.bits_per_byte, 1, 3) for c in contenders],
        "parameters trained": [f"{c.trained:,}" for c in contenders],
        "learning rate": [f"{c.learning_rate:g}" for c in contenders],
        "epochs": [str(c.epochs) for c in contenders],
        "seconds of one training": [f"{c.seconds:.1f}" for c in contenders],
        "training tokens/s": [f"{c.tokens_per_second:,.0f}" for c in contenders],
        "peak memory, MB": ["–" if c.peak_bytes is None else f"{c.peak_bytes / 1e6:,.0f}" for c in contenders],
    }
    for number, length in enumerate(LENGTHS):
        rows[f"state after {length:,} tokens, bytes"] = [f"{c.state_bytes[number]:,}" for c in contenders]
    for name, cells in rows.items():
        shown.add_row(name, *cells)
    return shown


def _interval(interval: "Interval", factor: float, digits: int) -> str:
    value, low, high = (f"{factor * end:.{digits}f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
