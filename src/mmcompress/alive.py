"""A sign of life wherever nothing else shows one: what runs, and for how long.

On a terminal it is a line that counts the seconds, there after a second without other output and gone with the next; in
a log it is a line every half minute. A thread writes it, so that no loop has to be written for it, and what passes in
libraries (imports, hashing, compiling) is covered. Bars and lines of `progress.py` take its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mmcompress.formats import printable

LOG_SECONDS = 30.0
_SILENCE_S = 1.0
"""Without other output, after which a terminal shows the sign."""
_LOOK_S = 0.25


class Sign:
    """The sign of one command on one console."""

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what, self._since = what, time.monotonic()
        self._spoke = self._since
        self._guard = threading.RLock()
        self._shown: Live | None = None
        self._paused = 0
        self._over = threading.Event()

    def runs(self, what: str) -> None:
        """Something else runs from now on; it was just said."""
        with self._guard:
            self._what, self._since = what, time.monotonic()
            self.spoke()

    def spoke(self) -> None:
        """Something was written just now."""
        self._spoke = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is shown inside, where something else draws."""
        with self._guard:
            self._paused += 1
            self._hide()
        try:
            yield
        finally:
            self._paused -= 1
            self.spoke()

    def end(self) -> None:
        self._over.set()
        with self._guard:
            self._hide()

    def watch(self) -> None:
        """Look again and again until the end; what the thread does."""
        while not self._over.wait(_LOOK_S):
            with self._guard:
                if self._over.is_set():
                    return
                silent = time.monotonic() - self._spoke
                if self._console.is_terminal and not self._console.is_dumb_terminal:
                    if silent > _SILENCE_S and not self._paused and self._shown is None:
                        self._show()
                elif silent > LOG_SECONDS:
                    self._console.print(self._line())
                    self.spoke()

    def _show(self) -> None:
        self._shown = Live(
            console=self._console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,  # that is no business of stderr's
            get_renderable=self._line,
        )
        self._shown.start()

    def _hide(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def _line(self) -> Text:
        seconds = time.monotonic() - self._since
        return Text(f"  {printable(self._what)}: {seconds:.0f} s so far", no_wrap=True, overflow="ellipsis")


_here: Sign | None = None


def sign() -> Sign | None:
    """The sign of the command that runs; None where nobody asked for one."""
    return _here


@contextmanager
def alive(console: Console, what: str) -> Iterator[None]:
    """Show on a console that a command runs, wherever nothing else does."""
    global _here
    _here = Sign(console, what)
    thread = threading.Thread(target=_here.watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        _here.end()
        _here = None
        thread.join()
