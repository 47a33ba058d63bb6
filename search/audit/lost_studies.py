"""A study's folder with results that the ledger has nothing of: Optuna's own commands delete and rename studies."""

import json
from dataclasses import dataclass
from pathlib import Path

import optuna

from search.ledger.storage import open_storage
from search.ledger.trials import STUDY_ID
from trainables.records import Records


@dataclass(frozen=True)
class Lost:
    """What a new study of the same name would write over."""

    what: str  # is wrong with the folder
    remedy: str


def study_ids(ledgers: Path | None) -> dict[str, str]:
    """The names of all studies on record, with the id that each was given; without making anything."""
    if ledgers is None or not ledgers.exists():
        return {}
    known = optuna.get_all_study_summaries(open_storage(ledgers), include_best_trial=False)
    return {study.study_name: str(study.user_attrs.get(STUDY_ID, "")) for study in known}


def find_lost(records: Records, name: str, ledgers: dict[str, str]) -> Lost | None:
    """Whether the results in a study's folder are of a study that is not the one of its name on record.

    Args:
        ledgers: as of `study_ids`.
    """
    folder = records.study(name)
    if not (folder / "best.json").exists() and not any(folder.glob("trials/*.json")):
        return None
    own_id = _own_id(folder)
    if name in ledgers and own_id in ("", ledgers[name]):  # empty: of an earlier version, or none has finished
        return None
    what = f"has results of a study that is not the one of its name in {records.optuna_database.name}"
    if renamed := next((other for other, its_id in ledgers.items() if own_id and its_id == own_id), ""):
        return Lost(what, f"it is named {renamed!r} there now: name this folder so too, and --resume {renamed}")
    return Lost(what, f"bring back the {records.optuna_database.name} that has it")


def _own_id(folder: Path) -> str:
    """The id of the study whose results they are; empty where nothing says it."""
    try:
        return str(json.loads((folder / "best.json").read_text(encoding="utf-8")).get("study_id", ""))
    except (OSError, ValueError, AttributeError):
        return ""
