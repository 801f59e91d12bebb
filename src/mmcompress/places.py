"""Where an artifact may be written: an empty place, or one that holds an artifact of ours and nothing else.

Writing replaces what is there, so this decides what mmcompress may delete. It looks at what a folder holds and never at
its name alone: many programs keep a `manifest.json`, and people put notes beside files that a program made. An input is
never the place of an output, nor above or below it. All of this is known before a stage runs, and checked there. What
nobody gave a place goes into one cache folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmcompress.drafts import SUFFIX
from mmcompress.errors import UsageError
from mmcompress.home import expanded, is_known
from mmcompress.strictjson import json_from_text

MANIFEST = "manifest.json"
CACHE = "MMCOMPRESS_CACHE"
"""The environment variable that says where the cache folder is."""
LONGEST_NAME = 224
"""Bytes of a name that an artifact may have: file systems allow 255, and drafts, work folders and locks get longer."""
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_KEYS = frozenset({"schema", "kind", "stage", "key", "files", "digest", "seal"})
_LEFT_BY_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_ELSEWHERE = "give another --out, or move it away"


def cache_folder() -> Path:
    """Where what can be made again is kept from run to run: MMCOMPRESS_CACHE, else `mmcompress` in the user's cache.

    Raises UsageError where that is in a home folder that nobody knows.
    """
    said = os.environ.get(CACHE) or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/mmcompress"
    if not is_known(said):
        raise UsageError(
            f"the cache folder {said} cannot be: there is no such home folder, or HOME is not set",
            f"set {CACHE} to a folder that may be written to",
        )
    return expanded(said)


def elsewhere(place: Path) -> str:
    """What to do where a place cannot be: what nobody gave a place lies in the cache folder."""
    cached = place.resolve().is_relative_to(cache_folder().resolve())
    return f"set {CACHE} to another folder" if cached else "give another --out"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """A disk that is full, or that nobody may write to, becomes a UsageError that names the place.

    Libraries put what the system said into exceptions of their own, so their words are looked at too.
    """
    try:
        yield
    except Exception as error:
        if (said := _unwritable(error) or _no_such(error, place)) is None:
            raise
        raise UsageError(f"{place} cannot be written: {said}", f"make room there, or {elsewhere(place)}") from error


@contextmanager
def inside_folders(*places: Path) -> Iterator[None]:
    """Make the folders that places lie in; those that were made go again, where nothing is in them when work fails."""
    made: list[Path] = []
    try:
        for place in places:
            folder = place.absolute().parent
            made += [path for path in (folder, *folder.parents) if not path.exists() and path not in made]
            with writing(place):
                folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in sorted(made, key=lambda path: -len(path.parts)):
            with suppress(OSError):  # something was put there, or it is not there
                path.rmdir()
        raise


@contextmanager
def writing_file(path: Path) -> Iterator[None]:
    """Make room for a file that a user named, and turn whatever the system says of it into a UsageError."""
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise UsageError(f"{path} cannot be written: {said}", "make room there, or give another place") from error


def disk_error(error: OSError) -> UsageError | None:
    """What to tell of a disk that is full or read-only, wherever that came up; None of any other error, a bug's say."""
    if (said := _unwritable(error)) is None:
        return None
    place = error.filename or "the output, or a file that it needs,"
    hint = f"make room; the cache lies in {cache_folder()} ({CACHE} moves it), other files in TMPDIR"
    return UsageError(f"{place} cannot be written: {said}", hint)


def _no_such(error: BaseException, place: Path) -> str | None:
    """What the system says where it makes no folders and no files, in /proc say."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | Path):
        return None
    made = Path(error.filename).absolute()
    ours = made in (place.absolute(), *place.absolute().parents) or made.suffix == SUFFIX
    return error.strerror if ours else None


def _unwritable(error: BaseException | None) -> str | None:
    """What the system said of the disk, of an exception or of one behind it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            return os.strerror(error.errno)
        if (said := next((said for said in map(os.strerror, _NOT_WRITABLE) if said in str(error)), None)) is not None:
            return said
        error = error.__cause__ or error.__context__
    return None


def check_place(out: Path, inputs: Iterable[Path] = (), stage: str | None = None) -> None:
    """Raise UsageError unless an artifact may be written to `out`, which `stage` makes from `inputs`.

    It replaces what the same stage made: a checkpoint must not go because its name was given to an export.
    """
    check_name(out)
    if out.is_symlink():
        raise UsageError(f"{out} is a link, and an artifact replaces the whole of a folder", f"give {out.resolve()}")
    if not out.name or out.name == "..":
        raise UsageError(f"{str(out)!r} has no name that an artifact could get", "give a folder: --out NAME")
    check_apart(out, inputs)
    if out.is_dir() and any(out.iterdir()):
        if why := why_not_ours(out):
            raise UsageError(f"{out} exists and {why}, so it is not overwritten", _ELSEWHERE)
        if stage is not None and (other := _body(out)["stage"]) != stage:
            raise UsageError(f"{out} holds what {other} made, and {stage} would replace it", _ELSEWHERE)
    if not (above := next(path for path in out.resolve().parents if path.exists())).is_dir():
        raise UsageError(f"{out} lies below {above}, which is no folder", elsewhere(out))
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} exists and is no folder, so it is not overwritten", _ELSEWHERE)


def check_name(out: Path) -> None:
    """Raise UsageError for a path that no folder can have: the system says so only when the work is done."""
    if out.parts[:1] and out.parts[0].startswith("~"):
        hint = f"there is no such user; a folder of that name is ./{out}"
        raise UsageError(f"{out} begins with {out.parts[0]}, which the shell left as it is", hint)
    if "\0" in str(out):
        raise UsageError(f"{str(out)!r} has a zero byte, and no path may", "give another --out")
    for part in out.parts:
        if (length := len(os.fsencode(part))) > LONGEST_NAME:
            raise UsageError(
                f"the name {part[:20]}… has {length} bytes, and {LONGEST_NAME} are possible: a draft's name is longer",
                "give a shorter --out",
            )


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise UsageError where `out` is one of the inputs, or lies above or below one."""
    real = out.resolve()
    for path in inputs:
        source = path.resolve()
        if real == source or real in source.parents or source in real.parents:
            where = "is" if real == source else "lies above" if real in source.parents else "lies below"
            raise UsageError(f"{out} {where} {path}, which is read to make it", "give another --out")


def _body(folder: Path) -> Any:
    return json_from_text((folder / MANIFEST).read_bytes())


def why_not_ours(folder: Path) -> str | None:
    """None where a folder holds an artifact of ours and nothing else, damaged or not; else what speaks against it."""
    try:
        body = _body(folder)
    except FileNotFoundError:
        return "is not an artifact of mmcompress"
    except (OSError, ValueError):
        return f"its {MANIFEST} cannot be read"
    if not isinstance(body, dict) or not body.keys() >= _KEYS or not isinstance(body["files"], dict):
        return f"its {MANIFEST} is not one that mmcompress wrote"
    listed = {MANIFEST, *body["files"]}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in listed and path.name not in _LEFT_BY_SYSTEMS:
            return f"holds {name!r}, which mmcompress did not write"
    return None
