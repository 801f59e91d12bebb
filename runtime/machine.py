"""What a measurement was taken on: processor, cores, clock policy, load, memory and versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from mmcompress.artifact import environment


def memory_budget_bytes() -> int:
    """Half of what is free, on the machine and in the container."""
    free = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return int(max(free, 0) // 2)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        **environment(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "governor": governor.read_text().strip() if os.access(governor, os.R_OK) else None,
        "load_average": psutil.getloadavg()[0],
        "memory_bytes": psutil.virtual_memory().total,
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def throttle_count() -> int | None:
    """How often the cores were slowed down for heat, since the start; None where Linux does not count it."""
    counters = list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/corethrottle_count"))
    try:
        return sum(int(counter.read_text()) for counter in counters) if counters else None
    except (OSError, ValueError):
        return None


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
