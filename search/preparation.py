"""A study's inputs, token ids and embedding, made where its trials run."""

import os
from typing import Any

import ray

from model.errors import BadInputError
from search.cluster import Resources
from search.options import Settings
from trainables.config import RunConfig
from trainables.two_phase import prepare


def start_preparing(settings: Settings, base: RunConfig, resources: Resources) -> Any:
    """References to the inputs and to what the driver wants to know of them."""
    # Nothing else computes meanwhile: on this machine it may use every core.
    threads = resources.threads if settings.address else os.cpu_count() or 1
    task = ray.remote(prepare).options(num_cpus=resources.cpus, num_gpus=resources.gpus, num_returns=2, max_retries=2)
    arguments = (settings.data, settings.embedding, str(settings.records.cache), threads, resources.gpus)
    return task.remote(base, *arguments)


def prepared(settings: Settings, refs: Any) -> tuple[Any, dict[str, Any]]:
    """A reference to the inputs, and what the driver wants to know of them.

    Raises:
        BadInputError: they cannot be made.
    """
    inputs, summary = refs
    try:
        if settings.address is None:
            return inputs, ray.get(summary)
        # Kept by this process: if they lay on a node that dies, they could be made again only where a trial that
        # waits for them holds the CPUs.
        return ray.put(ray.get(inputs)), ray.get(summary)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise BadInputError(str(error.cause)) from error
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise BadInputError("the process that prepares the inputs died; is there enough memory for them?") from error
