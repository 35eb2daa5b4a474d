"""The cores and memory that this process may use, also in a container or a batch job."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """Return the number of cores that this process may use; in a container or batch job, often not all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def available_memory() -> int | None:
    """Return how many bytes this process and its children may still take; None if unknown.

    This is the least of what the machine has free and of what the limits of its control groups leave.
    """
    return min((*_free(), *_left_in_groups()), default=None)


def _free() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return
    yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _left_in_groups() -> Iterator[int]:
    """Yield the bytes that are left in each control group of this process, for cgroups of version 1 or 2."""
    try:
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, place in own:
        names = controllers.split(",")
        if names == [""]:
            yield from _left(_CGROUPS, place, "memory.max", "memory.current", "inactive_file")
        elif "memory" in names:
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(_CGROUPS / "memory", place, *files)


def _left(root: Path, place: str, limit: str, used: str, cache: str) -> Iterator[int]:
    """Yield the bytes that are left in a group and in those above it, whose limits apply to it, too.

    Pages that merely cache files do not count: they are given up when memory is short.
    """
    inside = root / place.strip("/")
    for group in (inside, *inside.parents):
        try:
            most = (group / limit).read_text().strip()
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            taken = int((group / used).read_text()) - int(statistics.get(cache, 0))
        except (OSError, ValueError):
            most = "max"
        if most != "max":
            yield max(0, int(most) - taken)
        if group == root:
            return
