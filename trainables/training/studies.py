"""A study's results as files: which configuration is at a rank, and on what it was trained. No Ray, no Optuna."""

import csv
import json
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.snapshot import snapshot
from trainables.cache import content_key
from trainables.config import METHOD_VERSION, RunConfig
from trainables.host.arguments import MOST_THREADS
from trainables.metrics import VAL_PPL
from trainables.records import RECORD, Records

OPTIONS = "options.json"  # in a study's folder: the command line that it was begun with


@dataclass(frozen=True)
class Chosen:
    """A configuration to train."""

    flat: dict[str, Any]  # a flat `RunConfig`
    trial: dict[str, Any] | None = None  # study, study_id, number and hash of the trial that it comes from
    val_ppl: float | None = None  # that trial's
    runtime: dict[str, Any] = field(default_factory=dict)  # its device_name, threads, gpus, compute, where on record
    note: str = ""  # a sentence on why it comes from no trial, though it names one


def runs_went(records: Records, name: str) -> str | None:
    """Where a study's runs went when it last ran, in remembered form.

    Empty: to the records folder's own database. None: a study that has not run, or files that say nothing.
    """
    try:
        options = json.loads((records.study(name) / OPTIONS).read_text(encoding="utf-8"))["options"]
        return str(options["tracking_uri"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def from_study(records: Records, shown_root: Path, name: str, rank: int) -> Chosen:
    """The configuration at a rank: 1 is the study's leader, the others follow in the leaderboard's order.

    Raises:
        ValueError: no such study, no finished trial, fewer ranks, or records of an earlier version.
    """
    folder = records.study(name)
    if not folder.is_dir():
        known = sorted(found.name for found in records.study("").glob("*/"))
        listed = f"known are {', '.join(known)}" if known else "there is none yet"
        raise ValueError(f"--from-study {name}: no such study in {shown_root}/ ({listed})")
    best = folder / "best.json"
    if not best.exists():
        raise ValueError(
            f"study {name!r} has no best.json: it is written when a study ends and, "
            f"as soon as a trial has finished, by `python search/report.py {name}`"
        )
    content = _read(best)
    leader, listed_trials = _number(content, best), _listed(folder / "leaderboard.csv")
    order = [leader, *(number for number in listed_trials if number != leader)]
    if rank > len(order):
        raise ValueError(f"--rank {rank}: study {name!r} has {len(order)} finished configurations")
    number = order[rank - 1]
    for path in folder.glob("trials/*.json"):
        record = _read(path)
        if record.get("trial") == number and record.get("config"):
            chosen = _of_trial({**record, "study": name, "study_id": content.get("study_id", "")}, path)
            if chosen.note or content_key(record) != _kept_digest(records, name, number, content_key(record)):
                raise ValueError(
                    f"{path} is not as trial {number} wrote it: search/doctor.py says more, its --repair brings it back"
                )
            return chosen
    raise ValueError(f"study {name!r} has no configuration on record for trial {number}: give --config best.json")


def _kept_digest(records: Records, study: str, number: int, unknown: str) -> str:
    """The digest that the ledger keeps of a trial's file; `unknown` where there is none, as of earlier versions.

    Raises:
        ValueError: the ledger cannot be read.
    """
    if not records.optuna_database.exists():
        return unknown  # the study's folder alone was brought here
    query = (
        "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) JOIN studies USING (study_id) "
        "WHERE study_name = ? AND number = ? AND key = ?"
    )
    with tempfile.TemporaryDirectory() as scratch:
        copy = snapshot(records.optuna_database, Path(scratch))
        try:
            with closing(sqlite3.connect(copy)) as ledger:
                row = ledger.execute(query, (study, number, RECORD)).fetchone()
        except sqlite3.Error as error:
            raise ValueError(f"{records.optuna_database} cannot be read: {error}") from error
    return str(json.loads(row[0])) if row else unknown


def from_file(path: Path) -> Chosen:
    """A study's `best.json`, or any JSON object of a flat `RunConfig`.

    Raises:
        ValueError: it cannot be read, or is neither.
    """
    content = _read(path)
    if "config" not in content:
        return Chosen(content)
    if not isinstance(content["config"], dict):
        raise ValueError(f"{path}: its `config` is no JSON object")
    if not {"study", "trial", "config_hash", "metrics"} <= content.keys():
        return Chosen(content["config"])
    return _of_trial(content, path)


def _of_trial(content: dict[str, Any], path: Path) -> Chosen:
    """What a trial's record or a `best.json` says of a trial."""
    runtime = content.setdefault("runtime", {})
    for name in ("config", "metrics", "runtime"):
        if not isinstance(content.get(name), dict):
            raise ValueError(f"{path}: its `{name}` is no JSON object")
    ppl, threads, gpus = content["metrics"].get(VAL_PPL), runtime.get("threads", 1), runtime.get("gpus", 0)
    if ppl is not None and type(ppl) is not float:
        raise ValueError(f"{path}: its {VAL_PPL} is {ppl!r}")
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS or type(gpus) not in (int, float):
        raise ValueError(f"{path}: its `runtime` has {threads!r} threads and {gpus!r} GPUs")
    if not _is_its_own(content):
        note = f"this file's configuration is not that of trial {_number(content, path)}: it is compared with none"
        return Chosen(content["config"], runtime=runtime, note=note)
    trial = {"study": content["study"], "study_id": content.get("study_id", ""), "number": _number(content, path)}
    return Chosen(content["config"], {**trial, "hash": content.get("config_hash")}, ppl, runtime)


def _is_its_own(content: dict[str, Any]) -> bool:
    """Whether a configuration is the one of its hash, by this or an earlier version of the method."""
    try:
        config = RunConfig.from_flat(content["config"])
        return content.get("config_hash") in {config.config_hash(m) for m in range(1, METHOD_VERSION + 1)}
    except (TypeError, ValueError):
        return False


def _number(content: dict[str, Any], path: Path) -> int:
    number = content.get("trial")
    if type(number) is not int:
        raise ValueError(f"{path} names no trial")
    return number


def _listed(leaderboard: Path) -> list[int]:
    """The trials of a leaderboard, in its order; the bigram's row is none."""
    try:
        with leaderboard.open(newline="") as file:
            return [int(row["trial"]) for row in csv.DictReader(file) if row["trial"]]
    except OSError as error:
        raise ValueError(f"{leaderboard} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{leaderboard} is no leaderboard: the same study's command writes it anew") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
