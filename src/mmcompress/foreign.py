"""Code that is not ours: whose a file is, and what its exceptions become.

A model may bring Python of its own, and a teacher may be a function of the user's. Whatever that raises is nobody's bug
but its author's, so it ends as an error that names the author's file and line, and not as a traceback through ours.
"""

from __future__ import annotations

import functools
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from mmcompress.errors import MMCompressError, UsageError
from mmcompress.wrong import first_wrong

_PACKAGES = {"site-packages", "dist-packages"}
_SYSTEM = ("/proc", "/sys", "/dev")
SHARED_MEMORY = "/dev/shm"
"""A file system that holds files as any other does, below one that holds none."""


def in_environment(path: Path) -> bool:
    """Whether a file belongs to Python, to an installed package, or to no disk."""
    return is_standard(path) or is_installed(path) or _is_of_system(path.resolve())


def _is_of_system(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _SYSTEM) and not path.is_relative_to(SHARED_MEMORY)


def is_standard(path: Path) -> bool:
    """Whether a file is of Python's own library."""
    return str(path).startswith("<frozen") or (_is_below(path, "stdlib", "platstdlib") and not is_installed(path))


def is_installed(path: Path) -> bool:
    """Whether a file is of an installed package."""
    return not _PACKAGES.isdisjoint(path.parts) or _is_below(path, "purelib", "platlib")


def _is_below(path: Path, *names: str) -> bool:
    return any(path.resolve().is_relative_to(_place(name)) for name in names)


@functools.cache
def _place(name: str) -> Path:
    return Path(sysconfig.get_path(name)).resolve()


def place_of(error: BaseException) -> str:
    """`FILE, line N` of the last foreign code that an exception went through; nothing where it met none.

    Where a library put it into an exception of its own, the one behind that counts.
    """
    seen: BaseException | None = error
    while seen is not None:
        own = [
            f"{frame.f_code.co_filename}, line {line}"
            for frame, line in traceback.walk_tb(seen.__traceback__)
            if is_foreign(frame.f_code.co_filename, str(frame.f_globals.get("__name__")))
        ]
        if own:
            return own[-1]
        seen = seen.__cause__ or seen.__context__
    return ""


def is_foreign(file: str, module: str) -> bool:
    """Whether code is neither ours nor of the Python environment."""
    return module.split(".")[0] != "mmcompress" and Path(file).is_file() and not in_environment(Path(file))


def said(error: BaseException) -> str:
    """Its type and its first line, with the next where that one ends in a colon; some go on for a page. Of values that
    are checked by pydantic, the first that is wrong."""
    if isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error.title}{first_wrong(error)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = lines[:2] if lines and lines[0].endswith(":") else lines[:1]
    return f"{type(error).__name__}: {' '.join(shown)}"


@contextmanager
def foreign_code(what: str, hint: str, kind: type[MMCompressError] = UsageError, file: str = "") -> Iterator[None]:
    """Whatever is raised inside becomes an error of a kind: that `what` failed, in which foreign line, and how.

    `file` is named where it met no such line. An exit counts too, since it would pass for our own end, and so
    does a cancellation. The user's interrupt does not, nor does the end of a generator of ours.
    """
    try:
        yield
    except (MMCompressError, KeyboardInterrupt):
        raise
    except BaseException as error:
        place = place_of(error)
        if isinstance(error, GeneratorExit) and not place:
            raise
        place = place or file
        raise kind(f"{what} failed{f' in {place}' if place else ''}: {said(error)}", hint) from error
