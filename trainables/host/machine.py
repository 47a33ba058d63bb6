"""What this process may use of its machine, as affinity, cgroups and a SLURM job leave it. Imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUPS, OWN_CGROUPS, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")
SLURM_CPUS = "SLURM_CPUS_PER_TASK"
MB = 1_000_000


@dataclass(frozen=True, order=True)
class Limit:
    """How much there is, and what says so."""

    amount: int  # CPUs, or bytes
    by: str = ""  # empty: the machine itself


def _own_folders(controller: str) -> Iterator[Path]:
    """Folders of the cgroups, of versions 1 and 2, that this process is in, each with those above it.

    A container may see its own folder as the root, and its path as the host has it: a folder that is not there is no
    error of the reader.
    """
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _numbers(folder: Path, name: str) -> list[int]:
    """The numbers of a cgroup's file; none where it is not there or sets no limit."""
    try:
        return [int(word) for word in (folder / name).read_text().split()]
    except (OSError, ValueError):  # "max" is no number
        return []


def _quotas() -> Iterator[int]:
    """Whole CPUs that a cgroup's quota is enough for, one at least, of each that has a quota."""
    for folder in _own_folders("cpu"):
        pair = _numbers(folder, "cpu.max") or [
            *_numbers(folder, "cpu.cfs_quota_us"),
            *_numbers(folder, "cpu.cfs_period_us"),
        ]
        if len(pair) == 2 and min(pair) > 0:
            yield max(1, pair[0] // pair[1])


def cpu_limit() -> Limit:
    """The CPUs that this process may use, and what limits them."""
    limits = [Limit(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(Limit(len(os.sched_getaffinity(0)), "CPU affinity"))
    limits += [Limit(quota, "the cgroup's CPU quota") for quota in _quotas()]
    if (given := os.environ.get(SLURM_CPUS, "")).isdecimal() and int(given) > 0:
        limits.append(Limit(int(given), SLURM_CPUS))
    return min(limits)


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return cpu_limit().amount


def memory_limit() -> Limit:
    """Bytes of memory that this process and its children may use in all, and what limits them."""
    limits = [Limit(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for folder in _own_folders("memory"):
        found = _numbers(folder, "memory.max") or _numbers(folder, "memory.limit_in_bytes")
        limits += [Limit(limit, "the cgroup's memory limit") for limit in found]
    return min(limits)


def free_memory() -> int:
    """Bytes of memory that can be had now."""
    free = [memory_limit().amount]
    with suppress(OSError):  # no Linux
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    for folder in _own_folders("memory"):
        limit = _numbers(folder, "memory.max") or _numbers(folder, "memory.limit_in_bytes")
        used = _numbers(folder, "memory.current") or _numbers(folder, "memory.usage_in_bytes")
        if limit and used:
            free.append(limit[0] - used[0] + _cached(folder))
    return min(free)


def _cached(folder: Path) -> int:
    """Bytes that a cgroup's files take in the page cache, which the kernel gives up first."""
    with suppress(OSError):
        figures = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(figures.get(name, 0)) for name in ("active_file", "inactive_file"))
    return 0
