"""Which sampler finds good models soonest, and what does pruning cost? Replays recorded results through the ledger.

Replay:  python tests/replay.py [--seeds 30] [--jobs 2]           (the table in tests/data)
Record:  python tests/replay.py --record TABLE.csv [options of search/asym_layers.py; tests/data: --samples 40]
"""

import argparse
import csv
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

from entries import asym_layers

from search.options import build_parser, check
from search.spaces import SAMPLERS, SCHEDULERS, SEARCHED
from trainables.config import BigramConfig, RunConfig
from trainables.metrics import EPOCH_VAL_PPL, TOTAL_SECONDS, VAL_PPL

TABLE = Path(__file__).parent / "data" / "demo_space.csv"
VALUE, EPOCHS, SECONDS = "val_ppl", "epochs_val_ppl", "seconds"  # of the best epoch; of each, space between
STOPS = (12, 24, 48)  # trials after which the best so far is looked at
CELLS_DIM = 48  # D of the cells


def record(path: Path, options: list[str]) -> None:
    """Train every model of the space of `asym_layers`, one after the other on one thread, into a table."""
    import torch

    from trainables.cache import ArtifactStore
    from trainables.pipeline import prepare_inputs, run
    from trainables.progress import Progress

    torch.set_num_threads(1)
    settings = check(build_parser("", sampled=True).parse_args(options), sampled=True)
    space = asym_layers(settings.base, settings.context_dims, "random", 4).space
    store = ArtifactStore(settings.records.cache)
    inputs = prepare_inputs(settings.base, settings.data, settings.embedding, store, "cpu")
    points = list(space.points())
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*SEARCHED, VALUE, SECONDS, EPOCHS])
        writer.writeheader()
        for position, point in enumerate(points, 1):
            epochs: list[float] = []

            def listen(progress: Progress, epochs: list[float] = epochs) -> None:
                if EPOCH_VAL_PPL in progress.series:
                    epochs.append(progress.series[EPOCH_VAL_PPL])

            figures = run(settings.base.replace(**point), inputs, store, "cpu", listen).metrics
            listed = " ".join(f"{value:.3f}" for value in epochs)
            seconds = round(figures[TOTAL_SECONDS], 2)
            writer.writerow(point | {VALUE: f"{figures[VAL_PPL]:.3f}", SECONDS: seconds, EPOCHS: listed})
            file.flush()
            print(f"{position}/{len(points)} {point} {figures[VAL_PPL]:.2f} {seconds} s", flush=True)


@dataclass(frozen=True)
class Replayed:
    """One study of one seed."""

    regret: list[float]  # after each trial: best so far minus the best of the table
    epochs: dict[int, int]  # trials that have ended -> epochs of Phase 2 so far, at `STOPS`
    pruned: int


class Table:
    """Recorded results of every model of a space."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.dims = tuple(sorted({int(row["context_dim"]) for row in rows}))
        self.rows = {}
        for row in rows:
            point = {key: row[key] if key == "context_mode" else int(row[key]) for key in SEARCHED}
            value, epochs = float(row[VALUE]), [float(epoch) for epoch in row[EPOCHS].split()]
            self.rows[base(0).replace(**point).config_hash()] = (value, epochs)
        self.best = min(value for value, _ in self.rows.values())
        self.most_epochs = max(len(epochs) for _, epochs in self.rows.values())

    def of(self, config: RunConfig) -> tuple[float, list[float]]:
        """A model's value and its epochs'."""
        return self.rows[config.replace(seed=0).config_hash()]


def base(seed: int) -> RunConfig:
    """A configuration to put the searched fields into; nothing is read or trained."""
    inputs = {"data": "table", "data_fingerprint": "table", "embedding": "bigram", "embedding_fingerprint": "bigram"}
    return RunConfig(**inputs, bigram=BigramConfig(), context_dim=CELLS_DIM, seed=seed)


def replay(table: Table, sampler: str, scheduler: str, trials: int, seed: int) -> Replayed:
    """One study, one trial at a time."""
    from search.ledger.ledger import Ledger

    study = asym_layers(base(seed), table.dims, sampler, trials, scheduler)
    regret: list[float] = []
    lowest, trained, epochs_at = math.inf, 0, {}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(study, "replay", Path(folder) / "optuna.db")
        while (assignment := ledger.next()) is not None:
            value, epochs = table.of(assignment.config)
            for number, epoch in enumerate(epochs, 1):
                trained += 1
                reason = ledger.epoch(assignment.number, number, epoch)
                if reason and number < len(epochs):
                    ledger.prune(assignment.number, reason, {})
                    break
            else:
                ledger.complete(assignment.number, {VAL_PPL: value})
                lowest = min(lowest, value)
            regret.append(lowest - table.best)
            if len(regret) in STOPS:
                epochs_at[len(regret)] = trained
        return Replayed(regret, epochs_at, len(ledger.pruned()))


def interval(values: Sequence[float]) -> str:
    """The mean and its bootstrap range, the middle 95 % of resampled means: regrets are far from normal, many zero."""
    from scipy.stats import bootstrap

    found = bootstrap((values,), statistics.mean, vectorized=False, method="percentile", rng=0).confidence_interval
    return f"{statistics.mean(values):.2f} [{found.low:.2f}, {found.high:.2f}]"


def _limit_threads() -> None:
    import torch

    torch.set_num_threads(1)


def main() -> None:
    """Replay every sampler under every scheduler with the same seeds, then compare the samplers in pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    args = parser.parse_args()
    table = Table(args.table)
    print(f"{len(table.rows)} models, the best {table.best:.2f}; {args.seeds} seeds; mean [bootstrap range]")
    heads = "".join(f" regret at {stop} |" for stop in STOPS)
    print(f"| sampler | scheduler |{heads} optimum found at {' / '.join(map(str, STOPS))} | epochs |", flush=True)
    with ProcessPoolExecutor(args.jobs, initializer=_limit_threads) as pool:
        for scheduler in args.schedulers:
            regrets = {}
            for sampler in args.samplers:
                one = partial(replay, table, sampler, scheduler, STOPS[-1])
                done = list(pool.map(one, range(args.seeds)))
                regrets[sampler] = {stop: [study.regret[stop - 1] for study in done] for stop in STOPS}
                shown = "".join(f" {interval(regrets[sampler][stop])} |" for stop in STOPS)
                found = " / ".join(f"{sum(r <= 0 for r in regrets[sampler][stop]) / len(done):.0%}" for stop in STOPS)
                epochs = " / ".join(f"{statistics.mean(study.epochs[stop] for study in done):.0f}" for stop in STOPS)
                print(f"| {sampler} | {scheduler} |{shown} {found} | {epochs} |", flush=True)
            for first, second in combinations(args.samplers, 2):
                paired = {
                    stop: [a - b for a, b in zip(regrets[first][stop], regrets[second][stop], strict=True)]
                    for stop in STOPS
                }
                shown = "".join(f" {interval(paired[stop])} |" for stop in STOPS)
                print(f"| {first} − {second} | {scheduler} |{shown} | |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        record(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
