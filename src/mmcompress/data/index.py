"""An index a shard: what samples it holds and where, what is damaged in it, read once and kept in the cache folder.

With it the order of an epoch, a count, a check of every caption and a resume in the middle read no shard, and the image
of any sample is one read at an offset. An index is of a shard's content, by its SHA-256: a shard that was moved has one
already, one that changed has none yet, and of a data set that grows only the new shards are read.

A file of numpy arrays, compressed, with the texts as JSON in UTF-8; 10,000 samples take some hundred kB and ten
milliseconds. It is written whole, under another name first, and a file that cannot be read is made again. An index is
made by the reader itself (`parsing.py`), so that reading by it gives the same samples and the same words for damage. An
offset is kept only where the image was found at it: in a compressed shard there is none, and it is read from its begin.
"""

from __future__ import annotations

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmcompress.data.layout import is_retrieval, numbered_classes
from mmcompress.data.parsing import Damage, Meaning, parsed
from mmcompress.data.sample import MARK_BYTES, Sample
from mmcompress.data.spec import is_stream
from mmcompress.datakeys import KNOWN, Keys
from mmcompress.digests import Identity, identity_of, sha256_of
from mmcompress.drafts import written_whole
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import hash_json
from mmcompress.places import CACHE, cache_folder
from mmcompress.progress import console
from mmcompress.strictjson import json_from_text, text_from_json

FORMAT = 4
"""Of the files; part of their names, so that a later version makes its own."""
_NO_INDEX = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Index:
    """What a shard holds: N samples, and damage between them."""

    images: NDArray[np.int64]
    """(N, 2): the offset of each image file in the shard, and its size; -1 where it is not at an offset."""
    marks: NDArray[np.uint8]
    """(N, MARK_BYTES), see `sample.mark_of`."""
    texts: bytes
    """JSON: `keys`, `captions`, `labels` and `seen`, a value a sample."""
    damages: bytes
    """JSON: a list of [samples before it, key or null, reason]."""

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def said(self) -> dict[str, list[Any]]:
        """The texts as lists, by name."""
        said: dict[str, list[Any]] = json_from_text(self.texts)
        return said

    @functools.cached_property
    def damage(self) -> list[tuple[int, Damage]]:
        """The samples before it, and what cannot be read."""
        return [(before, Damage(key, reason)) for before, key, reason in json_from_text(self.damages)]

    @property
    def seekable(self) -> bool:
        """Whether every image is found at an offset."""
        return bool((self.images >= 0).all())


@dataclass(frozen=True)
class IndexedShard:
    """A shard at its place, with the name that its keys begin with."""

    place: Path
    name: str
    index: Index
    identity: Identity
    """Of the file that the index is of."""
    made: bool
    """Whether the shard was read for it now."""


class Reference(NamedTuple):
    """A sample that an index lists; nothing of it has been read."""

    shard: IndexedShard
    row: int

    @property
    def key(self) -> str:
        return f"{self.shard.name}/{self.shard.index.said['keys'][self.row]}"

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(self.shard.index.said["captions"][self.row])

    @property
    def label(self) -> str | None:
        label: str | None = self.shard.index.said["labels"][self.row]
        return label

    @property
    def seen(self) -> bool:
        return bool(self.shard.index.said["seen"][self.row])

    @property
    def mark(self) -> bytes:
        return bytes(self.shard.index.marks[self.row])

    def stored(self) -> bytes:
        """Read the image file's bytes. OSError where that fails, CorruptInputError for a shard that has changed."""
        place, (offset, size) = self.shard.place, self.shard.index.images[self.row].tolist()
        with place.open("rb", buffering=0) as stream:
            stat = os.fstat(stream.fileno())
            if (stat.st_size, stat.st_mtime_ns) != self.shard.identity[:2]:
                raise CorruptInputError(f"{place} has changed while it was in use", "run the command again")
            stream.seek(offset)
            content = stream.read(size)
        if len(content) < size:
            raise OSError(f"{len(content)} bytes instead of {size}")
        return content


def indexed_shard(place: str, name: str, keys: Keys = KNOWN) -> IndexedShard | None:
    """A local shard with its index, which is read from the cache or made; None for what has none.

    Those are streams, files that cannot be read, and those that break by an error of the system, which may pass.
    """
    if is_stream(place):
        return None
    path = Path(place)
    meaning = Meaning(numbered_classes(place), is_retrieval(place), keys)
    try:
        identity = identity_of(path)
        file = _file_of(sha256_of(path), meaning)
        known = _read(file)
        index = known if known is not None else _made(place, meaning)
        if index is None:
            return None
        if known is None:
            if identity_of(path) != identity:
                raise CorruptInputError(f"{path} changes while it is read", "wait until it is written")
            _write(file, index)
    except OSError:
        return None
    return IndexedShard(path, name, index, identity, known is None)


def _file_of(digest: str, meaning: Meaning) -> Path:
    keys = meaning.keys
    read_by = [] if keys == KNOWN else [keys.images, keys.texts, keys.last_dot]
    return cache_folder() / "indices" / f"{hash_json([FORMAT, digest, meaning.classes, meaning.lines, *read_by])}.npz"


def _made(shard: str, meaning: Meaning) -> Index | None:
    images: list[tuple[int, int]] = []
    samples: list[Sample] = []
    marks, damage = bytearray(), []
    with Path(shard).open("rb", buffering=0) as stream:
        for found in parsed(shard, "", meaning):
            if isinstance(found, Damage):
                if found.may_pass:
                    return None
                damage.append((len(samples), found.key, found.reason))
                continue
            sample, offset = found
            stream.seek(offset)
            there = stream.read(len(sample.image)) == sample.image
            images.append((offset, len(sample.image)) if there else (-1, -1))
            marks += sample.mark
            samples.append(Sample(sample.key, b"", sample.captions, sample.label, sample.seen))
    said = {
        "keys": [sample.key for sample in samples],
        "captions": [sample.captions for sample in samples],
        "labels": [sample.label for sample in samples],
        "seen": [sample.seen for sample in samples],
    }
    return Index(
        np.array(images, np.int64).reshape(-1, 2),
        np.frombuffer(bytes(marks), np.uint8).reshape(-1, MARK_BYTES),
        text_from_json(said, compact=True).encode(),
        text_from_json(damage, compact=True).encode(),
    )


def _read(file: Path) -> Index | None:
    """None where there is no index, or no whole one."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            index = Index(arrays["images"], arrays["marks"], arrays["texts"].tobytes(), arrays["damages"].tobytes())
    except _NO_INDEX:
        return None
    return index if index.images.shape[1:] == (2,) and len(index.marks) == len(index) else None


def _write(file: Path, index: Index) -> None:
    """Whole or not at all; a cache that cannot be written to costs time and nothing else."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        images=index.images,
        marks=index.marks,
        texts=np.frombuffer(index.texts, np.uint8),
        damages=np.frombuffer(index.damages, np.uint8),
    )
    try:
        with written_whole(file) as stream:  # machines may share the folder
            stream.write(content.getbuffer())
    except OSError as error:
        _warn_of_cache(str(file.parent), error.strerror or str(error))


@functools.cache
def _warn_of_cache(folder: str, reason: str) -> None:
    console.print(
        f"warning: indices of shards cannot be kept in {folder} ({reason}), so shards are read anew in every pass; "
        f"set {CACHE} to a folder that can be written to",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )


def references(shard: IndexedShard) -> Iterator[Reference | Damage]:
    """Every sample and all damage of a shard, in the order of the shard."""
    row = 0
    for before, damage in shard.index.damage:
        yield from (Reference(shard, row) for row in range(row, before))
        yield damage
        row = before
    yield from (Reference(shard, row) for row in range(row, len(shard.index)))
