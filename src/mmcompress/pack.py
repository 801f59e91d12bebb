"""Packs: an artifact as one file, `model.mmc`, to be handed on.

A pack is a plain tar, which every system can list and open, of `manifest.json` and then the files that it names, in its
order. No byte of it is a choice: each header is a function of a name and a size, so two packs of one artifact are the
same, and the reader takes nothing but the bytes that the writer would have written. Links, devices, names that come
twice or are in no manifest cannot be said in it; the names that the manifest has are checked for every system. Nothing
is compressed, so a pack is as large as what it holds, and what it claims is compared with its size before it is read.
Everything is verified before a byte is written, and again as it is written. Rejected: zip, which says the name and size
of a file in two places that may differ.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from mmcompress.artifact import Artifact, manifest_from_bytes, read_manifest
from mmcompress.drafts import written_whole
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.lock import locked
from mmcompress.manifest import Manifest
from mmcompress.places import MANIFEST, check_apart, check_name, check_place, inside_folders, writing
from mmcompress.publish import drafted, swap_in, tidy

SUFFIX = ".mmc"
MANIFEST_LIMIT = 64 << 20
"""Bytes of the largest manifest that is read; those of the largest data sets have a few MB."""
NAME_LIMIT = 255
"""Bytes of one name in the file systems of Linux and macOS; Windows counts as many characters."""
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_PIECE = 1 << 20
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
_AGAIN = "get it again, or pack the artifact again: mmcompress pack ARTIFACT"


def pack(folder: Path, out: Path) -> Manifest:
    """Write the artifact in a folder as one file; what is at `out` is replaced if it is a pack.

    Raises UsageError for a place that is not ours, CorruptInputError for an artifact that is damaged.
    """
    check_name(out)
    with locked(out, reading=[folder]):
        artifact = Artifact.open(folder)
        _check_names(artifact.manifest, folder)
        check_apart(out, [folder])
        _check_replaceable(out)
        with writing(out), written_whole(out) as stream:
            content = (folder / MANIFEST).read_bytes()
            stream.write(_header(MANIFEST, len(content)) + content + _padding(len(content)))
            for name, entry in artifact.manifest.files.items():
                stream.write(_header(name, entry.bytes))
                with artifact.file(name).open("rb") as source:
                    _take(source, entry.bytes, entry.sha256, artifact.file(name), stream)
                stream.write(_padding(entry.bytes))
            stream.write(_END)
            stream.flush()
            os.fsync(stream.fileno())
    return artifact.manifest


def unpack(path: Path, out: Path) -> Artifact:
    """The artifact of a pack as a folder at `out`, whole or not at all; the same one that is there already is left.

    Raises UsageError for what is no pack, CorruptInputError for one that is damaged or not as we write them.
    """
    with opened(path) as (stream, manifest):
        check_place(out, [path], manifest.stage)
        with inside_folders(out), locked(out), writing(out):
            return _unpacked(stream, manifest, path, out)


def _unpacked(stream: IO[bytes], manifest: Manifest, path: Path, out: Path) -> Artifact:
    tidy(out)
    if (out / MANIFEST).is_file() and read_manifest(out / MANIFEST).compute_seal() == manifest.compute_seal():
        return Artifact.open(out)
    _check_room(manifest, out)
    with drafted(out) as draft:
        stream.seek(0)
        (draft / MANIFEST).write_bytes(_read_manifest_bytes(stream, path))
        for name, entry in manifest.files.items():
            stream.seek(len(_header(name, entry.bytes)), os.SEEK_CUR)
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            with (draft / name).open("xb") as target:
                _take(stream, entry.bytes, entry.sha256, path, target)
            stream.seek(len(_padding(entry.bytes)), os.SEEK_CUR)
        swap_in(draft, out)
    return Artifact.open(out)


def read_pack(path: Path) -> Manifest:
    """What the artifact in a pack says of itself, after every byte of the pack was verified."""
    with opened(path) as (_, manifest):
        return manifest


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], Manifest]]:
    """A pack whose every byte was verified, and its manifest."""
    if not path.is_file():
        lacks = "it is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(f"{path} is not a pack: {lacks}", "give a file that `mmcompress pack ARTIFACT` wrote")
    with path.open("rb") as stream:
        content = _read_manifest_bytes(stream, path)
        manifest = manifest_from_bytes(content, f"{MANIFEST} of {path}", _AGAIN)
        _check_names(manifest, path)
        sizes = {MANIFEST: len(content)} | {name: entry.bytes for name, entry in manifest.files.items()}
        if any(size < 0 for size in sizes.values()):
            raise CorruptInputError(f"{path} claims a file of less than no bytes", _AGAIN)
        claimed = sum(len(_header(name, size)) + size + len(_padding(size)) for name, size in sizes.items()) + len(_END)
        if (size := os.fstat(stream.fileno()).st_size) != claimed:
            raise CorruptInputError(f"{path} has {size:,} bytes, and its manifest says {claimed:,}", _AGAIN)
        for name, entry in manifest.files.items():
            _expect(stream, _header(name, entry.bytes), path, f"the header of {name!r}")
            _take(stream, entry.bytes, entry.sha256, path)
            _expect(stream, _padding(entry.bytes), path, f"what fills up {name!r}")
        _expect(stream, _END, path, "its end")
        yield stream, manifest


def _read_manifest_bytes(stream: IO[bytes], path: Path) -> bytes:
    """What stands first; the stream is then at the second file."""
    header = stream.read(_BLOCK)
    try:
        size = tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
        ours = 0 < size <= MANIFEST_LIMIT and header == _header(MANIFEST, size)
    except (tarfile.HeaderError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise UsageError(f"{path} is not a pack: it does not begin with a {MANIFEST}", f"give one, *{SUFFIX}")
    content = stream.read(size)
    if len(content) != size:
        raise CorruptInputError(f"{path} ends within its {MANIFEST}", _AGAIN)
    _expect(stream, _padding(size), path, f"what fills up its {MANIFEST}")
    return content


def _header(name: str, size: int) -> bytes:
    """Of a file that everybody may read, as old as time; a name that is long and a size past 8 GiB take more blocks."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _expect(stream: IO[bytes], expected: bytes, path: Path, what: str) -> None:
    if stream.read(len(expected)) != expected:
        raise CorruptInputError(f"{path} is not as mmcompress writes packs: {what} differs", _AGAIN)


def _take(stream: IO[bytes], size: int, sha256: str, path: Path, target: IO[bytes] | None = None) -> None:
    """Read a file's bytes, to the target if there is one; CorruptInputError unless they are those of the digest."""
    digest, left = hashlib.sha256(), size
    while left and (piece := stream.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)
        if target is not None:
            target.write(piece)
    if left or digest.hexdigest() != sha256:
        raise CorruptInputError(f"{path} is damaged: expected {size} bytes with SHA-256 {sha256[:12]}…", _AGAIN)


def _check_names(manifest: Manifest, path: Path) -> None:
    """Raise CorruptInputError for names that mean another place, or the same one twice, on some system."""
    spelled = {_folded(MANIFEST): MANIFEST}
    files = set(spelled)
    for name in manifest.files:
        if why := _unfit(name):
            raise CorruptInputError(f"{path} has a file {name!r}: {why}", "do not use it")
        above = [parent.as_posix() for parent in PurePosixPath(name).parents if parent.name]
        clashing = [f for f in above if _folded(f) in files or spelled.setdefault(_folded(f), f) != f]
        clashing += [name] if _folded(name) in spelled else []
        if clashing:
            other = spelled[_folded(clashing[0])]
            raise CorruptInputError(f"{path} has {name!r} beside {other!r}: one place on some systems", "do not use it")
        files.add(_folded(name))
        spelled[_folded(name)] = name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _unfit(name: str) -> str | None:
    """Why a name in a manifest is no path below its folder on every system; None where it is one."""
    if any(ord(character) < 32 or character in '\\:*?"<>|\x7f' for character in name):
        return "it has a character that not every system takes in a name"
    for part in name.split("/"):
        if len(part.encode()) > NAME_LIMIT:
            return f"it has a name of more than {NAME_LIMIT} bytes, which no common system takes"
        if part in ("", ".", ".."):
            return "it is no path below the folder"
        if part.endswith((".", " ")) or part.partition(".")[0].rstrip().casefold() in _DEVICES:
            return f"{part!r} is another name, or a device, on Windows"
    return None


def _check_replaceable(out: Path) -> None:
    """Raise UsageError where something stands at a pack's place that is none."""
    if out.is_symlink() or out.is_dir():
        raise UsageError(
            f"{out} is a {'link' if out.is_symlink() else 'folder'}, and a pack is a file", "give another -o"
        )
    if out.is_file() and out.stat().st_size:
        with out.open("rb") as stream:
            try:
                _read_manifest_bytes(stream, out)
            except (UsageError, CorruptInputError) as error:
                raise UsageError(f"{out} exists and is no pack, so it is not overwritten", "give another -o") from error


def _check_room(manifest: Manifest, out: Path) -> None:
    above = next(parent for parent in out.resolve().parents if parent.exists())
    needed, free = sum(entry.bytes for entry in manifest.files.values()), shutil.disk_usage(above).free
    if needed > free:
        raise UsageError(
            f"{out} would take {needed:,} bytes, and {above} has {free:,} left", "free some, or give another --out"
        )
