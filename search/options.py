"""The command line of every study entry: one parser, and all checks that need neither torch nor Ray.

Whatever a user can get wrong is found here, before anything is imported, started or written.
"""

import argparse
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from model.cli import Parser
from model.modes import CONTEXT_MODES
from search.ledger.budgets import LEAST_GAIN, Budgets
from search.preflight import check_cluster, check_machine
from search.presets import PRESETS, Preset
from search.spaces import NO_SCHEDULER, SAMPLERS, SCHEDULERS
from trainables.config import RunConfig
from trainables.host.arguments import as_amount, as_count, as_folder, as_name, as_seed
from trainables.host.preflight import check_root
from trainables.inputs.sources import DataSource, EmbeddingSource, resolve_data, resolve_embedding
from trainables.records import DEFAULT_ROOT, Records
from trainables.tracking.destination import VARIABLE, as_tracking_uri

DEFAULT_TRIALS = 12
DEFAULT_SAMPLER = "gp"
# A sweep, an epoch, or the contexts of one stream at a large scale take minutes, and so does waiting for another
# trial's Phase 1: an hour without a sign is none of these.
DEFAULT_TRIAL_TIMEOUT = 60.0


@dataclass(frozen=True)
class StudySettings:
    """A checked command line."""

    base: RunConfig  # all that the study does not search
    context_dims: tuple[int, ...]  # as given; else all that the preset explores, of a grid the preset's one
    all_dims: tuple[int, ...]  # as given, else all that the preset explores
    context_modes: tuple[str, ...]
    trials: int
    replicates: int  # seeds of a finalist, in all
    sampler: str
    scheduler: str
    budgets: Budgets
    data: DataSource
    embedding: EmbeddingSource
    name: str | None
    records: Records
    shown_root: Path  # the records folder as the user typed it
    tracking_uri: str | None  # as typed; `trainables.tracking.destination.destination` says where runs go
    address: str | None
    cpus_per_trial: float
    gpus_per_trial: float | None  # None: one where there are GPUs
    max_concurrent: int | None
    trial_timeout: float  # minutes
    profile: bool  # record the first trial that is run
    accept_code: bool  # go on with a study whose trials are of other code or on another device


def _hours(text: str) -> float:
    value = as_amount(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _share(text: str) -> float:
    value = as_amount(text)
    if value > 1 and not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a fraction up to 1 or a whole number, not {text!r}")
    return value


def _cpus(text: str) -> float:
    value = _share(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _minutes(text: str) -> float:
    value = as_amount(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _dims(text: str) -> tuple[int, ...]:
    return tuple(sorted({as_count(part.strip()) for part in text.split(",")}))


def build_parser(description: str, sampled: bool) -> argparse.ArgumentParser:
    """The parser of one entry.

    Args:
        sampled: whether the study samples; an exact grid has no `--trials`, `--sampler`, `--scheduler`, `--plateau`.
    """
    parser = Parser(description=description, allow_abbrev=False)
    _add_study_options(parser.add_argument_group("study"), sampled)
    _add_continuation_options(parser.add_argument_group("continuing"))
    _add_budget_options(parser.add_argument_group("budgets"), sampled)
    _add_data_options(parser.add_argument_group("data and embedding"))
    _add_record_options(parser.add_argument_group("records"))
    _add_resource_options(parser.add_argument_group("resources"))
    return parser


def _each(field: str) -> str:
    """A default of every preset, for --help; `field` may be nested, e.g. `phase2.epochs`."""

    def text(preset: Preset) -> str:
        value = attrgetter(field)(preset)
        return ",".join(map(str, value)) if isinstance(value, tuple) else "all" if value is None else str(value)

    return "default: " + "; ".join(f"{name} {text(make())}" for name, make in PRESETS.items())


def _add_study_options(group: argparse._ArgumentGroup, sampled: bool) -> None:
    summaries = "; ".join(f"{name}: {make().summary}" for name, make in PRESETS.items())
    group.add_argument("--preset", choices=PRESETS, default="demo", help=f"{summaries} (default: %(default)s)")
    if sampled:
        dims = (
            f"values of D to explore; the cells take the preset's if listed, else the largest ({_each('context_dims')})"
        )
        trials = "all trials, the four cells included; a larger N extends a finished study (default: %(default)s)"
        sampler = "who proposes the trials after the cells (default: %(default)s)"
        group.add_argument("--trials", type=as_count, default=DEFAULT_TRIALS, metavar="N", help=trials)
        group.add_argument("--sampler", choices=SAMPLERS, default=DEFAULT_SAMPLER, help=sampler)
        scheduler = "stops poor trials after some epochs of Phase 2, never the cells (default: %(default)s)"
        group.add_argument("--scheduler", choices=SCHEDULERS, default=NO_SCHEDULER, help=scheduler)
    else:
        dims = f"values of D; every mode is run at each ({_each('context_dim')})"
    group.add_argument("--context-dims", type=_dims, metavar="D,D,…", help=dims)
    epochs = f"most epochs of Phase 2; it stops at the first that is no better ({_each('phase2.epochs')})"
    group.add_argument("--epochs", type=as_count, metavar="N", help=epochs)
    replicates = (
        "seeds of each finalist, in all (seed, seed+1, …), run after the study's own trials; a larger K goes on "
        "(default: %(default)s)"
    )
    group.add_argument("--replicates", type=as_count, default=1, metavar="K", help=replicates)
    seed = "of weights, noise and sampler (default: %(default)s)"
    group.add_argument("--seed", type=as_seed, default=0, metavar="N", help=seed)
    name = "the study's name (default: the entry, the data and a short hash of the definition)"
    group.add_argument("--name", type=as_name, metavar="STUDY", help=name)


def _add_continuation_options(group: argparse._ArgumentGroup) -> None:
    resume = (
        "continue this study as it was begun; no option that defines it may be added, but --data or --embedding that "
        "lie elsewhere now (default: not)"
    )
    group.add_argument("--resume", type=as_name, metavar="STUDY", help=resume)
    accept = (
        "go on with a study whose trials are of other code, another torch or another kind of device: the cheapest is "
        "trained again, and where its figures differ only like is compared with like (default: such a study stops)"
    )
    group.add_argument("--accept-code", action="store_true", help=accept)


def _add_budget_options(group: argparse._ArgumentGroup, sampled: bool) -> None:
    hours = "start no trial after this many hours of this run, e.g. 0.5; those that run then end (default: no limit)"
    group.add_argument("--max-hours", type=_hours, metavar="H", help=hours)
    if sampled:
        plateau = (
            f"start no trial once the last N that the sampler proposed have not improved the best by {LEAST_GAIN:.1%} "
            "(default: never)"
        ).replace("%", " %%")
        group.add_argument("--plateau", type=as_count, metavar="N", help=plateau)


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    data = f"Python's reference texts, UltraChat, or JSON lines with `messages` or `text` ({_each('data')})"
    group.add_argument("--data", metavar="pydoc|ultrachat|PATH.jsonl[.gz]", help=data)
    which = f"{_each('samples')}; other data than the preset's: all"
    samples = f"the first N documents only; of pydoc and ultrachat, of those to train on ({which})"
    group.add_argument("--samples", type=as_count, metavar="N", help=samples)
    embedding = (
        "a table pretrained here as a bigram model with its own BPE, or a causal language model's "
        f"input embedding and tokenizer ({_each('embedding')})"
    )
    group.add_argument("--embedding", metavar="bigram|gpt2|HF_NAME_OR_FOLDER", help=embedding)
    vocab_size = f"bigram only: most tokens of its BPE ({_each('bigram.vocab_size')})"
    group.add_argument("--vocab-size", type=as_count, metavar="V", help=vocab_size)
    width = f"bigram only: width of its table ({_each('bigram.embedding_dim')})"
    group.add_argument("--embedding-dim", type=as_count, metavar="E", help=width)


def _add_record_options(group: argparse._ArgumentGroup) -> None:
    root = "folder of mlflow.db, optuna.db, artifacts, studies and cache (default: %(default)s)"
    group.add_argument("--mlruns", type=as_folder, default=Path(DEFAULT_ROOT), metavar="DIR", help=root)
    uri = (
        "an MLflow server or database that takes all runs "
        f"(default: where the study's went; of a new study what {VARIABLE} names, else DIR/mlflow.db)"
    )
    group.add_argument("--tracking-uri", type=as_tracking_uri, metavar="URI", help=uri)
    profile = (
        "record the first trial's beginning with torch.profiler; the traces are artifacts of its MLflow run "
        "(default: not)"
    )
    group.add_argument("--profile", action="store_true", help=profile)


def _add_resource_options(group: argparse._ArgumentGroup) -> None:
    address = "a running Ray cluster that this host is part of (default: a local Ray is started)"
    group.add_argument("--address", metavar="auto|HOST:PORT", help=address)
    gpus = "GPUs of one trial, e.g. 1 or 0.5; 0 for the CPU (default: 1 where there are GPUs, else 0)"
    group.add_argument("--gpus-per-trial", type=_share, metavar="F", help=gpus)
    cpus = "CPUs of one trial, and so its threads (default: %(default)g)"
    group.add_argument("--cpus-per-trial", type=_cpus, default=1.0, metavar="F", help=cpus)
    most = "most trials at once (default: as many as fit)"
    group.add_argument("--max-concurrent", type=as_count, metavar="N", help=most)
    silent = "a trial that reports nothing for so long is ended and failed (default: %(default)g)"
    group.add_argument("--trial-timeout", type=_minutes, default=DEFAULT_TRIAL_TIMEOUT, metavar="MINUTES", help=silent)


def check(args: argparse.Namespace, sampled: bool) -> StudySettings:
    """Turn parsed options into settings, looking at files, hub and machine but importing nothing heavy.

    Raises:
        ValueError: one sentence on what cannot work.
    """
    preset = PRESETS[args.preset]()
    check_root(args.mlruns)
    if args.address is None:
        check_machine(args.cpus_per_trial, args.gpus_per_trial)
    else:
        check_cluster(args.address)
    spec = preset.data if args.data is None else args.data
    samples = args.samples or (preset.samples if spec == preset.data else None)
    base, data, embedding = _base(args, preset, spec, samples, sampled)
    return StudySettings(
        base=base,
        context_dims=args.context_dims or (preset.context_dims if sampled else (preset.context_dim,)),
        all_dims=args.context_dims or preset.context_dims,
        context_modes=CONTEXT_MODES,
        trials=args.trials if sampled else 0,
        replicates=args.replicates,
        sampler=args.sampler if sampled else "",
        scheduler=args.scheduler if sampled else NO_SCHEDULER,
        budgets=Budgets(args.max_hours, args.plateau if sampled else None),
        data=data,
        embedding=embedding,
        name=args.name,
        records=Records.at(args.mlruns),
        shown_root=args.mlruns,
        tracking_uri=args.tracking_uri,
        address=args.address,
        cpus_per_trial=args.cpus_per_trial,
        gpus_per_trial=args.gpus_per_trial,
        max_concurrent=args.max_concurrent,
        trial_timeout=args.trial_timeout,
        profile=args.profile,
        accept_code=args.accept_code,
    )


def _base(
    args: argparse.Namespace, preset: Preset, spec: str, samples: int | None, sampled: bool
) -> tuple[RunConfig, DataSource, EmbeddingSource]:
    wanted = preset.embedding if args.embedding is None else args.embedding
    bigram = None
    if wanted == "bigram":
        changes = {"vocab_size": args.vocab_size, "embedding_dim": args.embedding_dim}
        bigram = replace(preset.bigram, **{k: v for k, v in changes.items() if v is not None})
    elif args.vocab_size or args.embedding_dim:
        raise ValueError(f"--vocab-size and --embedding-dim belong to --embedding bigram, not to {wanted!r}")
    dims = args.context_dims
    context_dim = preset.context_dim if dims is None or preset.context_dim in dims else max(dims)
    data = resolve_data(spec, samples)
    embedding = resolve_embedding(wanted)
    phase2 = preset.phase2 if args.epochs is None else replace(preset.phase2, epochs=args.epochs)
    base = RunConfig(
        data=spec,
        data_fingerprint=data.fingerprint,
        samples=samples,
        embedding=wanted,
        embedding_fingerprint=embedding.fingerprint,
        bigram=bigram,
        context_dim=context_dim,
        seed=args.seed,
        phase2=phase2,
    )
    return base, data, embedding
