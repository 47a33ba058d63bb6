"""What Ray, Tune and MLflow read from the environment when they are imported. Imports none of them."""

import os

from search.preflight import token_mode
from trainables.host.environment import LIBRARIES, set_defaults

# What each is for:
ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own live table: ours is shown instead
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own watch over the host's memory ends the whole run by an error that Tune does not take for a lost worker;
    # a worker that the kernel kills is one.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials that ask for no GPU see none
    # No CSV, JSON and TensorBoard copies of what MLflow has. It empties Tune's ResultGrid, which nothing here reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # Tune saves no state of its own meanwhile: a study continues from the ledger
    **LIBRARIES,
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run that ends, in the middle of the display
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `trainables.host.signals` hears the signals and tells Tune
}


def set_environment(address: str | None) -> None:
    """As `set_defaults`. `address`: of a Ray cluster to join."""
    set_defaults(ENVIRONMENT)
    if address is not None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = token_mode(address)
