"""Signals that end a command, as an exception: drafts, locks and processes of ours go, and the end says how to go on.

SIGTERM, SIGHUP and SIGUSR1 would end Python where it stands. A loop that writes its state before it ends notes SIGTERM
and SIGUSR1 itself (`compress/train/stopping.py`); everything else ends by what is raised here, as by Ctrl-C. Libraries
make other exceptions of it now and then, so what leaves a command after a signal is that signal's end.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mmcompress.errors import StoppedError

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""By name: Windows has no SIGHUP and no SIGUSR1."""
_ONE_REQUEST_S = 2.0
"""Schedulers and `timeout` signal a process and its group: one request comes twice, while things are tidied already."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end. No `except Exception` takes it, as none takes Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.what = f"stopped by {self.by}"
        self.of_scheduler = self.by in ("SIGTERM", "SIGUSR1")
        self.exit_code = 128 + number
        """As a shell says it of a program that a signal has ended."""
        self.hint = "give the same command again"


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise Interrupted where a signal comes inside; what is ignored (`nohup`) stays so. The main thread's alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[Interrupted] = []
    at = -math.inf

    def end(number: int, _: FrameType | None) -> None:
        nonlocal at
        if time.monotonic() - at > _ONE_REQUEST_S:
            at = time.monotonic()
            asked.append(Interrupted(number))
            raise asked[-1]

    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # None: not installed from Python, so it cannot be put back
            signal.signal(number, end)
    try:
        yield
    except (Exception, SystemExit) as error:
        if not asked or isinstance(error, StoppedError) or (isinstance(error, SystemExit) and not error.code):
            raise
        raise asked[0] from error
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)


@contextmanager
def children_spared() -> Iterator[None]:
    """Processes that are started inside never get Ctrl-C, which a terminal sends to all of a group: whoever started
    them ends them. One that comes inside is raised behind it."""
    mask = getattr(signal, "pthread_sigmask", None)
    if mask is None:  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # as it starts it lets through what is blocked
    before = mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)
