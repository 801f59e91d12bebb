"""Shards of object stores and web servers, through fsspec: `s3://`, `gs://`, `hf://`, `https://` and all that it knows.

A shard is read from its begin to its end, some megabytes ahead. Where a connection breaks it is opened again at the
byte that is next, up to `len(PAUSES_S)` times in a row; a shard that is another one by then is an error. Credentials,
endpoints and timeouts are fsspec's own to configure. With `cached:` before its address a shard is fetched once, whole,
into the cache folder; from then on it is a local one, with an index and reads at offsets. An address stands for one
content, so the store is not asked again for what was fetched.

Left out: reads of single samples at offsets of a store. Each would wait for an answer of some ten milliseconds, where
a shard in a row comes at the speed of the line.
"""

from __future__ import annotations

import hashlib
import io
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from mmcompress.drafts import written_whole
from mmcompress.errors import MissingRequirementError, UsageError, require
from mmcompress.places import CACHE, cache_folder

CACHED = "cached:"
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before each new try."""
BLOCK_BYTES = 4 * 2**20
_BLOCKS = 4
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""What a new try does not change."""
_BUSY = (408, 425, 429)
"""Of HTTP's 4xx those that a new try may change."""
_VERSION = ("size", "ETag", "etag", "mtime", "LastModified", "updated", "blob_id")
"""What stores say of a file that changes with its content."""


def is_cached(place: str) -> bool:
    """Whether a remote shard is to be kept in the cache folder."""
    return place.startswith(CACHED)


def check_scheme(place: str) -> None:
    """MissingRequirementError where the package for a store is not installed, UsageError for an unknown scheme."""
    url = place.removeprefix(CACHED)
    scheme = url.partition("://")[0]
    try:
        require("fsspec", "remote").get_filesystem_class(scheme)
    except ImportError as error:
        raise MissingRequirementError(
            f"{url} needs a Python package that is not installed: {error}", "pip install 'mmcompress[remote]'"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{place}: fsspec knows no {scheme}://", "give an address that begins with s3://, gs://, hf:// or https://"
        ) from error


class UnreachableError(OSError):
    """A file of a store cannot be read, or not read on."""


class ChangedError(UnreachableError):
    """A file is not the one any more that reading began with."""


class RemoteFile(io.RawIOBase):
    """A file of a store, read forward; see the module. Raises UnreachableError where it cannot be read on."""

    def __init__(self, url: str) -> None:
        check_scheme(url)
        self._url, self._at = url, 0
        self._file: Any = None
        self._in_a_row = False
        """Whether its server answers with whole files only."""
        self._version: dict[str, Any] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Up to a block; 0 at the end."""
        view = memoryview(buffer)
        content = self._read(min(len(view), BLOCK_BYTES))
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _read(self, size: int) -> bytes:
        for pause in (*PAUSES_S, None):
            try:
                if self._file is None:
                    self._open()
                content: bytes = self._file.read(size)
                whole = (self._version or {}).get("size")
                if not content and whole is not None and self._at < whole:
                    raise OSError(f"it ends after {self._at} of {whole} bytes")
                return content
            except Exception as error:  # each store has its own
                if _is_final(error):
                    raise UnreachableError(f"{self._url}: {_said(error)}") from error
                self._drop()
                if isinstance(error, ValueError) and self._url.startswith("http") and not self._in_a_row:
                    self._in_a_row = True
                    pause = 0.0
                if pause is None:
                    raise UnreachableError(f"{self._url}: {_said(error)}") from error
                time.sleep(pause)
        raise AssertionError

    def _open(self) -> None:
        system, path = require("fsspec", "remote").core.url_to_fs(self._url)
        if self._version is not None:
            system.invalidate_cache()
        said = system.info(path)
        version = {name: said[name] for name in _VERSION if said.get(name) is not None}
        if self._version is not None and version != self._version:
            raise ChangedError("it has changed while it was read")
        self._version = version
        ahead = {"block_size": BLOCK_BYTES, "cache_type": "background", "cache_options": {"maxblocks": _BLOCKS}}
        self._file = system.open(path, "rb", **({"block_size": 0} if self._in_a_row else ahead))
        if self._at and self._in_a_row:
            _pass_over(self._file, self._at)
        elif self._at:
            self._file.seek(self._at)

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
            self._file = None

    def close(self) -> None:
        self._drop()
        super().close()


def _is_final(error: Exception) -> bool:
    """Whether a new try changes nothing. fsspec calls a web file not found whatever its server said, and where it has
    not answered at all: what happened is the cause.
    """
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return isinstance(error, (*_FINAL, ChangedError))
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _BUSY
    return isinstance(cause, _FINAL)


def _said(error: Exception) -> str:
    """What happened, in the words of whoever met it."""
    met = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    return str(met) or type(met).__name__


def _pass_over(file: Any, count: int) -> None:
    while count > 0:
        if not (content := file.read(min(count, BLOCK_BYTES))):
            raise OSError("it ends too early")
        count -= len(content)


def opened(url: str) -> io.BufferedReader:
    """A remote shard as a stream."""
    return io.BufferedReader(RemoteFile(url), BLOCK_BYTES)


def at_hand(place: str) -> str:
    """Where a shard is read: of a `cached:` one its copy in the cache folder, which is fetched if it is not there.

    UnreachableError where it cannot be fetched; UsageError where it cannot be kept.
    """
    if not is_cached(place):
        return place
    url = place.removeprefix(CACHED)
    folder = cache_folder() / "shards" / hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
    copy = folder / Path(url.partition("?")[0]).name
    if copy.is_file():
        return str(copy)
    try:
        with opened(url) as stream:
            blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
            first = next(blocks, b"")
            with written_whole(copy) as target:  # others may fetch it too
                target.write(first)
                target.writelines(blocks)
    except UnreachableError:
        raise
    except OSError as error:
        raise UsageError(
            f"{url} cannot be kept in {folder}: {error.strerror}",
            f"set {CACHE} to a folder with room, or leave `{CACHED}` out to read it anew in every pass",
        ) from error
    return str(copy)
