"""Headless Chromium, driven over the DevTools protocol through a pipe: no port, no web socket, no package.

Messages are JSON texts that end with a zero byte; Chromium reads them from descriptor 3 and writes to descriptor 4
(`--remote-debugging-pipe`). Every wait ends by an event of the browser, never by a sleep, so that a slow machine is
only slow.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--mute-audio", "--hide-scrollbars", "--force-color-profile=srgb"),
)
TIMEOUT_S = 120.0
Event = dict[str, Any]


class Page:
    """One tab. `events` collects what the browser said of itself: requests, console messages, exceptions."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing, self.buffer, self.number = reading, writing, b"", 0
        self.events: list[Event] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and wait for its result; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT_S
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reading], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium said nothing for {TIMEOUT_S:.0f} s"
            block = os.read(self.reading, 1 << 20)
            assert block, "Chromium ended"
            self.buffer += block
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def load(self, url: str) -> None:
        """Open an address and wait until all of it is loaded."""
        seen = len(self.events)
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[seen:]):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def of(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of a kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, and exceptions."""
        calls = [c for c in self.of("Runtime.consoleAPICalled") if c["type"] in ("error", "warning", "assert")]
        entries = [e["entry"] for e in self.of("Log.entryAdded") if e["entry"]["level"] in ("error", "warning")]
        return [json.dumps(found) for found in (*calls, *entries, *self.of("Runtime.exceptionThrown"))]


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A fresh browser with its profile in the given folder; it is killed with all its children."""
    assert EXECUTABLE is not None
    there, writing = os.pipe()
    reading, back = os.pipe()
    # Descriptors 3 and 4 may be among these: move the child's ends out of their way before they are copied there.
    child = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 64) for end in (there, back)]
    os.close(there), os.close(back)
    actions = [
        (os.POSIX_SPAWN_DUP2, child[0], 3),
        (os.POSIX_SPAWN_DUP2, child[1], 4),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0o600),
    ]
    command = [EXECUTABLE, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = os.posix_spawn(EXECUTABLE, command, dict(os.environ), file_actions=actions, setpgroup=0)
    for end in child:
        os.close(end)
    try:
        yield Page(reading, writing)
    finally:
        os.close(reading), os.close(writing)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
