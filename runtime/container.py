"""What the container of this process leaves it of the machine: cores and memory, by cgroup v1 or v2.

A limit may be set on any group above the process, so the tightest one on the way to the root counts. A container often
sees only its own part of that way, so a group whose folder is not there is passed by.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""Bytes from which on v1 means no limit: it writes the largest number of pages there is."""


def cpu_quota() -> float | None:
    """Cores' worth of time that the process may use a second, 1.5 say; None where nothing limits it."""
    quotas = []
    for group in _groups("cpu"):
        if (pair := _words(group / "cpu.max")) is not None and len(pair) == 2:
            quota, period = pair
        else:
            quota, period = _word(group / "cpu.cfs_quota_us"), _word(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Bytes that the process and those beside it may use; None where nothing limits them."""
    return min((limit for limit, _ in _memory()), default=None)


def memory_left() -> int | None:
    """Bytes that are still free below the limit, file pages that can go counted as free; None without a limit."""
    return min((max(0, limit - used) for limit, used in _memory()), default=None)


def _memory() -> Iterator[tuple[int, int]]:
    """Limit and use of each group that has one, in bytes."""
    for group in _groups("memory"):
        for limit_file, used_file, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _word(group / limit_file), _word(group / used_file)
            if limit.isdigit() and int(limit) < _UNLIMITED:
                free = _words(group / "memory.stat") or []
                cache = int(free[free.index(cached) + 1]) if cached in free else 0
                yield int(limit), max(0, int(used) - cache) if used.isdigit() else 0


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the groups that the process is in, v2's and those of v1's controller, each up to its root."""
    paths = {"": "/", controller: "/"}
    for line in _lines(MEMBERSHIP):
        _, controllers, path = line.split(":", 2)
        for named in controllers.split(","):
            if named in paths and ".." not in path:
                paths[named] = path
    roots = {"": [GROUPS, GROUPS / "unified"], controller: [GROUPS / controller, GROUPS / "cpu,cpuacct"]}
    for named, path in paths.items():
        for root in roots[named]:
            group = root / path.lstrip("/")
            yield from (one for one in (group, *group.parents) if one == root or root in one.parents)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _words(path: Path) -> list[str] | None:
    return [word for line in _lines(path) for word in line.split()] or None


def _word(path: Path) -> str:
    return (_words(path) or [""])[0]
