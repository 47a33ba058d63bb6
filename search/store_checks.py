"""What studies share: cached artefacts, and the registered models' files. Nothing here writes."""

from pathlib import Path

from search.findings import Finding
from search.lock import is_held
from trainables.artifacts import matches_manifest
from trainables.mlflow_store import StoreView

CACHE, REGISTRY = "cache", "registry"


def artefact_lock(path: Path) -> Path:
    """The lock of the artefact that an entry, a scratch folder (`.NAME.xyz`) or a lock (`.NAME.lock`) belongs to."""
    name = path.name
    if name.startswith("."):
        name = name[1:].rpartition(".")[0]
    return path.with_name(f".{name}.lock")


def check_cache(cache: Path) -> list[Finding]:
    """Entries that do not match their manifest, and what dead processes left behind."""
    found = []
    for path in sorted(cache.iterdir()) if cache.is_dir() else []:
        if is_held(artefact_lock(path)):
            continue  # it is being made now
        if not path.name.startswith("."):
            what = "" if matches_manifest(path) else "is half made or damaged"
        elif path.suffix == ".lock":
            what = "" if path.with_name(path.name[1:-5]).exists() else "is the lock of an entry that was never made"
        else:
            what = "is scratch of a process that is gone"
        if what:
            remedy = "--repair removes it; what needs it makes it again"
            found.append(Finding(kind=CACHE, where=str(path), what=what, remedy=remedy, repairable=True))
    return found


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
    from model.checkpoint import CONFIG, TOKENIZER, WEIGHTS  # torch takes seconds: only where a model is registered
    from model.config import RUN
    from trainables.registry import FOLDER

    wanted = ("MLmodel", *(f"data/{FOLDER}/{file}" for file in (WEIGHTS, CONFIG, TOKENIZER, RUN)))
    return [file for file in wanted if not (folder / file).is_file()]
