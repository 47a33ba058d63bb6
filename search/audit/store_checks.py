"""What studies share: cached artefacts, and the registered models' files. Nothing here writes."""

from pathlib import Path

from search.audit.findings import Finding
from search.ledger.lock import is_held
from trainables.cache import matches_manifest
from trainables.tracking.store import StoreView

CACHE, REGISTRY = "cache", "registry"


def artefact_lock(path: Path) -> Path:
    """The lock of the artefact that an entry, a scratch folder (`.NAME.xyz`) or a lock (`.NAME.lock`) belongs to."""
    name = path.name
    if name.startswith("."):
        name = name[1:].rpartition(".")[0]
    return path.with_name(f".{name}.lock")


def check_cache(cache: Path) -> list[Finding]:
    """Entries that do not match their manifest, what dead processes left behind, and what may not be read."""
    try:
        paths = sorted(cache.iterdir()) if cache.is_dir() else []
    except OSError as error:
        return [_unreadable(cache, error)]
    found = []
    for path in paths:
        if is_held(artefact_lock(path)):
            continue  # it is being made now
        try:
            what = _entry_wrong(path)
        except OSError as error:
            found.append(_unreadable(path, error))
            continue
        if what:
            remedy = "--repair removes it; what needs it makes it again"
            found.append(Finding(kind=CACHE, where=str(path), what=what, remedy=remedy, repairable=True))
    return found


def _unreadable(path: Path, error: OSError) -> Finding:
    what, remedy = f"cannot be read ({error.strerror})", "look as the user who may read it"
    return Finding(kind=CACHE, where=str(path), what=what, remedy=remedy, repairable=False)


def _entry_wrong(path: Path) -> str:
    """What is wrong with an entry, a scratch folder or a lock; empty if nothing is.

    Raises:
        OSError: it may not be read, which says nothing of what it holds.
    """
    if path.name.startswith("."):
        if path.suffix != ".lock":
            return "is scratch of a process that is gone"
        return "" if path.with_name(path.name[1:-5]).exists() else "is the lock of an entry that was never made"
    for file in path.iterdir() if path.is_dir() else []:
        file.open("rb").close()
    return "" if matches_manifest(path) else "is half made or damaged"


def check_registry(store: StoreView) -> list[Finding]:
    """Registered versions of which files are missing, where they lie on this machine."""
    found = []
    for name, version, folder in store.version_folders():
        missing = _missing(folder) if folder is not None else []
        if missing:
            what = f"{folder} lacks {', '.join(missing)}"
            remedy = "bring the files back from a backup, or register the model's folder again and delete this version"
            where = f"{name} version {version}"
            found.append(Finding(kind=REGISTRY, where=where, what=what, remedy=remedy, repairable=False))
    return found


def _missing(folder: Path) -> list[str]:
    """Files that a registered version must have, and `folder` has not."""
    from model.config import RUN
    from model.text.checkpoint import (  # torch takes seconds: only where a model is registered
        CONFIG,
        TOKENIZER,
        WEIGHTS,
    )
    from trainables.tracking.registry import FOLDER

    wanted = ("MLmodel", *(f"data/{FOLDER}/{file}" for file in (WEIGHTS, CONFIG, TOKENIZER, RUN)))
    return [file for file in wanted if not (folder / file).is_file()]
