"""What stdout and stderr do with characters that their encoding lacks: they escape them, and JSON stays JSON."""

from __future__ import annotations

import io
import os
import sys

from mmcompress.errors import UsageError


def never_failing() -> None:
    """Let stdout and stderr escape what their encoding lacks: a file's name must not cost an answer of minutes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flushed() -> None:
    """Write out what stdout still holds, so that a full disk is known before the process ends. UsageError where it is.

    A reader that went away, `| head` say, has what it wanted.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _dropped()
    except OSError as error:
        _dropped()
        raise UsageError(f"the output cannot be written: {error.strerror}", "send it to another file") from error


def _dropped() -> None:
    """Give up what stdout holds: Python would try it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def encodes(text: str) -> bool:
    """Whether stdout has every character of a text; JSON has escapes of its own for what it has not."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
