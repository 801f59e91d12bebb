"""Being told to stop: a scheduler sends SIGTERM, or SIGUSR1 some minutes before, and a long loop ends when it may.

The handler notes the signal and nothing else; whoever runs the loop asks between two steps. It stands only while the
loop runs, and only in the main thread, as Python allows no other. Ctrl-C is left alone: it ends at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = ("SIGTERM", "SIGUSR1")
"""By name: Windows has no SIGUSR1."""


@dataclass
class Asked:
    """Whether to stop."""

    by: str | None = None
    """The name of the signal that came first; None while none came."""


@contextmanager
def told_to_stop() -> Iterator[Asked]:
    """Note SIGTERM and SIGUSR1 until the end of the block, where the handlers of before come back."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _: FrameType | None) -> None:
        asked.by = asked.by or signal.Signals(number).name

    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # None is a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
