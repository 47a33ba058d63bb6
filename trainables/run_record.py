"""`run.json`: everything about a trained model that its weights do not say."""

import hashlib
import platform
from pathlib import Path
from typing import Any

from trainables.corpus import Corpus
from trainables.judge import Judgement
from trainables.provenance import git_state, package_version

PACKAGES = ("torch", "safetensors", "tokenizers", "numpy", "two-phase-search")
PLACE = Path(__file__).resolve()


def run_record(
    config: dict[str, Any],
    metrics: dict[str, float],
    corpus: Corpus,
    chat: bool,
    judged: dict[str, Judgement],
    trial: dict[str, Any] | None,
    computed: dict[str, Any],
    mlflow_run: str,
) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        config: a flat `RunConfig`.
        chat: whether the corpus is conversations.
        judged: by split, validation and test.
        trial: study, study_id, number, hash and mlflow_run of the trial that the configuration comes from.
        computed: on what, and how.
        mlflow_run: id of the run that this training is in MLflow.
    """
    splits = {"validation": corpus.validation, "test": corpus.test}
    return {
        "config": config,
        "metrics": metrics,
        **git_state(PLACE),
        "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}},
        "trial": trial,
        "mlflow_run": mlflow_run,
        "chat": chat,
        "computed": computed,
        # by document, so that models that were judged on the same ones can be compared document by document
        **{
            name: {
                "digest": stream_digest(splits[name].tokens.tobytes(), corpus.tokenizer_json),
                "nats": judgement.nats.tolist(),
                "targets": judgement.targets.tolist(),
            }
            for name, judgement in judged.items()
        },
    }


def stream_digest(tokens: bytes, tokenizer_json: str) -> str:
    """Names the token ids of a stream and the tokenizer that made them."""
    return hashlib.sha256(tokens + tokenizer_json.encode()).hexdigest()[:16]
