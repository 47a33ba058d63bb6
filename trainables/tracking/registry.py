"""MLflow's model registry: a model folder becomes a version of a name, the best one its `champion`.

A version is the folder itself and the code of `model`, no pickle: what loads it needs MLflow, torch, safetensors and
tokenizers, and nothing of this project. Which one is better is said by the losses by document that lie in `run.json`.
"""

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import model
from model.config import RUN
from model.text import served
from model.text.checkpoint import CONFIG, DIGEST, MODEL_DIGEST, TOKENIZER, WEIGHTS
from model.text.text_model import load_text_model
from trainables.evaluation.intervals import CHAMPION_LEVEL, FEW, FEW_UNITS, UNITS_UNKNOWN, merged, ratio_interval
from trainables.records import Records, sqlite_path
from trainables.tracking.places import HOLDS, in_use
from trainables.tracking.run_record import read_record
from trainables.tracking.store import find_experiment, open_experiment, opened

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # of one file of a few kB

CHAMPION = "champion"
EXPERIMENT = "registered-models"  # the runs that the versions were logged by
TAGS = {f"{HOLDS}{EXPERIMENT}": EXPERIMENT}
FOLDER = "model"  # under a version's data/
VALIDATION_TAG, PPL_TAG, REASON_TAG = "validation", "val_ppl", "reason"
TRAINING_TAG = "training_run"  # id of the run in which it was trained, in the experiment `trained models`
INCOMPARABLE = (
    "{}, the champion, was scored on other validation data or by another tokenizer: nothing is registered, "
    "but with force (--force) this model would be the champion"
)

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),
    outputs=Schema(
        [
            ColSpec(Array("string"), "next_tokens"),
            ColSpec(Array("double"), "next_logprobs"),
            ColSpec(Array("double"), "logprobs"),
        ]
    ),
    params=ParamSchema([ParamSpec("k", "long", served.NEXT_TOKENS)]),
)


@dataclass(frozen=True)
class Registration:
    """What became of a model."""

    version: int
    champion: bool  # whether `NAME@champion` is this version now
    reason: str  # why, in a few words


@dataclass(frozen=True, eq=False)
class _Validation:
    """How a model did on its validation documents."""

    digest: str  # of the tokens and the tokenizer
    nats: np.ndarray  # (documents,) summed over each document's targets
    targets: np.ndarray  # (documents,) how many
    units: np.ndarray  # (documents,) as `corpus.Split.units`
    units_known: bool = True  # False: the record does not name equal documents, and each counts as one of its own

    @classmethod
    def read(cls, folder: Path) -> "_Validation":
        """What a model's `run.json` says.

        Raises:
            ValueError: it has none.
        """
        try:
            found = read_record(folder)["validation"]
            nats, targets = (np.asarray(found[name], dtype=np.float64) for name in ("nats", "targets"))
            digest = found["digest"]
            units = np.asarray(found.get("units", range(len(targets))))
            of_form = isinstance(digest, str) and nats.ndim == 1 and nats.shape == targets.shape == units.shape
            if not (of_form and np.isfinite(nats).all() and targets.sum() > 0):
                raise ValueError("digest, nats, targets and units are of the wrong form")
            return cls(digest, nats, targets, units, "units" in found)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{folder / RUN} does not say how the model did in validation: {reason}") from error


@contextmanager
def _store(tracking_uri: str) -> Iterator[tuple[MlflowClient, str]]:
    """MLflow's own functions at work on this store, and as before afterwards; its client, and the experiment's id.

    No other process registers in the same database meanwhile; a server is not locked.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with contextlib.ExitStack() as stack:
        try:
            if (database := sqlite_path(tracking_uri)) is not None:
                records = Records.at(database.parent)
                own = None if database.resolve() == records.mlflow_database else tracking_uri
                if own is None:
                    stack.enter_context(in_use(records))
                client, experiment, _ = open_experiment(records, EXPERIMENT, own, EXPERIMENT)
                stack.enter_context(FileLock(records.root / ".registry.lock"))
            else:
                with opened(tracking_uri):
                    client = MlflowClient(tracking_uri)
                    found = find_experiment(client, EXPERIMENT, EXPERIMENT)
                experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, tags=TAGS)
            mlflow.set_tracking_uri(tracking_uri)
            yield client, experiment
        except MlflowException as error:
            raise ValueError(f"MLflow refuses: {str(error).strip().partition(chr(10))[0]}") from error
        finally:
            mlflow.set_tracking_uri(before)


def register_model(folder: Path, name: str, tracking_uri: str, force: bool = False) -> Registration:
    """Make `folder` the next version of `name`, and its champion if it is better than the one before.

    A model that is a version already, file by file, stays that one.

    Better means that the 98 % interval of the difference in validation loss, taken document by document, lies
    below zero: with a 95 % one, few documents of skewed differences call an equal model better in 4 to 5 of 100.

    Args:
        folder: a model folder with `run.json`.
        tracking_uri: MLflow's store, `sqlite:///PATH` or a server's.
        force: the champion, better or not, also where the two cannot be compared.

    Raises:
        ValueError: the folder is no usable model or its record was changed, the champion was scored on other validation
            data or by another tokenizer, or MLflow refuses; nothing was registered.
    """
    load_text_model(folder, "cpu")
    ours = _Validation.read(folder)
    digest = json.loads((folder / CONFIG).read_text(encoding="utf-8"))[DIGEST]
    with _store(tracking_uri) as (client, experiment):
        champion = _champion(client, name)
        known = client.search_model_versions(f"name = '{name}' and tags.{MODEL_DIGEST} = '{digest}'")
        before = min((int(found.version) for found in known), default=None)
        if champion is not None and before == champion:
            return Registration(champion, True, f"already version {champion}")
        if champion is None:
            better, reason = True, "no champion before it"
        else:
            try:
                theirs = _validation_of(client, name, champion)
            except ValueError:
                if not force:
                    raise
                better, reason = True, f"forced: the champion before it, version {champion}, cannot be read"
            else:
                better, reason = _compare(f"{name} version {champion}", theirs, ours, force)
        ppl = np.exp(ours.nats.sum() / ours.targets.sum())
        if before is None:
            _make_name(client, name)
            tags = {VALIDATION_TAG: ours.digest, PPL_TAG: f"{ppl:.4f}", REASON_TAG: reason, MODEL_DIGEST: digest}
            found = _log(client, experiment, folder, name, tags)
        else:
            found, reason = before, f"already version {before}; {reason}"
        if better:
            client.set_model_version_tag(name, str(found), REASON_TAG, reason)
            client.set_registered_model_alias(name, CHAMPION, str(found))
    return Registration(found, better, reason)


def check_comparable(name: str, tracking_uri: str, digest: str) -> None:
    """Raise ValueError if `register_model` would refuse a model that is yet to be trained.

    Args:
        digest: of its validation tokens and its tokenizer.
    """
    with _store(tracking_uri) as (client, _):
        champion = _champion(client, name)
        if champion is None:
            return
        if _validation_of(client, name, champion).digest != digest:
            raise ValueError(INCOMPARABLE.format(f"{name} version {champion}"))


def _champion(client: MlflowClient, name: str) -> int | None:
    """The version that is the champion of `name`."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None
    return int(aliases[CHAMPION]) if CHAMPION in aliases else None


def _make_name(client: MlflowClient, name: str) -> None:
    """`name` among the registered models, if it is not there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _validation_of(client: MlflowClient, name: str, champion: int) -> _Validation:
    """The champion's, fetched without its weights.

    Raises:
        ValueError: it cannot be read.
    """
    uri = f"models:/{name}/{champion}/data/{FOLDER}/{RUN}"
    registered = client.get_model_version(name, str(champion)).tags.get(MODEL_DIGEST)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            if registered not in (None, read_record(fetched.parent)[MODEL_DIGEST]):
                raise ValueError("its files are those of another model")
            return _Validation.read(fetched.parent)
        except (MlflowException, OSError, ValueError) as error:
            raise ValueError(f"the champion, version {champion}, cannot be read: {error}") from error


def _compare(other: str, theirs: _Validation, ours: _Validation, force: bool) -> tuple[bool, str]:
    """Whether ours is to be the champion, and why.

    Raises:
        ValueError: they cannot be compared.
    """
    comparable = ours.digest == theirs.digest and np.array_equal(ours.targets, theirs.targets)
    if not comparable and not force:
        raise ValueError(INCOMPARABLE.format(other))
    if not comparable:
        return True, f"forced: cannot be compared with {other}"
    difference, targets = merged(ours.units, np.stack([ours.nats - theirs.nats, ours.targets]))
    known = targets > 0
    number, loss = int(known.sum()), ratio_interval(difference[known], targets[known], CHAMPION_LEVEL)
    value, low, high = (100 * np.expm1(x) for x in (loss.value, loss.low, loss.high))
    if number < 2:
        shown = f"PPL {value:+.1f} % against {other}; 1 independent document gives no interval"
    else:
        rough = ("" if ours.units_known else f" ({UNITS_UNKNOWN})") + (f", {FEW}" if number < FEW_UNITS else "")
        interval = f"[{low:+.1f}, {high:+.1f}; {CHAMPION_LEVEL:.0%}]"
        shown = f"PPL {value:+.1f} % {interval} against {other}, {number} documents{rough}"
    better = loss.high < 0  # never with NaN
    if better:
        return True, f"better: {shown}"
    return force, f"{'forced' if force else 'not better'}: {shown}"


def _log(client: MlflowClient, experiment: str, folder: Path, name: str, tags: dict[str, str]) -> int:
    """Log the folder as a model of MLflow's and make it a version of `name`; the version."""
    packages = ("torch", "safetensors", "tokenizers")
    with contextlib.ExitStack() as stack:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory())) / FOLDER
        own.mkdir()
        for file in (WEIGHTS, CONFIG, TOKENIZER, RUN):  # what a training left beside them is not the model's
            shutil.copyfile(folder / file, own / file)
        trained_in = read_record(folder).get("mlflow_run")
        link = {TRAINING_TAG: str(trained_in)} if trained_in else {}
        run = stack.enter_context(mlflow.start_run(experiment_id=experiment, run_name=name, tags=link))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", ".*An input example was not provided")
        info = mlflow.pyfunc.log_model(
            name="model",
            loader_module=served.__name__,
            data_path=str(own),
            code_paths=[str(Path(model.__file__).parent)],
            signature=SIGNATURE,
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in packages],
        )
    made = client.create_model_version(name, info.model_uri, run.info.run_id, tags | link, model_id=info.model_id)
    return int(made.version)
