"""The Ray cluster a study runs on, and what each trial gets of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.digests import ROOT, TRIAL, code_digest

START_ATTEMPTS = 3  # at starting Ray on this machine
HOSTS_ANSWER_WITHIN = 60  # seconds; a worker process that imports Ray on a busy host takes several

_leaving = False  # whether processes that are forked now leave this process's group


def _leave() -> None:
    if _leaving:
        os.setpgrp()


os.register_at_fork(after_in_child=_leave)


@dataclass(frozen=True)
class Resources:
    """What one trial asks of Ray, and how many may run at once."""

    cpus: float
    gpus: float
    max_concurrent: int

    @property
    def threads(self) -> int:
        """CPU threads of one trial."""
        return max(1, int(self.cpus))


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start a local one without a dashboard.

    Raises:
        ValueError: the cluster cannot be reached, or none can be started.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is None:
        _start_local(quiet)
        return
    try:
        with _at_own_code():
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}): check `ray status` there, that "
            "both hosts have the same ~/.ray/auth_token if it wants one (RAY_AUTH_MODE=token), "
            "or leave --address out to run on this machine"
        ) from error


def _start_local(quiet: dict[str, Any]) -> None:
    """Start Ray on this machine; on one that is busy Ray's own half a minute may not be enough."""
    reason = ""
    for _ in range(START_ATTEMPTS):
        try:
            # "local", or a cluster that a dead process left behind would be joined.
            with _groups_of_their_own(), _at_own_code():
                ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises nothing narrower where its processes are late or die
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            ray.shutdown()
        else:
            return
    raise ValueError(f"Ray does not start on this machine ({reason}): is it very busy, or short of memory?")


@contextmanager
def _at_own_code() -> Iterator[None]:
    """This process in the folder of its own code: Ray puts the working folder before all else that workers import from.

    From the user's own, a `model.py` or another version of the project would be run in place of this one.
    """
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Processes that are forked meanwhile leave this one's group.

    `timeout` and process managers send SIGTERM to the whole group: Ray would be gone before the study can end cleanly.
    """
    global _leaving
    _leaving = True
    try:
        yield
    finally:
        _leaving = False


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
        answers = ray.get([each.remote(code_digest(TRIAL), str(ROOT)) for each in on_each], timeout=HOSTS_ANSWER_WITHIN)
    except (ray.exceptions.RayError, TimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"a host of the Ray cluster runs no task ({reason}): look at `ray status` there") from error
    if wrong := [answer for answer in answers if answer]:
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"a host of the Ray cluster cannot run this study's trials: {wrong[0]}{others}")


def plan_resources(cpus: float, gpus: float | None, max_concurrent: int | None) -> Resources:
    """What each trial gets, after looking at the cluster: one GPU where there are any, unless said otherwise.

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
    return Resources(cpus, gpus, min(fitting, max_concurrent or fitting))


def _trials_on(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many trials fit on a node; 1e-9 keeps 1 / 0.1 from being 9."""
    by_cpu = int(node.get("CPU", 0.0) / cpus + 1e-9)
    return by_cpu if gpus == 0 else min(by_cpu, int(node.get("GPU", 0.0) / gpus + 1e-9))
