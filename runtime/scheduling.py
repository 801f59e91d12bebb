"""How the system treats this process while it measures: its priority, and the cores that it may use.

Other programs on the machine are most of the noise in a short latency: a call of one millisecond that waits for its
turn takes five. Where the system permits it (root, or CAP_SYS_NICE), the threads of this process are put into the
real-time class for the time of the measurement, which takes that noise away: on two cores with a load of 7, the median
of a call of 1.7 ms was 6.3 ms without and 1.7 ms with it. `nice` was tried and does not help where each session of a
system has a scheduling group of its own. So the figures are those of a machine without other programs; where it is not
permitted they are not, and the result says which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmcompress.errors import UsageError

_THREADS = Path("/proc/self/task")


@contextmanager
def realtime(wanted: bool = True) -> Iterator[bool]:
    """Put all threads of this process into the real-time class, and those that they start; says whether it worked.

    Round robin and not first-in-first-out: two threads of ours that wait for each other on one core have to take turns.
    """
    if not (wanted and _sound()):
        yield False
        return
    permitted = _schedule(os.SCHED_RR, 1)
    try:
        yield permitted
    finally:
        if permitted:
            _schedule(os.SCHED_OTHER, 0)


def _sound() -> bool:
    """Linux, with the limit that keeps real-time threads from taking all of the machine."""
    try:
        return int(Path("/proc/sys/kernel/sched_rt_runtime_us").read_text()) >= 0 and _THREADS.is_dir()
    except (OSError, ValueError):
        return False


def _schedule(policy: int, priority: int) -> bool:
    for thread in _THREADS.iterdir():
        try:
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
        except ProcessLookupError:  # it ended meanwhile
            continue
        except OSError:
            return False
    return True


def check_cores(cores: Sequence[int]) -> None:
    """Raise UsageError unless this process may be kept on these cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("this system cannot pin a process to cores", "leave `pin` out")
    usable = os.sched_getaffinity(0)
    if not cores or not set(cores) <= usable:
        raise UsageError(
            f"the cores {', '.join(map(str, cores)) or '(none)'} are not all usable here",
            f"this process may use: {', '.join(map(str, sorted(usable)))}",
        )


@contextmanager
def pinned(cores: Sequence[int] | None) -> Iterator[None]:
    """Keep this process, what it starts and its runtimes' threads on some cores; None leaves it as it is."""
    if cores is None:
        yield
        return
    check_cores(cores)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
