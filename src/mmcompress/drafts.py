"""Files that are whole or not there, whoever writes them at once, and whoever dies at it.

Each writer has a draft of its own, which it holds by a lock and renames at its end. A draft that nobody holds is of a
process that was killed: the next one that writes into the folder removes it. Its name is of 32 random digits, which
nobody else's file has. Folders are drafted by `publish.py`.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

SUFFIX = ".draft"
_NAME = re.compile(r"\.[0-9a-f]{32}\.draft")
_ABANDONED_S = 24 * 3600
"""Age from which a draft is taken for a dead one's where a file system or a system has no locks."""


@contextmanager
def written_whole(place: Path) -> Iterator[IO[bytes]]:
    """A stream whose content stands at `place` when the block ends well, and nowhere when it does not. OSError as files
    raise it. The folder is made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _clear_once(place.parent)
    fcntl = _fcntl()
    stream = _begun(fcntl, place.parent)
    draft = Path(stream.name)
    try:
        with stream:
            yield stream
            stream.flush()
            if fcntl is not None:  # while it is held
                draft.replace(place)
        if fcntl is None:  # Windows renames no open file
            draft.replace(place)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def _begun(fcntl: Any | None, folder: Path) -> IO[bytes]:
    """A new draft, held; another one where somebody has cleared it between its making and its locking."""
    while True:
        draft = folder / f".{uuid.uuid4().hex}{SUFFIX}"
        stream = draft.open("xb")
        if fcntl is None:
            return stream
        with suppress(OSError):  # no locks here
            fcntl.flock(stream, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), draft.stat()):
                return stream
        stream.close()


@functools.cache
def _clear_once(folder: Path) -> None:
    """A folder may hold many files, so it is looked through once a process."""
    fcntl = _fcntl()
    for draft in folder.glob(f".*{SUFFIX}"):
        if not _NAME.fullmatch(draft.name):
            continue
        with suppress(OSError), draft.open("rb") as stream:
            if not _is_held(fcntl, stream):
                draft.unlink()


def _is_held(fcntl: Any | None, stream: IO[bytes]) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        pass  # no locks here
    return time.time() - os.fstat(stream.fileno()).st_mtime < _ABANDONED_S


def _fcntl() -> Any | None:
    try:
        return importlib.import_module("fcntl")
    except ImportError:  # Windows
        return None
