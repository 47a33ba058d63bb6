"""What studies share: cached artefacts, and the registered models' files. Nothing here writes."""

from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from search.findings import Finding
from search.lock import is_held
from trainables.artifacts import matches_manifest

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


def check_registry(client: MlflowClient) -> list[Finding]:
    """Registered versions of which files are missing, where they lie on this machine."""
    found = []
    token = None
    while token != "":
        page = client.search_model_versions(page_token=token)
        for version in page:
            what = _version_wrong(client, version.name, version.version)
            if what:
                where = f"{version.name} version {version.version}"
                remedy = "bring the files back from a backup, or register the model's folder again and delete this one"
                found.append(Finding(kind=REGISTRY, where=where, what=what, remedy=remedy, repairable=False))
        token = page.token or ""
    return found


def _version_wrong(client: MlflowClient, name: str, version: str) -> str:
    from model.checkpoint import CONFIG, TOKENIZER, WEIGHTS  # torch takes seconds: only where a model is registered
    from model.config import RUN
    from trainables.registry import FOLDER

    try:
        place = client.get_model_version_download_uri(name, version)
        if place.startswith("models:/"):
            place = client.get_logged_model(place.removeprefix("models:/")).artifact_location
    except MlflowException as error:
        return f"MLflow does not know where its files are: {str(error).splitlines()[0]}"
    place = place.removeprefix("file://")
    if "://" in place:
        return ""  # on a server
    folder = Path(place)
    wanted = ("MLmodel", *(f"data/{FOLDER}/{file}" for file in (WEIGHTS, CONFIG, TOKENIZER, RUN)))
    missing = [file for file in wanted if not (folder / file).is_file()]
    return f"{folder} lacks {', '.join(missing)}" if missing else ""
