"""A study's inputs, token ids and embedding, made where its trials run."""

from collections.abc import Callable
from typing import Any

import ray

from model.errors import UserError
from search.execution.cluster import Resources
from search.options import StudySettings
from trainables.config import RunConfig
from trainables.errors import OtherCodeError
from trainables.host.digests import ROOT, own_code
from trainables.host.machine import usable_cpus
from trainables.reports import InputsSummary
from trainables.two_phase import prepare_study, repeat


def start_preparing(settings: StudySettings, base: RunConfig, resources: Resources, begun_with: str | None) -> Any:
    """References to the inputs and to what the driver wants to know of them.

    Args:
        begun_with: as in `pipeline.prepare_inputs`.
    """
    # Nothing else computes meanwhile: on this machine it may use every core that this process may.
    threads = resources.threads if settings.address else usable_cpus()
    task = ray.remote(prepare_study).options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, num_returns=2, max_retries=2
    )
    code = own_code(), str(ROOT)
    arguments = (settings.data, settings.embedding, str(settings.records.cache), threads, resources.gpus, code)
    return task.remote(base, *arguments, begun_with)


def prepared(settings: StudySettings, refs: Any) -> tuple[Any, InputsSummary]:
    """A reference to the inputs, and what the driver wants to know of them.

    Raises:
        UserError: they cannot be made.
    """
    inputs, summary = refs
    try:
        if settings.address is None:
            return inputs, ray.get(summary)
        # Kept by this process: if they lay on a node that dies, they could be made again only where a trial that
        # waits for them holds the CPUs.
        return ray.put(ray.get(inputs)), ray.get(summary)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | OtherCodeError):
            raise UserError(str(error.cause)) from error
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise UserError("the process that prepares the inputs died; is there enough memory for them?") from error


def repeater(inputs: Any, resources: Resources) -> Callable[[RunConfig, int], tuple[dict[str, float], list[float]]]:
    """`two_phase.repeat` where trials run, on a study's inputs; without threads of its own with a trial's."""
    task = ray.remote(repeat).options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=2)
    code = own_code(), str(ROOT)

    def call(config: RunConfig, threads: int) -> tuple[dict[str, float], list[float]]:
        found: tuple[dict[str, float], list[float]] = ray.get(
            task.remote(config, inputs, threads or resources.threads, resources.gpus, code)
        )
        return found

    return call
