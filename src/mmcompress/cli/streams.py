"""What stdout and stderr do with characters that their encoding lacks: they escape them, and JSON stays JSON."""

from __future__ import annotations

import io
import sys


def never_failing() -> None:
    """Let stdout and stderr escape what their encoding lacks: a file's name must not cost an answer of minutes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def encodes(text: str) -> bool:
    """Whether stdout has every character of a text; JSON has escapes of its own for what it has not."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
