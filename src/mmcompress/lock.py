"""One process at a time in a folder: a second one gets an error instead of a race."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcompress.errors import UsageError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a run folder; a second process gets an error instead of a race."""
    if (fcntl := _fcntl()) is None:
        yield
        return
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                raise OSError("another process ended, removed this file and was followed by a third")
        except OSError as error:
            raise UsageError(
                f"another mmcompress is running in {path.parent}", "wait for it, or give another --out"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _fcntl() -> Any | None:
    try:
        return importlib.import_module("fcntl")
    except ImportError:  # Windows
        return None
