"""`run.json`: everything about a trained model that its weights do not say."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from model.config import RUN
from model.text.checkpoint import CONFIG, DIGEST, MODEL_DIGEST
from trainables.config import RunConfig
from trainables.evaluation.evaluate import SplitScores
from trainables.host.provenance import git_state, package_version
from trainables.inputs.corpus import Corpus
from trainables.inputs.overlap import WORDS
from trainables.phases.convergence import converged

PACKAGES = ("torch", "safetensors", "tokenizers", "numpy", "two-phase-search")
PLACE = Path(__file__).resolve()


def run_record(
    config: RunConfig,
    metrics: dict[str, float],
    corpus: Corpus,
    chat: bool,
    scored: dict[str, SplitScores],
    trial: dict[str, Any] | None,
    computed: dict[str, Any],
    mlflow_run: str,
) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        chat: whether the corpus is conversations.
        scored: by split, validation and test.
        trial: study, study_id, number, hash and mlflow_run of the trial that the configuration comes from.
        computed: on what, and how.
        mlflow_run: id of the run that this training is in MLflow.
    """
    splits = {"validation": corpus.validation, "test": corpus.test}
    return {
        "config": config.flat(),
        "metrics": metrics,
        "converged": converged(config, metrics),
        **git_state(PLACE),
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "trial": trial,
        "mlflow_run": mlflow_run,
        "chat": chat,
        "overlap": {"words": WORDS, **corpus.overlap},
        "computed": computed,
        # by document, so that models that were scored on the same ones can be compared document by document
        **{
            name: {
                "digest": stream_digest(splits[name].tokens.tobytes(), corpus.tokenizer_json),
                "nats": scores.nats.tolist(),
                "targets": scores.targets.tolist(),
                "units": scores.units.tolist(),
            }
            for name, scores in scored.items()
        },
    }


def seal(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A record bound to the model in `folder`: with that model's digest, and one of itself."""
    record = {**record, MODEL_DIGEST: json.loads((folder / CONFIG).read_text())[DIGEST]}
    return record | {DIGEST: _digest(record)}


def read_record(folder: Path) -> dict[str, Any]:
    """A model's `run.json`, known to be what was written for it.

    Args:
        folder: has `run.json`; where it has the model's `config.json` as well, the two must belong together.

    Raises:
        ValueError: it is missing, was changed, or belongs to another model.
    """
    file, config = folder / RUN, folder / CONFIG
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        own = json.loads(config.read_text(encoding="utf-8"))[DIGEST] if config.exists() else record[MODEL_DIGEST]
        sealed = record.pop(DIGEST)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is no record of a training") from None
    if sealed != _digest(record):
        raise ValueError(f"{file} is not as the training wrote it: it was changed or cut off")
    if record[MODEL_DIGEST] != own:
        raise ValueError(f"{file} is the record of another model than the one beside it")
    return dict(record)


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def stream_digest(tokens: bytes, tokenizer_json: str) -> str:
    """Names the token ids of a stream and the tokenizer that made them."""
    return hashlib.sha256(tokens + tokenizer_json.encode()).hexdigest()[:16]
