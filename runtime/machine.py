"""What a measurement was taken on: processor, cores, clock policy, load, memory and versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from mmcompress.manifest import environment
from mmcompress.runtime.conditions import governor, power_mode
from mmcompress.runtime.container import cpu_quota, memory_left, memory_limit
from mmcompress.runtime.environment import Machine


def memory_budget_bytes() -> int:
    """Half of what is free."""
    return memory_free() // 2


def memory_free() -> int:
    """Bytes, on the machine and in the container."""
    free, left = psutil.virtual_memory().available, memory_left()
    return int(free if left is None else min(free, left))


def memory_bytes() -> int:
    """Of the machine, or as much of it as the container may use."""
    total, limit = psutil.virtual_memory().total, memory_limit()
    return int(total if limit is None else min(total, limit))


def machine() -> Machine:
    """What the figures are taken on."""
    figures: dict[str, str | int | float | None] = {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "governor": governor(),
        "power_mode": power_mode(),
        "load_average": psutil.getloadavg()[0],
        "memory_bytes": memory_bytes(),
    }
    return Machine.model_validate({**environment(), **figures})


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity, and the whole cores of its container's quota.

    One thread more than the quota pays for would be stopped in the middle of each period, and the others wait for it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))
