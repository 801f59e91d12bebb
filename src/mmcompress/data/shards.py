"""Tar shards as they are on disk or in a stream: files in order, and an error where a shard breaks.

Python's tarfile ends quietly at a damaged header, which would lose the rest of a shard without a word; here anything
but a proper end breaks the shard. The `webdataset` library opens the streams; it is not asked for local files, because
it imports torch where torch is installed. Names in a tar become keys, never paths, and nothing is unpacked.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from typing_extensions import Self

from mmcompress.data.spec import IMAGE_SUFFIXES, is_stream

MEMBER_BYTES = 256 * 2**20
"""A larger file in a tar is refused unread."""


SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", "cls")


class BrokenShardError(Exception):
    """The tar cannot be read on from here."""


class _StrictTarInfo(tarfile.TarInfo):
    """Anything but a header or a block of zeros is an error, also behind the first file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the proper end
            short = len(buf) < tarfile.BLOCKSIZE
            raise tarfile.ReadError("it ends too early" if short else f"no tar header ({error})") from error


def members(shard: str) -> Iterator[tuple[str, str, bytes | None]]:
    """(key, suffix, content) of each file; the content is None where it is not wanted or too large."""
    try:
        with _opened(shard) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictTarInfo) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                folder, slash, file = info.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not info.isreg() or not stem or not suffix or re.match(r"__[^/]*__(/|$)", info.name):
                    continue  # folders, links and WebDataset's own notes
                suffix = suffix.lower()
                content = None
                if suffix in SUFFIXES and info.size <= MEMBER_BYTES and (file_object := tar.extractfile(info)):
                    content = file_object.read()
                yield _utf8(folder + slash + stem), suffix, content
            while stream.read(2**16):  # a program that writes into a closed pipe would end with an error
                pass
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        raise BrokenShardError(str(error) or type(error).__name__) from error


def _utf8(name: str) -> str:
    """tarfile keeps undecodable bytes as lone surrogates, which no file could be written with."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def _opened(shard: str) -> Iterator[IO[bytes]]:
    if not is_stream(shard):
        with Path(shard).open("rb") as file:
            yield file
        return
    from webdataset.gopen import gopen

    stream = gopen(shard)
    try:
        # Its own read() gives up what is still in the pipe when the program has failed meanwhile.
        yield getattr(stream, "stream", stream)
    except BaseException:
        with suppress(OSError):  # the program was cut off, so its exit status says nothing
            stream.close()
        raise
    if shard != "-":
        stream.close()  # raises where the program failed
