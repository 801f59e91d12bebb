"""What a measurement was taken on: processor, cores, clock policy, load, memory and versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from mmcompress.manifest import environment
from mmcompress.runtime.conditions import governor, power_mode
from mmcompress.runtime.environment import Machine


def memory_budget_bytes() -> int:
    """Half of what is free, on the machine and in the container."""
    free = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return int(max(free, 0) // 2)


def machine() -> Machine:
    """What the figures are taken on."""
    figures: dict[str, str | int | float | None] = {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "governor": governor(),
        "power_mode": power_mode(),
        "load_average": psutil.getloadavg()[0],
        "memory_bytes": psutil.virtual_memory().total,
    }
    return Machine.model_validate({**environment(), **figures})


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
