"""What libraries read from the environment when they are imported. Imports none of them."""

import os
from collections.abc import Mapping

# What each is for:
LIBRARIES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Who tells MLflow tries again; its own seven times with growing pauses would hold a run up for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "TOKENIZERS_PARALLELISM": "true",
}


def set_defaults(variables: Mapping[str, str]) -> None:
    """To be called before the libraries are imported; what the user has set is left alone."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
