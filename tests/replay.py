"""Which sampler finds good models soonest, and what does pruning cost? Replays recorded results through the ledger.

Replay:  python tests/replay.py [--seeds 20]           (the table in tests/data)
Record:  python tests/replay.py --record TABLE.csv [options of search/asym_layers.py; tests/data: --samples 40]
"""

import argparse
import csv
import logging
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from search.options import build_parser, check
from search.spaces import SAMPLERS, SCHEDULERS, SEARCHED, asym_layers
from trainables.config import BigramConfig, RunConfig
from trainables.metrics import EPOCH_VAL_PPL, TOTAL_SECONDS, VAL_PPL

TABLE = Path(__file__).parent / "data" / "demo_space.csv"
VALUE, EPOCHS, SECONDS = "val_ppl", "epochs_val_ppl", "seconds"  # of the best epoch; of each, space between
STOPS = (8, 12, 16, 24)  # trials after which the best so far is looked at
CELLS_DIM = 48  # D of the cells


def record(path: Path, options: list[str]) -> None:
    """Train every model of the space of `asym_layers`, one after the other on one thread, into a table."""
    import torch

    from trainables.artifacts import ArtifactStore
    from trainables.pipeline import Progress, prepare_inputs, run

    torch.set_num_threads(1)
    settings = check(build_parser("", sampled=True).parse_args(options), sampled=True)
    space = asym_layers(settings.base, settings.context_dims, "random", 4).space
    store = ArtifactStore(settings.records.cache)
    inputs = prepare_inputs(settings.base, settings.data, settings.embedding, store, "cpu")
    points = space.points()
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

    best: dict[int, float]  # trials that have ended -> best so far
    epochs: int  # of Phase 2 in all
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


def replay(table: Table, sampler: str, scheduler: str, seed: int, database: Path) -> Replayed:
    """One study, one trial at a time."""
    from search.ledger import Ledger

    study = asym_layers(base(seed), table.dims, sampler, STOPS[-1], scheduler)
    ledger = Ledger(study, f"{sampler}-{scheduler}-{seed}", database)
    best: dict[int, float] = {}
    trained, lowest, ended = 0, math.inf, 0
    while (assignment := ledger.next()) is not None:
        value, epochs = table.of(assignment.config)
        for number, epoch in enumerate(epochs, 1):
            trained += 1
            reason = ledger.epoch(assignment.number, number, epoch)
            if reason and number < table.most_epochs:
                ledger.prune(assignment.number, reason, {})
                break
        else:
            ledger.complete(assignment.number, {VAL_PPL: value})
            lowest = min(lowest, value)
        ended += 1
        best[ended] = lowest
    return Replayed(best, trained, len(ledger.pruned()))


def _interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval (normal)."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):6.2f} ±{half:.2f}"


def main() -> None:
    """Replay every sampler without pruning, then the schedulers with each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    table = Table(args.table)
    print(f"{len(table.rows)} models, the best {table.best:.2f}; mean best validation PPL so far, {args.seeds} seeds")
    heads = "".join(f"{f'{stop} trials':>14}" for stop in STOPS)
    print(f"{'sampler':8}{'scheduler':12}{heads}{'optimum':>9}{'epochs':>8}{'pruned':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for scheduler in args.schedulers:
            for sampler in args.samplers:
                database = Path(folder) / f"{sampler}-{scheduler}.db"
                done = [replay(table, sampler, scheduler, seed, database) for seed in range(args.seeds)]
                shown = "".join(f"{_interval([one.best[stop] for one in done]):>14}" for stop in STOPS)
                found = sum(one.best[STOPS[-1]] <= table.best for one in done) / len(done)
                epochs, pruned = statistics.mean(o.epochs for o in done), statistics.mean(o.pruned for o in done)
                print(f"{sampler:8}{scheduler:12}{shown}{found:>9.0%}{epochs:>8.0f}{pruned:>8.1f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        record(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
