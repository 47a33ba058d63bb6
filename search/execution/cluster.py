"""The Ray cluster a study runs on, and what each trial gets of it."""

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.errors import first_line
from search.execution.local_ray import LEAST_MEMORY, at_own_code, start_local
from trainables.host.digests import ROOT, own_code
from trainables.host.machine import MB, cpu_limit, memory_limit

HOSTS_ANSWER_WITHIN = 60  # seconds; a worker process that imports Ray on a busy host takes several
TRIAL_MEMORY = 512 * MB  # that a trial's process takes at least, torch and a small corpus in it


@dataclass(frozen=True)
class Resources:
    """What one trial asks of Ray, and how many may run at once."""

    cpus: float
    gpus: float
    max_concurrent: int
    limited_by: str = ""  # what leaves this process less than the whole machine; empty if nothing does

    @property
    def threads(self) -> int:
        """CPU threads of one trial."""
        return max(1, int(self.cpus))


def connect(address: str | None, cpus: float, gpus: float | None, max_concurrent: int | None) -> Resources:
    """Connect to the cluster at `address`, or start a local one; what each trial gets there (`plan_resources`).

    Raises:
        ValueError: it cannot be reached or started, runs other code, or has not what a trial asks for.
    """
    start_ray(address)
    if address is not None:
        check_hosts()
    return plan_resources(cpus, gpus, max_concurrent, on_this_machine=address is None)


def disconnect() -> None:
    """End the connection, and the cluster if it was started here."""
    ray.shutdown()


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start a local one without a dashboard.

    Raises:
        ValueError: the cluster cannot be reached, or none can be started.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is None:
        start_local(quiet)
        return
    try:
        with at_own_code():
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({first_line(error)}): check `ray status` there, that "
            "both hosts have the same ~/.ray/auth_token if it wants one (RAY_AUTH_MODE=token), "
            "or leave --address out to run on this machine"
        ) from error


def check_hosts() -> None:
    """Whether every machine of the cluster runs this process's code. One that joins later is found out by its trials.

    Raises:
        ValueError: one does not, or does not answer.
    """

    def probe(code: str, place: str) -> str:
        # local to this function, so that Ray sends it as it is: a host that lacks the project can still say so
        import platform
        import sys

        try:
            from trainables.two_phase import check_code

            check_code(code, place)
        except Exception as error:
            return f"{platform.node()}, {sys.executable}: {type(error).__name__}: {error}"
        return ""

    task = ray.remote(probe)
    hosts = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    on_each = [task.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(h, False)) for h in hosts]
    try:
        answers = ray.get([each.remote(own_code(), str(ROOT)) for each in on_each], timeout=HOSTS_ANSWER_WITHIN)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ValueError(
            f"a host of the Ray cluster runs no task ({first_line(error)}): look at `ray status` there"
        ) from error
    if wrong := [answer for answer in answers if answer]:
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"a host of the Ray cluster cannot run this study's trials: {wrong[0]}{others}")


def plan_resources(
    cpus: float, gpus: float | None, max_concurrent: int | None, on_this_machine: bool = False
) -> Resources:
    """What each trial gets, after looking at the cluster: one GPU where there are any, unless said otherwise.

    Args:
        on_this_machine: Ray was started here, so this process's memory is what all trials have; a cluster's hosts are
            whoever's started Ray there.

    Raises:
        ValueError: no node has what one trial asks for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most_gpus = max(node.get("GPU", 0.0) for node in nodes)
    if gpus is None:
        gpus = 1.0 if most_gpus >= 1 else 0.0
    fitting = sum(_trials_on(node, cpus, gpus) for node in nodes)
    if fitting == 0:
        most_cpus = max(node.get("CPU", 0.0) for node in nodes)
        raise ValueError(
            f"--gpus-per-trial {gpus:g} with --cpus-per-trial {cpus:g}: no machine of this Ray cluster has both "
            f"(at most {most_gpus:g} GPUs, at most {most_cpus:g} CPUs)"
        )
    wanted = min(fitting, max_concurrent or fitting)
    if not on_this_machine:
        return Resources(cpus, gpus, wanted)
    memory = memory_limit()
    in_memory = max(1, (memory.amount - LEAST_MEMORY) // TRIAL_MEMORY)
    return Resources(cpus, gpus, min(wanted, in_memory), _limits(wanted > in_memory))


def _limits(by_memory: bool) -> str:
    """What leaves a local study less than its machine's CPUs, or fewer trials than those; empty if nothing does."""
    found, cpus, memory = [], cpu_limit(), memory_limit()
    if cpus.by:
        found.append(f"{cpus.by}: {cpus.amount} of {os.cpu_count()} CPUs")
    if by_memory:
        found.append(
            f"{memory.by or 'memory'}: {memory.amount // MB:,} MB, of which a trial takes {TRIAL_MEMORY // MB}"
        )
    return "; ".join(found)


def _trials_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many trials fit on a node; 1e-9 keeps 1 / 0.1 from being 9."""
    by_cpu = int(node.get("CPU", 0.0) / cpus + 1e-9)
    return by_cpu if gpus == 0 else min(by_cpu, int(node.get("GPU", 0.0) / gpus + 1e-9))
