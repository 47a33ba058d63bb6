"""The command line of `trainables/train.py`, checked before anything heavy is imported, started or written."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from model.cli import Parser
from model.modes import CONTEXT_MODES
from trainables.config import BigramConfig, ContextsConfig, Phase1Config, Phase2Config, RunConfig
from trainables.host.arguments import as_count, as_folder, as_name, as_seed, as_threads
from trainables.host.machine import usable_cpus
from trainables.host.preflight import check_folder, check_root, count_gpus, may_be_written
from trainables.inputs.sources import DataSource, EmbeddingSource, resolve_data, resolve_embedding
from trainables.records import DEFAULT_ROOT, Records, check_path
from trainables.tracking.check import check_destination
from trainables.tracking.destination import VARIABLE, Destination, as_tracking_uri, destination
from trainables.training.studies import Chosen, from_file, from_study, runs_went

BASELINES = ("gru", "transformer")  # trainables.baselines.networks.MODELS, before torch is imported
ALIASES = {  # as the search calls them
    "phase2_epochs": "--epochs",
    "bigram_vocab_size": "--vocab-size",
    "bigram_embedding_dim": "--embedding-dim",
}


@dataclass(frozen=True)
class TrainingSettings:
    """A checked command line."""

    config: RunConfig
    chosen: Chosen  # what the configuration was before options changed it
    data: DataSource
    embedding: EmbeddingSource
    records: Records  # which are written to
    only_read: Path | None  # the records that the configuration is of, where they are others
    destination: Destination  # of its run and, registered, of the model
    out: Path  # the model folder
    overwrite: bool
    device: str  # cpu or cuda
    threads: int
    register: str | None
    force: bool
    baselines: list[str]  # baselines that the configuration is trained beside, and then no model is kept

    @property
    def of_the_trial(self) -> bool:
        """Whether this is the trial's very configuration, so that its result can be compared."""
        if self.chosen.trial is None:
            return False
        return RunConfig.from_flat(self.chosen.flat).config_hash() == self.config.config_hash()


def flat_fields() -> dict[str, type]:
    """The fields of a flat configuration that a user may set, and their types; `| None` left out."""
    found: dict[str, type] = {}
    nested = {"bigram": BigramConfig, "phase1": Phase1Config, "contexts": ContextsConfig, "phase2": Phase2Config}
    for name, kind in get_type_hints(RunConfig).items():
        if name in nested:
            hints = get_type_hints(nested[name])
            found |= {f"{name}_{field.name}": hints[field.name] for field in fields(nested[name])}
        elif not name.endswith("fingerprint"):
            found[name] = next((t for t in get_args(kind) if t is not type(None)), kind)
    return found


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return value


def _samples(text: str) -> int | None:
    return None if text == "all" else as_count(text)


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser; of a configuration's fields only those that were typed are in what it returns."""
    parser = Parser(description=description, allow_abbrev=False)
    what = parser.add_argument_group("what to train").add_mutually_exclusive_group(required=True)
    what.add_argument("--from-study", type=as_name, metavar="STUDY", help="a study in DIR that has finished trials")
    what.add_argument("--config", type=as_folder, metavar="FILE", help="a best.json, or a JSON of a flat configuration")
    rank = "of the study's configurations: 1 is its leader, the others as in the leaderboard (default: 1)"
    parser.add_argument("--rank", type=as_count, metavar="N", help=rank)
    group = parser.add_argument_group("where it goes")
    root = "as given to the study; the run's record and the model go there as well (default: %(default)s)"
    group.add_argument("--mlruns", type=as_folder, default=Path(DEFAULT_ROOT), metavar="DIR", help=root)
    uri = (
        "an MLflow server or database that takes the run "
        f"(default: where the study's went; without a study what {VARIABLE} names, else DIR/mlflow.db)"
    )
    group.add_argument("--tracking-uri", type=as_tracking_uri, metavar="URI", help=uri)
    _add_model_folder(group)
    group = parser.add_argument_group("beside what")
    baseline = (
        "compare it with a model of its size instead of keeping it; may be given again for the other (default: none)"
    )
    group.add_argument("--baseline", action="append", choices=BASELINES, dest="baselines", help=baseline)
    group = parser.add_argument_group("on what")
    device = "(default: the trial's, where this machine has it; else a GPU if there is one)"
    group.add_argument("--device", choices=("cpu", "cuda"), help=device)
    threads = "CPU threads; the last digits depend on them (default: the trial's, else all CPUs)"
    group.add_argument("--threads", type=as_threads, metavar="N", help=threads)
    _add_fields(parser.add_argument_group("the configuration", "what is not given is as in the study or file"))
    return parser


def _add_model_folder(group: argparse._ArgumentGroup) -> None:
    out = "the model's folder (default: DIR/models/, named after the configuration)"
    group.add_argument("--out", type=as_folder, metavar="FOLDER", help=out)
    group.add_argument("--overwrite", action="store_true", help="replace another model in that folder (default: not)")
    register = "register the model under this name; it becomes the champion where it is the best (default: not)"
    group.add_argument("--register", type=as_name, metavar="NAME", help=register)
    group.add_argument("--force", action="store_true", help="make it the champion whatever it is (default: not)")


def _add_fields(group: argparse._ArgumentGroup) -> None:
    forms: dict[type, Callable[[str], Any]] = {int: _integer, float: _number, str: str}
    notes = {
        "data": "pydoc, ultrachat, or a .jsonl[.gz] file; other data is taken whole unless --samples says otherwise",
        "samples": "the first N documents only (of pydoc and ultrachat: of those to train on), or all",
        "embedding": "bigram, or a causal LM's hub name or folder",
        "context_mode": ", ".join(CONTEXT_MODES),
    }
    for name, kind in flat_fields().items():
        names = [f"--{name.replace('_', '-')}", *([ALIASES[name]] if name in ALIASES else [])]
        form = _samples if name == "samples" else as_seed if name.endswith("seed") else forms[kind]
        shown = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(*names, dest=name, type=form, metavar=shown, default=argparse.SUPPRESS, help=notes.get(name))


def check(args: argparse.Namespace) -> TrainingSettings:
    """Turn parsed options into settings, looking at files, hub and machine but importing nothing heavy.

    Raises:
        ValueError: one sentence on what cannot work.
    """
    if args.config is not None and args.rank is not None:
        raise ValueError("--rank belongs to --from-study")
    if args.force and args.register is None:
        raise ValueError("--force belongs to --register")
    for name in ("out", "overwrite", "register"):
        if args.baselines and getattr(args, name):
            raise ValueError(f"--{name} and --baseline do not go together: models that are compared are not kept")
    theirs, records = Records.at(args.mlruns), _own_records(args)
    if args.out is not None:
        check_path(args.out.absolute())
    study = runs_went(theirs, args.from_study) if args.from_study and records == theirs else None
    where = destination(args.tracking_uri, study, records)
    check_destination(where)
    if args.config is not None:
        chosen = from_file(args.config)
    else:
        chosen = from_study(theirs, args.mlruns, args.from_study, args.rank or 1)
    given = {name: value for name, value in vars(args).items() if name in flat_fields()}
    _check_types(chosen.flat)
    config, data, embedding = _config(chosen.flat, given)
    device, threads = _where(args, chosen.runtime)
    return TrainingSettings(
        config=config,
        chosen=chosen,
        data=data,
        embedding=embedding,
        records=records,
        only_read=None if records == theirs else args.mlruns,
        destination=where,
        out=args.out or args.mlruns / "models" / _folder_name(config),
        overwrite=args.overwrite,
        device=device,
        threads=threads,
        register=args.register,
        force=args.force,
        baselines=list(dict.fromkeys(args.baselines or ())),
    )


def _own_records(args: argparse.Namespace) -> Records:
    """The records that are written to: those of the command line or, where these may only be read, beside the model.

    A comparison keeps no model; its records are then those of the working folder.

    Raises:
        ValueError: nothing can be written.
    """
    given = Records.at(args.mlruns)
    of_others = args.from_study is not None and given.studies.is_dir() and not may_be_written(given)
    if not of_others or (args.out is None and not args.baselines):
        try:
            check_root(args.mlruns)
        except ValueError as error:
            raise ValueError(f"{error}{'; with --out FOLDER it need not be' if of_others else ''}") from None
        return given
    if args.out is None:
        own = Path(DEFAULT_ROOT)
    else:
        check_folder(args.out, f"--out {args.out}")
        own = args.out.absolute().parent / DEFAULT_ROOT
    try:
        check_root(own)
    except ValueError as error:
        raise ValueError(f"{error}{'; start it in a folder of your own' if args.out is None else ''}") from None
    return Records.at(own)


def _check_types(flat: dict[str, Any]) -> None:
    """A configuration from a file may hold anything."""
    for name, kind in flat_fields().items():
        value = flat.get(name)
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        absent = name not in flat or (value is None and name == "samples")
        if not (absent or fits):
            raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")


def _config(flat: dict[str, Any], given: dict[str, Any]) -> tuple[RunConfig, DataSource, EmbeddingSource]:
    """The configuration with what was given in place of its own; its data and embedding must be what they were,
    where it says what they were: one written by hand does not."""
    for name in ("data", "embedding"):
        if not isinstance(flat.get(name), str):
            raise ValueError(f"the configuration has no {name}")
    flat = dict(flat)
    wanted = given.get("embedding", flat["embedding"])
    if wanted != "bigram":
        strange = sorted(name for name in given if name.startswith("bigram_"))
        if strange:
            raise ValueError(f"--{strange[0].replace('_', '-')} belongs to --embedding bigram, not to {wanted!r}")
        flat = {name: value for name, value in flat.items() if not name.startswith("bigram_")}
    else:
        flat = {f"bigram_{name}": value for name, value in vars(BigramConfig()).items()} | flat
    samples = given.get("samples", flat.get("samples"))
    spec = given.get("data", flat["data"])
    if "data" not in given and spec not in ("pydoc", "ultrachat") and not Path(spec).expanduser().exists():
        raise ValueError(f"data file {spec!r} does not exist: give --data with where it lies now")
    data = resolve_data(spec, samples if "data" not in given or "samples" in given else None)
    if data.fingerprint != flat.get("data_fingerprint", data.fingerprint):
        if "data" not in given:
            raise ValueError(f"data {spec!r} is not what it was: give --data to train on what it is now, or on a copy")
        samples = given.get("samples")
    embedding = resolve_embedding(wanted)
    if embedding.fingerprint != flat.get("embedding_fingerprint", embedding.fingerprint) and "embedding" not in given:
        raise ValueError(f"embedding {wanted!r} is not what it was: give --embedding to train with what it is now")
    prints = {"data_fingerprint": data.fingerprint, "embedding_fingerprint": embedding.fingerprint}
    return RunConfig.from_flat({**flat, **given, **prints, "samples": samples}), data, embedding


def _where(args: argparse.Namespace, runtime: dict[str, Any]) -> tuple[str, int]:
    """Device and threads: as given, else as the trial had them."""
    gpus = count_gpus()
    if args.device == "cuda" and not gpus:
        raise ValueError("--device cuda: this machine has no usable GPU")
    on_gpu = gpus > 0 and runtime.get("gpus", 1) > 0
    threads = args.threads or runtime.get("threads") or usable_cpus()
    return args.device or ("cuda" if on_gpu else "cpu"), threads


def _folder_name(config: RunConfig) -> str:
    shape = f"C{config.context_layers}T{config.token_layers}-D{config.context_dim}-{config.context_mode}"
    return f"{shape}-{config.config_hash()[:8]}"


def parse(description: str, argv: Sequence[str]) -> TrainingSettings:
    """A command line as settings.

    Raises:
        ValueError: as in `check`.
    """
    return check(build_parser(description).parse_args(argv))
