"""Preflight checks of this machine and of a cluster, before a study starts; imports nothing heavy, starts nothing."""

import os
import socket
import subprocess
import sys

from trainables.host.machine import cpu_limit
from trainables.host.preflight import count_gpus

ANSWERS_WITHIN = 9  # seconds; of a cluster that is well `ray status` takes two or three


def check_cluster(address: str) -> None:
    """Raise ValueError unless `auto`, or `host:port` where something listens; Ray itself tries for minutes."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address}: a study joins its cluster and is no client of it: "
            "run the same command on any of the cluster's hosts, with --address auto"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError(f"--address must be auto or HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray cluster listens at {address} ({error}): check `ray status` there") from None


def token_mode(address: str) -> str:
    """What `RAY_AUTH_MODE` must be for this cluster, "token" or "disabled"; asked before Ray is imported.

    A driver whose mode is not the cluster's either is refused after half a minute, or is let in and loses every trial:
    it turns the cluster's own calls away.

    Raises:
        ValueError: what is there does not answer.
    """
    line = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    without = os.environ | {"RAY_AUTH_MODE": "disabled"}
    try:
        done = subprocess.run(line, env=without, capture_output=True, text=True, timeout=ANSWERS_WITHIN, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"no Ray cluster answers at {address} within {ANSWERS_WITHIN} s: check `ray status` there, "
            "or leave --address out to run on this machine"
        ) from None
    if "AuthenticationError" in done.stderr:
        return "token"
    if done.returncode != 0:  # something else listens there: Ray itself would try for half a minute
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        raise ValueError(
            f"no Ray cluster answers at {address} ({said}): check `ray status` there, "
            "or leave --address out to run on this machine"
        )
    return "disabled"


def check_machine(cpus: float, gpus: float | None) -> None:
    """Raise ValueError if a trial asks for more than this process may use; `gpus` None asks for what there is."""
    if gpus and gpus > count_gpus():
        raise ValueError(
            f"--gpus-per-trial {gpus:g}: this machine has {count_gpus() or 'no'} usable GPUs; "
            "leave the option out to train on the CPU, or give --address of a cluster that has them"
        )
    limit = cpu_limit()
    if cpus > limit.amount:
        there = (
            f"this process may use {limit.amount} CPUs ({limit.by})"
            if limit.by
            else f"this machine has {limit.amount} CPUs"
        )
        raise ValueError(f"--cpus-per-trial {cpus:g}: {there}")
