"""What a process may use: affinity, the quotas of both cgroup versions, a SLURM job."""

import os
from pathlib import Path

import pytest

from trainables.host import machine
from trainables.host.machine import MB, Limit, cpu_limit, free_memory, memory_limit, usable_cpus

CPUS = 64
PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
QUOTA, LIMIT = "the cgroup's CPU quota", "the cgroup's memory limit"


@pytest.fixture(autouse=True)
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of many CPUs without cgroups, where nothing limits anything."""
    monkeypatch.setattr(os, "cpu_count", lambda: CPUS)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)), raising=False)
    monkeypatch.delenv(machine.SLURM_CPUS, raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")


def cgroup(tmp_path: Path, own: str, files: dict[str, object]) -> None:
    """What `/proc/self/cgroup` says, and files below `/sys/fs/cgroup`."""
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")


def test_the_whole_machine_where_nothing_limits() -> None:
    assert cpu_limit() == Limit(CPUS)
    assert memory_limit() == Limit(PHYSICAL)
    assert 0 < free_memory() < PHYSICAL


def test_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5})
    assert cpu_limit() == Limit(2, "CPU affinity")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="sets its own process's affinity")
def test_affinity_of_a_real_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("given", "cpus"), [("4", 4), ("128", CPUS), ("0", CPUS), ("", CPUS), ("many", CPUS)])
def test_slurm(monkeypatch: pytest.MonkeyPatch, given: str, cpus: int) -> None:
    monkeypatch.setenv(machine.SLURM_CPUS, given)
    assert usable_cpus() == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", CPUS)]
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cpus: int) -> None:
    cgroup(tmp_path, "0::/job/step\n", {"job/step/cpu.max": quota})
    assert cpu_limit() == Limit(cpus, "" if cpus == CPUS else QUOTA)


@pytest.mark.parametrize(("quota", "cpus"), [("400000", 4), ("150000", 1), ("-1", CPUS)])
def test_quota_of_version_1(tmp_path: Path, quota: str, cpus: int) -> None:
    files = {"cpu/job/cpu.cfs_quota_us": quota, "cpu/job/cpu.cfs_period_us": 100_000}
    cgroup(tmp_path, "5:cpu,cpuacct:/job\n3:memory:/other\n0::/\n", files)
    assert usable_cpus() == cpus


def test_a_folder_above_may_give_less(tmp_path: Path) -> None:
    cgroup(tmp_path, "0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"})
    assert usable_cpus() == 3


def test_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    cgroup(tmp_path, "0::/../../docker/0123\n", {"cpu.max": "200000 100000", "memory.max": 500 * MB})
    assert usable_cpus() == 2
    assert memory_limit() == Limit(500 * MB, LIMIT)


def test_memory_of_version_2(tmp_path: Path) -> None:
    files = {"memory.max": "max", "job/memory.max": 900 * MB, "job/memory.current": 700 * MB}
    stat = {"job/memory.stat": f"anon 1\nactive_file 0\ninactive_file {50 * MB}"}  # the kernel gives it up first
    cgroup(tmp_path, "0::/job\n", files | stat)
    assert memory_limit() == Limit(900 * MB, LIMIT)
    assert free_memory() == 250 * MB


def test_memory_of_version_1(tmp_path: Path) -> None:
    limits = {"memory/job/memory.limit_in_bytes": 900 * MB, "memory/memory.limit_in_bytes": 2**63 - 4096}
    cgroup(tmp_path, "4:memory:/job\n", limits | {"memory/job/memory.usage_in_bytes": 600 * MB})
    assert memory_limit() == Limit(900 * MB, LIMIT)
    assert free_memory() == 300 * MB
