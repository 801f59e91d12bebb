"""A folder that is swapped in whole: at any moment a place holds the old artifact, nothing, or the new one.

Beside it lies what a killed run goes on from, in a work folder of the run's key.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmcompress.errors import UsageError
from mmcompress.places import MANIFEST, why_not_ours

MARK = "draft-of-mmcompress"
"""The file beside a draft that says whose it is."""
KEY = "key"
"""The file in a work folder that says which artifact it is for."""


@dataclass(frozen=True)
class Ours:
    """How a folder that stood at a place is known as one of ours."""

    mark: str
    """The file in it that goes last where it is removed."""
    known: Callable[[Path], bool]


ARTIFACT = Ours(MANIFEST, lambda folder: why_not_ours(folder) is None)


def tidy(path: Path, ours: Ours = ARTIFACT) -> None:
    """Remove what a killed process left beside a place: its draft, and the folder that it had moved aside.

    That one is put back where the new one does not stand yet. The caller holds the place's lock.
    """
    _drop(draft_of(path))
    aside = aside_of(path)
    if _is_empty(aside):
        aside.rmdir()
    elif not aside.is_dir() or not ours.known(aside):
        return
    elif path.exists():
        _remove(aside, ours.mark)
    else:
        aside.rename(path)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove(folder: Path, mark: str) -> None:
    """Remove a folder of ours, the file that says whose it is last: what a kill leaves of it is still known as ours."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != mark:
            path.unlink()
    shutil.rmtree(folder)


def check_beside(path: Path) -> None:
    """Raise UsageError where somebody else's file or folder has a name that is needed beside a place."""
    for beside in (draft_of(path), aside_of(path)):
        if os.path.lexists(beside):
            raise UsageError(f"{beside} exists and mmcompress did not write it", "move it away, or give another --out")


@contextmanager
def drafted(path: Path, ours: Ours = ARTIFACT) -> Iterator[Path]:
    """An empty folder, to be filled and handed to `swap_in`; what is left of it at the end goes.

    It lies in a folder beside the place, with the file that says whose that is. The caller holds the place's lock.
    """
    tidy(path, ours)
    check_beside(path)
    holder = draft_of(path)
    try:
        holder.mkdir()
        (holder / MARK).touch()
        draft = holder / "draft"
        draft.mkdir()
        yield draft
    finally:
        with suppress(OSError):
            try:
                _drop(holder)
            except BaseException:  # of a signal, which came in between
                _drop(holder)
                raise


def _drop(holder: Path) -> None:
    """Remove what holds a draft, if it is ours: it has the mark, or a kill came before that."""
    if holder.is_symlink():
        return
    if (holder / MARK).is_file():
        _remove(holder, MARK)
    elif _is_empty(holder):
        holder.rmdir()


def draft_of(path: Path) -> Path:
    """What holds the draft of a place."""
    return path.with_name(f".{path.name}.tmp")


def aside_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def work_of(path: Path) -> Path:
    """Where what a killed run goes on from is kept."""
    return path.with_name(f".{path.name}.work")


def swap_in(temporary: Path, path: Path, ours: Ours = ARTIFACT) -> None:
    """Sync the folder, then swap it in: at any moment `path` is the old folder, nothing, or the new one.

    What came there since the place was checked is looked at again: raises UsageError, and leaves it, where it is not
    ours.
    """
    for item in temporary.rglob("*"):
        _sync(item)
    _sync(temporary)
    if os.path.lexists(path):
        aside = aside_of(path)
        path.rename(aside)
        try:
            if aside.is_symlink() or not (_is_empty(aside) or ours.known(aside)):
                raise UsageError(
                    f"{path} was changed while this ran and holds what mmcompress did not write, so it stays as it is",
                    "move that away, and give the command again; or give another --out",
                )
            temporary.rename(path)
        except BaseException:
            if not os.path.lexists(path):
                aside.rename(path)
            raise
        _remove(aside, ours.mark)
    else:
        temporary.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_work_of(work: Path, key: str) -> None:
    """Keep the resume state of the same key; drop any other. A folder of that name without a key is not ours."""
    mark = work / KEY
    if mark.is_file() and mark.read_text() == key:
        return
    if work.exists() and not (mark.is_file() or _is_empty(work)):  # an empty one is of a run that was killed here
        raise UsageError(f"{work} exists and mmcompress did not write it", "move it away, or give another --out")
    if mark.is_file():
        _remove(work, KEY)
    work.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)


def drop_work_of(work: Path, key: str) -> None:
    """Remove what a run of this key went on from, now that its artifact stands; what is of another run stays."""
    mark = work / KEY
    if mark.is_file() and mark.read_text() == key:
        _remove(work, KEY)
    elif _is_empty(work):
        work.rmdir()


@contextmanager
def working(work: Path, key: str) -> Iterator[None]:
    """The folder of what a run goes on from: gone when its artifact stands, and where nothing is in it yet."""
    stands = False
    try:
        keep_work_of(work, key)
        yield
        stands = True
        drop_work_of(work, key)
    except BaseException:  # of a signal, too, which may come while it goes
        if stands:
            drop_work_of(work, key)
        elif work.is_dir() and all(path.is_dir() or path == work / KEY for path in work.rglob("*")):
            shutil.rmtree(work, ignore_errors=True)
        raise


def link(source: Path, place: Path) -> None:
    """Give a file a second name, or a copy where the file system has one name a file."""
    try:
        os.link(source, place)
    except OSError:
        partial = place.with_name(f".{place.name}")
        shutil.copyfile(source, partial)
        partial.replace(place)
