"""One writer of an artifact's place at a time, and no writer while it is read: a second process gets an error.

Every command locks the places that it writes and the artifacts that it reads by the same files, `.NAME.lock` beside
each, whether it runs one stage or a recipe. So a recipe and a command into its folder cannot take each other's drafts,
and what was verified at the begin of a stage is still there at its end.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from mmcompress.errors import MMCompressError, UsageError
from mmcompress.places import elsewhere
from mmcompress.progress import say

_BUSY = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(*writing: Path, reading: Iterable[Path] = ()) -> Iterator[None]:
    """Hold places: those in `writing` alone, those in `reading` together with other readers.

    Raises UsageError where another process holds one of them otherwise, where no file can be made beside one, and where
    whatever fails meanwhile fails because somebody moved or removed the folder of a place.
    """
    if (fcntl := _fcntl()) is None:
        yield
        return
    alone = {place.resolve() for place in writing}
    shared = {place.resolve() for place in reading} - alone
    with ExitStack() as held:
        for place in sorted(alone | shared):
            held.enter_context(_locked(fcntl, place, place in alone))
        yield


@contextmanager
def _locked(fcntl: Any, place: Path, alone: bool) -> Iterator[None]:
    path = place.with_name(f".{place.name}.lock")
    try:
        handle = _taken(fcntl, path, alone)
    except OSError as error:
        if error.errno in _BUSY and not isinstance(error, PermissionError):
            doing = "reading or writing" if alone else "writing"
            raise UsageError(
                f"another mmcompress is running in {place.parent}: it is {doing} {place.name}",
                "wait for it; where this command writes that place itself, another --out does as well",
            ) from error
        if alone and error.errno not in _NO_LOCKS:
            raise UsageError(f"{place.parent} cannot be written to: {error.strerror}", elsewhere(place)) from error
        if alone:
            say("lock", place.name, f"no locks on this file system ({error.strerror}): start no second mmcompress here")
        yield
        return
    try:
        yield
    except _GoneError:
        raise
    except Exception as error:  # libraries have exceptions of their own for a file that is not there
        told = isinstance(error, MMCompressError) and place.parent.is_dir()
        if not alone or told or _same(handle, path):
            raise
        raise _GoneError(
            f"{place.parent} was moved or removed while this command wrote there",
            "give the command again, and leave the folder as it is until it ends",
        ) from error
    finally:
        _let_go(fcntl, path, handle)


class _GoneError(UsageError):
    """The folder of a place that was held is not there any more."""


def _taken(fcntl: Any, path: Path, alone: bool) -> IO[str]:
    """The lock's open file; taken again where the one before removed the file between opening and locking."""
    while True:
        handle = path.open("a")
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise
        if _same(handle, path):
            return handle
        handle.close()


def _let_go(fcntl: Any, path: Path, handle: IO[str]) -> None:
    """Remove the file if nobody else holds it, as a new one would not keep those away who hold the old."""
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if _same(handle, path) and not os.fstat(handle.fileno()).st_size:  # ours is empty
            path.unlink(missing_ok=True)


def _same(handle: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _fcntl() -> Any | None:
    try:
        return importlib.import_module("fcntl")
    except ImportError:  # Windows
        return None
