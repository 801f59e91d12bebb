"""Tar shards as they are on disk or in a stream: files in order, and an error where a shard breaks.

Python's tarfile ends quietly at a damaged header, which would lose the rest of a shard without a word; here anything
but a proper end breaks the shard. Plain headers, which are nearly all, are read by hand, as tarfile takes ten times as
long; the first that is not plain is tarfile's, and so is every error. Addresses are read by `remote.py`. The
`webdataset` library runs commands and opens stdin; it is not asked for files, because it imports torch where torch is
installed. Names in a tar become keys, never paths, and nothing is unpacked.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from typing_extensions import Self

from mmcompress.data.remote import opened
from mmcompress.data.spec import IMAGE_SUFFIXES, STDIN, is_address, is_stream
from mmcompress.datakeys import KNOWN, Keys

MEMBER_BYTES = 256 * 2**20
"""A larger image is refused unread."""
TEXT_BYTES = 2**20
"""A larger text is, and what is said of one image in all: a tokenizer takes 150 times as much to read it."""
_JSON_BYTES = 16 * 2**20
_HEADER_BYTES = 2**20
"""Of a tar's extended header, whose records tarfile holds several times."""


SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", "cls", "syn.json")
_NOTES = re.compile(r"__[^/]*__(/|$)")
"""WebDataset's own notes."""
_BLOCK = tarfile.BLOCKSIZE
_MOST_PAX = 4096
_OCTAL = re.compile(rb"[0-7 \0]*")
_TIMES = re.compile(rb"(\d+ [acm]time=[\d.]+\n)+")


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

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """What tarfile asks of a header that it has read; one that is none of a file has its content read at once."""
        if not (self.isreg() or self.size <= _HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {self.size >> 20} MiB")
        processed: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return processed


class Member(NamedTuple):
    """A file of a shard."""

    key: str
    suffix: str
    content: bytes | None
    """None where it is not wanted or too large."""
    offset: int
    """Where the content begins in the tar, which for a compressed one is not where it begins in the shard."""


def members(shard: str, wanted: Collection[str] = SUFFIXES, keys: Keys = KNOWN) -> Iterator[Member]:
    """The files of a shard that can belong to samples, in order, with the contents of those with a wanted suffix, or
    with one of the keys that the set is read by.

    BrokenShardError where it cannot be read on.
    """
    wanted = (*wanted, *(key.lower() for key in (*keys.images, *keys.texts)))
    try:
        with _opened(shard) as stream:
            begin = 0
            if not is_stream(shard):
                begin = yield from _plain_members(stream, wanted, keys)
                stream.seek(begin)
            yield from _any_members(stream, begin, wanted, keys)
            while stream.read(2**16):  # a program that writes into a closed pipe would end with an error
                pass
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        raise BrokenShardError(str(error) or type(error).__name__) from error


def _plain_members(
    stream: IO[bytes], wanted: Collection[str] = SUFFIXES, keys: Keys = KNOWN
) -> Generator[Member, None, int]:
    """Files up to the first thing that is no plain one (POSIX.1-1988 ustar), whose offset is returned.

    That may be the end, damage, a long name or compression: tarfile says which. Before a file may stand an extended
    header (POSIX.1-2001, pax) that says nothing but times, as writers of shards set one before each.
    """
    at, last = 0, stream.seek(0, io.SEEK_END)
    stream.seek(0)
    while True:
        header, offset = stream.read(_BLOCK), at + _BLOCK
        if header[156:157] == b"x" and (length := _plain_size(header)) is not None and length <= _MOST_PAX:
            records, padding = stream.read(length), -length % _BLOCK
            if not _TIMES.fullmatch(records):
                return at
            stream.read(padding)
            header, offset = stream.read(_BLOCK), offset + length + padding + _BLOCK
        size = _plain_size(header)
        if size is None or header[156:157] != b"0" or header[345]:
            return at
        name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        content, end = None, offset + size + -size % _BLOCK
        if end > last:
            return at
        if (named := _key_and_suffix(name, wanted, keys)) and named[1] in wanted and size <= largest(named[1], keys):
            content = stream.read(size)
        stream.seek(end)
        if named:
            yield Member(*named, content, offset)
        at = end


def _plain_size(header: bytes) -> int | None:
    """The size that a header states; None for one that is not whole, or has more than octal numbers."""
    if len(header) < _BLOCK or header[257:262] != b"ustar" or not _OCTAL.fullmatch(header[100:156] + header[329:345]):
        return None
    try:
        stated, size = (int(header[a:b].partition(b"\0")[0], 8) for a, b in ((148, 156), (124, 136)))
    except ValueError:
        return None
    return size if stated == sum(header) - sum(header[148:156]) + 8 * ord(" ") else None


def _any_members(
    stream: IO[bytes], begin: int, wanted: Collection[str] = SUFFIXES, keys: Keys = KNOWN
) -> Iterator[Member]:
    """Files of any tar, in the words of Python's tarfile where it breaks. `begin` is where the stream stands."""
    with tarfile.open(fileobj=stream, mode="r|" if begin else "r|*", tarinfo=_StrictTarInfo) as tar:
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            if not info.isreg() or not (named := _key_and_suffix(info.name, wanted, keys)):
                continue
            content = None
            wanted_here = named[1] in wanted and info.size <= largest(named[1], keys)
            if wanted_here and (file_object := tar.extractfile(info)):
                content = file_object.read()
            yield Member(*named, content, begin + info.offset_data)


def largest(suffix: str, keys: Keys = KNOWN) -> int:
    """Bytes of a file of a sample; a larger one is refused unread."""
    if suffix in IMAGE_SUFFIXES or suffix in map(str.lower, keys.images):
        return MEMBER_BYTES
    return _JSON_BYTES if suffix.endswith("json") else TEXT_BYTES


def _key_and_suffix(name: str, wanted: Collection[str] = SUFFIXES, keys: Keys = KNOWN) -> tuple[str, str] | None:
    """The name up to the first dot of its last part, and the rest; None for what belongs to no sample.

    Up to the last dot where the keys say so, but for kinds of files that have a dot themselves.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    if keys.last_dot and stem and suffix:
        ends = (kind for kind in wanted if "." in kind and file.lower().endswith(f".{kind}"))
        suffix = next(ends, file.rpartition(".")[2])
        stem = file[: -len(suffix) - 1]
    if not stem or not suffix or _NOTES.match(name):
        return None
    return _utf8(folder + slash + stem), suffix.lower()


def _utf8(name: str) -> str:
    """tarfile keeps undecodable bytes as lone surrogates, which no file could be written with."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def _opened(shard: str) -> Iterator[IO[bytes]]:
    if not is_stream(shard):
        with Path(shard).open("rb", buffering=2**20) as file:
            yield file
        return
    if is_address(shard):
        with opened(shard) as remote:
            yield remote
        return
    from webdataset.gopen import gopen

    stream = gopen(shard)
    try:
        # Its own read() gives up what is still in the pipe when the program has failed meanwhile.
        yield getattr(stream, "stream", stream)
    except (tarfile.TarError, OSError, EOFError):
        if shard != STDIN and not stream.stream.read(1):  # all that the program had to say: what follows from its end
            _close(stream)
        with suppress(OSError):
            stream.close()
        raise
    except BaseException:
        with suppress(OSError):  # the program was cut off, so its exit status says nothing
            stream.close()
        raise
    if shard == STDIN:
        return
    _close(stream)


def _close(program: Any) -> None:
    """Raise OSError where the program of a pipe failed: webdataset's has the arguments of subprocess for a message."""
    try:
        program.close()
    except OSError as error:
        raise OSError(f"its program failed with exit {program.status}") from error
