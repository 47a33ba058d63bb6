"""`--resume STUDY`: the options a study was begun with, kept in its folder and given again. Imports nothing heavy."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.modes import CONTEXT_MODES
from search.options import StudySettings
from search.spaces import Study
from trainables.records import Records, write_whole
from trainables.tracking.destination import Destination
from trainables.training.studies import OPTIONS

# By the names that argparse gives them. All others define the study.
# not kept: each run says its own
OF_ONE_RUN = {"resume", "mlruns", "address", "profile", "accept_code", "max_hours", "plateau"}
MAY_CHANGE = {
    "trials", "replicates", "tracking_uri", "gpus_per_trial", "cpus_per_trial", "max_concurrent", "trial_timeout"
}  # fmt: skip  # kept until given again
MAY_MOVE = {"data": "data file", "embedding": "embedding folder"}  # and be given where they lie now


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; with `--resume`, what it leaves out is as the study was begun.

    Raises:
        ValueError: the study is unknown, another entry's, or an option would change what it is.
    """
    args = parser.parse_args(argv)
    if args.resume is None:
        return args
    # argparse sets no default where there is a value already, so what is still UNSET was not typed
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(args), unset))
    given = {key: value for key, value in vars(parser.parse_args(argv, blank)).items() if value is not unset}
    defining = sorted(given.keys() - OF_ONE_RUN - MAY_CHANGE - MAY_MOVE.keys())
    if defining:
        named = ", ".join(f"--{key.replace('_', '-')}" for key in defining)
        raise ValueError(f"--resume takes the study as it was begun: leave out {named}")
    stored = _read(Records.at(args.mlruns), args.resume, args.mlruns)
    _check_entry(parser, stored["entry"], args.resume)
    unknown = sorted(stored["options"].keys() - vars(args).keys())
    if unknown:
        raise ValueError(f"study {args.resume!r} was begun by another version of this program: it has {unknown}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in stored["options"].items()}
    options["tracking_uri"] = None  # `destination` asks for it, whether or not a study is continued by its name
    for key, kind in MAY_MOVE.items():
        before = str(options.get(key) or "")
        if key not in given and os.path.isabs(before) and not os.path.exists(before):
            raise ValueError(
                f"--resume {args.resume}: {kind} {before!r} does not exist: give --{key} with where it lies now"
            )
    return argparse.Namespace(**{**vars(args), **options, **given, "name": args.resume})


def _read(records: Records, name: str, shown_root: Path) -> dict[str, Any]:
    file = records.study(name) / OPTIONS
    if not file.exists():
        known = sorted(found.parent.name for found in file.parent.parent.glob(f"*/{OPTIONS}"))
        listed = f"known are {', '.join(known)}" if known else "there is none yet"
        raise ValueError(f"--resume {name}: no such study in {shown_root}/ ({listed})")
    stored: dict[str, Any] = json.loads(file.read_text())
    return stored


def _recorded(records: Records, name: str) -> dict[str, Any]:
    """What is on record of a study; empty before it was begun, or where that cannot be read."""
    try:
        found: dict[str, Any] = json.loads(records.study_record(name).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _check_entry(parser: argparse.ArgumentParser, entry: str, name: str) -> None:
    if Path(entry).name != parser.prog:
        inside = os.path.relpath(entry)
        shown = entry if inside.startswith(os.pardir) else inside
        raise ValueError(f"study {name!r} is continued by `python {shown} --resume {name}`")


def check_content(args: argparse.Namespace, settings: StudySettings) -> None:
    """Raise ValueError if data or embedding are not what the study that is continued was begun with."""
    if args.resume is None:
        return
    begun = _recorded(settings.records, args.resume)
    for key in MAY_MOVE:
        name, found = f"{key}_fingerprint", getattr(settings, key)
        if found.fingerprint != begun.get(name, found.fingerprint):
            raise ValueError(
                f"--resume {args.resume}: {found.spec!r} has not the content that the study was begun with: a study "
                f"goes on with the same {key} only; for this one begin a new study"
            )


def study_of(make_study: Callable[[StudySettings], Study], settings: StudySettings) -> Study:
    """The study of a checked command line; one that was begun before a context mode was added has those of then.

    They are appended to `CONTEXT_MODES` only, so those of then are its first ones.
    """
    for count in range(len(CONTEXT_MODES), 0, -1):
        modes = CONTEXT_MODES[:count]
        study = make_study(replace(settings, context_modes=modes))
        begun = _recorded(settings.records, settings.name or study.default_name(settings.data.label))
        if begun.get("space", {}).get("context_modes") == list(study.space.context_modes):
            return study
    return make_study(settings)


def keep(args: argparse.Namespace, settings: StudySettings, where: Destination, entry: str, folder: Path) -> None:
    """Keep the options of a study in its folder, with paths that hold from every working folder and no password."""
    options = {key: value for key, value in vars(args).items() if key not in OF_ONE_RUN | {"name"}}
    options["tracking_uri"] = where.remembered
    if settings.data.kind == "jsonl":
        options["data"] = settings.data.location
    if settings.embedding.kind == "causal_lm":
        options["embedding"] = settings.embedding.location
    write_whole(
        folder / OPTIONS, json.dumps({"entry": str(Path(entry).resolve()), "options": options}, indent=1) + "\n"
    )
