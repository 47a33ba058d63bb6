"""What studies share: cached artefacts, and the registered models' files. Nothing here writes."""

from collections.abc import Mapping
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


def _entry_wrong(path: Path) -> str | None:
    """What is wrong with an entry, a scratch folder or a lock; None if nothing is.

    Raises:
        OSError: it may not be read, which says nothing of what it holds.
    """
    if path.name.startswith("."):
        if path.suffix != ".lock":
            return "is scratch of a process that is gone"
        return None if path.with_name(path.name[1:-5]).exists() else "is the lock of an entry that was never made"
    for file in path.iterdir() if path.is_dir() else []:
        file.open("rb").close()
    return None if matches_manifest(path) else "is half made or damaged"


def check_registry(store: StoreView) -> list[Finding]:
    """Registered versions whose files are missing, damaged or another model's, where they lie on this machine."""
    from model.text.checkpoint import MODEL_DIGEST  # torch takes seconds: only where there is a store

    versions = list(store.version_folders())
    registered = {tags[MODEL_DIGEST]: f"{name} version {v}" for name, v, tags, _ in versions if MODEL_DIGEST in tags}
    found = []
    for name, version, tags, folder in versions:
        what = _version_wrong(folder, tags.get(MODEL_DIGEST), registered) if folder is not None else ""
        if what:
            remedy = "bring the files back from a backup, or register the model's folder again and delete this version"
            where = f"{name} version {version}"
            found.append(Finding(kind=REGISTRY, where=where, what=what, remedy=remedy, repairable=False))
    return found


def _version_wrong(folder: Path, digest: str | None, registered: Mapping[str, str]) -> str | None:
    """What is wrong with a version's files; None if nothing is.

    Args:
        digest: of the model that was registered, where the version says it.
        registered: versions by theirs.
    """
    from model.text.checkpoint import MODEL_DIGEST, read_config
    from trainables.tracking.registry import FOLDER
    from trainables.tracking.run_record import read_record

    if missing := _missing(folder):
        return f"{folder} lacks {', '.join(missing)}"
    own = folder / "data" / FOLDER
    try:
        read_config(own)
        found = read_record(own)[MODEL_DIGEST]
    except (OSError, ValueError) as error:
        return f"{own} is damaged: {error}"
    if digest in (None, found):
        return None
    other = f"those of {registered[found]}: they were exchanged" if found in registered else "of another model"
    return f"{own} has other files than those that were registered, {other}"


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
