"""A local Ray: what it gets of the machine, and why it does not start; each cause is a real one where it can be."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
from permissions import obey_permissions

from search.execution import local_ray
from search.execution.cluster import Resources, plan_resources, start_ray
from trainables.host.machine import MB, Limit

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
from search.execution.environment import set_environment
set_environment(None)
from search.execution.cluster import plan_resources, start_ray
start_ray(None)
print("planned", plan_resources(1, None, None, on_this_machine=True).max_concurrent)
"""


class Started(NamedTuple):
    """What came of starting Ray in a process of its own."""

    said: str
    error: str  # its last line
    seconds: float


def start(only_cpu: int | None = None, **environment: str) -> Started:
    def prepare() -> None:
        obey_permissions()
        if only_cpu is not None:
            os.sched_setaffinity(0, {only_cpu})

    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=inherited | environment, preexec_fn=prepare,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = done.stderr.strip().splitlines()
    return Started(done.stdout, lines[-1] if lines else "", time.monotonic() - began)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux'")
def test_one_cpu_is_one_trial() -> None:
    assert "planned 1\n" in start(only_cpu=min(os.sched_getaffinity(0))).said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="TMPDIR is heeded on Linux only")
def test_a_temporary_folder_of_82_characters(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * (81 - len(str(tmp_path))))
    folder.mkdir()
    assert len(str(folder)) == 82 or len(str(tmp_path)) > 80
    found = start(TMPDIR=str(folder))
    assert f"its sockets below {folder} would have a path of" in found.error
    assert "and the system takes 107: set RAY_TMPDIR to a shorter folder, such as /tmp" in found.error
    assert found.seconds < 20


@pytest.mark.skipif(sys.platform != "linux", reason="TMPDIR is heeded on Linux only")
def test_the_longest_folder_that_is_told_to_fit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own check of the same path agrees on both sides of the limit."""
    from ray._private.utils import validate_socket_filepath

    for length in range(30, 90):
        monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
        path = f"/{'x' * (length - 1)}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
        if local_ray._socket_too_long():
            with pytest.raises(OSError, match="107 bytes"):
                validate_socket_filepath(path)
        else:
            validate_socket_filepath(path)


@pytest.mark.slow
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    found = start(HOME=str(home))
    assert f"{home}/.ray cannot be written (Permission denied)" in found.error
    assert "set HOME to a folder of your own, or RAY_AUTH_TOKEN to a secret" in found.error


@pytest.mark.slow
def test_both_remedies_for_such_a_home_help(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir(mode=0o500)
    other.mkdir()
    assert "planned" in start(HOME=str(home), RAY_AUTH_TOKEN="a" * 32).said
    assert "planned" in start(HOME=str(other)).said


@pytest.mark.slow
def test_a_folder_for_ray_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as short:  # a test's own folder is too long for sockets
        Path(short).chmod(0o500)
        found = start(RAY_TMPDIR=short)
    assert f"{short}/ray cannot be written (Permission denied): set RAY_TMPDIR to a folder of your own" in found.error


@pytest.mark.slow
def test_a_port_that_is_taken() -> None:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        found = start(RAY_GCS_SERVER_PORT=str(port))
    assert f"RAY_GCS_SERVER_PORT={port} (Address already in use): unset it, or name a port that is free" in found.error
    assert found.seconds < 20


def no_start(monkeypatch: pytest.MonkeyPatch, said: str = "The current node timed out during startup.") -> list[str]:
    """A Ray that never starts, and how often it was asked to."""
    asked: list[str] = []

    def late(address: str, **quiet: object) -> None:
        asked.append(address)
        raise Exception(f"{said}\nThis could happen because")

    monkeypatch.setattr(ray, "init", late)
    return asked


def test_no_port_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(98, "Address already in use")

    asked = no_start(monkeypatch)
    monkeypatch.delenv("RAY_GCS_SERVER_PORT", raising=False)
    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ValueError, match=r"no port can be opened \(Address already in use\)"):
        start_ray(None)
    assert asked == []


@pytest.mark.parametrize(
    ("what", "asked"), [("memory_limit", 0), ("free_memory", 1)]
)  # the cgroup's is known before, what others take may change
def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, what: str, asked: int) -> None:
    starts = no_start(monkeypatch)
    few = 300 * MB
    monkeypatch.setattr(local_ray, what, lambda: few if asked else Limit(few, "the cgroup's memory limit"))
    with pytest.raises(ValueError, match=r"300 MB of memory .*and Ray alone takes 600: end other processes"):
        start_ray(None)
    assert len(starts) == asked


def test_shared_memory_and_the_folder_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = {tmp_path: 64 * MB, local_ray._folder(): 10 * MB}
    asked = no_start(monkeypatch)
    monkeypatch.setattr(local_ray, "SHARED_MEMORY", tmp_path)

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(local_ray.shutil, "disk_usage", lambda folder: Usage(room[folder]))
    with pytest.raises(ValueError, match=r"has 64 MB and .* has 10 MB free.*--shm-size=1g"):
        start_ray(None)
    room[local_ray._folder()] = 900 * MB  # it lies there instead
    with pytest.raises(ValueError, match="timed out"):
        start_ray(None)
    assert asked


def test_a_busy_machine_is_asked_again_and_called_busy_only_if_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = no_start(monkeypatch)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    with pytest.raises(
        ValueError, match=r"\(The current node timed out.*\): its logs lie in .*ray/session_latest/logs"
    ):
        start_ray(None)
    assert asked == ["local"] * 3
    monkeypatch.setattr(os, "getloadavg", lambda: (400.0, 400.0, 400.0))
    with pytest.raises(ValueError, match=r"it is too busy \(400 processes want its \d+ CPU\(s\)\)"):
        start_ray(None)
    assert asked == ["local"] * 6
    late, tries = ray.init, []

    def at_last(**quiet: object) -> None:
        tries.append(quiet)
        if len(tries) < 3:
            late(**quiet)

    monkeypatch.setattr(ray, "init", at_last)
    start_ray(None)
    assert len(tries) == 3


def nodes(monkeypatch: pytest.MonkeyPatch, cpus: float) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus}}])


def test_a_trial_has_half_a_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    from search.execution import cluster

    nodes(monkeypatch, 64.0)
    monkeypatch.setattr(cluster, "cpu_limit", lambda: Limit(64))
    monkeypatch.setattr(cluster, "memory_limit", lambda: Limit(2_700 * MB, "the cgroup's memory limit"))
    limits = "the cgroup's memory limit: 2,700 MB, of which a trial takes 512"
    assert plan_resources(1, None, None, on_this_machine=True) == Resources(1, 0.0, 4, limits)
    assert plan_resources(1, None, 3, on_this_machine=True) == Resources(1, 0.0, 3)
    assert plan_resources(1, None, None) == Resources(1, 0.0, 64)  # a cluster's hosts are others
    monkeypatch.setattr(cluster, "memory_limit", lambda: Limit(700 * MB))
    assert plan_resources(1, None, None, on_this_machine=True).max_concurrent == 1


def test_what_limits_the_cpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from search.execution import cluster

    nodes(monkeypatch, 4.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cluster, "cpu_limit", lambda: Limit(4, "SLURM_CPUS_PER_TASK"))
    told = plan_resources(1, None, None, on_this_machine=True).limited_by
    assert told == "SLURM_CPUS_PER_TASK: 4 of 64 CPUs"
