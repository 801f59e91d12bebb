"""What an index is to get: which of the given images are new to it, and their embeddings, a part at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.data.images import place_of
from mmcompress.data.reading import Listed
from mmcompress.data.sample import image_of
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.runtime.encoder import BATCH, Encoder
from mmcompress.runtime.imageindex import (
    KNOWN,
    PART_ROWS,
    ImageIndex,
    hash_of,
    hash_of_name,
    known_file,
    write_part,
    written_parts,
)


class Growth:
    """Takes images one by one, and leaves the parts that are to be added in a work folder, a killed run's too."""

    def __init__(self, encoder: Encoder, work: Path, standing: ImageIndex | None) -> None:
        self._encoder, self._work, self._standing = encoder, work, standing
        self.first = len(standing.parts) if standing is not None else 0
        """The number of the first part that is added."""
        self._rows = _Rows()
        self._standing_rows = len(standing.graph) if standing is not None else 0
        self._gone = frozenset(standing.gone.tolist() if standing is not None else ())
        for part in range(self.first):
            assert standing is not None
            self._know(np.load(standing.artifact.file(known_file(part)), allow_pickle=False))
        self._number = self.first
        for part in written_parts(work, self.first):
            self._know(np.load(work / known_file(part), allow_pickle=False))
            self._number = part + 1
        self._names: list[str] = []
        self._contents: list[int] = []
        self._vectors: list[NDArray[np.float16]] = []
        self._pending: set[int] = set()
        self._batch: list[tuple[str, int, NDArray[np.uint8]]] = []
        self.embedded = self.moved = self.copies = 0

    def take(self, name: str, item: Listed) -> str | None:
        """One image; why it cannot be embedded, where that is so."""
        content = hash_of(image_of(item.mark))
        row = self._rows.find(content)
        if content in self._pending or (row is not None and self._stands(row)):
            self.copies += 1
        elif row is not None:
            assert self._standing is not None
            self._put(name, content, self._standing.graph.vectors([row]))
            self.moved += 1
        else:
            try:
                self._batch.append((name, content, self._encoder.read_stored(item.stored(), name)))
            except (CorruptInputError, UsageError, OSError) as error:
                return str(error)
            self._pending.add(content)
            if len(self._batch) == (1 if self._encoder.prepares else BATCH):  # whole photos are large
                self._embed()
        return None

    def close(self) -> None:
        """Embed and write what is left."""
        self._embed()
        self._write()

    def _stands(self, row: int) -> bool:
        """Whether a row is found by searches, and its image where it was."""
        if self._standing is None or row >= self._standing_rows:
            return True  # it was seen just now
        place = place_of(self._standing.name(row))
        return row not in self._gone and ("://" in place or Path(place).exists())

    def _embed(self) -> None:
        if not self._batch:
            return
        names, contents, pixels = zip(*self._batch, strict=True)
        self._batch = []
        vectors = self._encoder.as_read(pixels, names)
        self.embedded += len(vectors)
        for name, content, vector in zip(names, contents, vectors, strict=True):
            self._put(name, content, vector[None])
        if len(self._names) >= PART_ROWS:
            self._write()

    def _put(self, name: str, content: int, vector: NDArray[np.floating[Any]]) -> None:
        self._pending.add(content)
        self._names.append(name)
        self._contents.append(content)
        self._vectors.append(vector.astype(np.float16))

    def _write(self) -> None:
        if not self._names:
            return
        known = np.empty(len(self._names), KNOWN)
        known["content"], known["name"] = self._contents, [hash_of_name(name) for name in self._names]
        write_part(self._work, self._number, self._names, known, np.concatenate(self._vectors))
        self._know(known)
        self._number += 1
        self._names, self._contents, self._vectors = [], [], []
        self._pending = {content for _, content, _ in self._batch}

    def _know(self, known: NDArray[np.void]) -> None:
        self._rows.add(known["content"])


class _Rows:
    """Rows by the hashes of their images, 16 bytes a row, in arrays that are searched in halves."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, np.uint64)
        self._rows = np.empty(0, np.int64)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """The next rows."""
        order = np.argsort(hashes, kind="stable")
        at = np.searchsorted(self._hashes, hashes[order], side="right")
        rows = order + len(self._rows)
        self._hashes = np.insert(self._hashes, at, hashes[order])
        self._rows = np.insert(self._rows, at, rows)

    def find(self, content: int) -> int | None:
        """The last row of an image."""
        at = int(np.searchsorted(self._hashes, np.uint64(content), side="right")) - 1
        return int(self._rows[at]) if at >= 0 and int(self._hashes[at]) == content else None


def all_known(standing: ImageIndex | None, work: Path, added: Sequence[int]) -> NDArray[np.void]:
    """(rows,) of KNOWN, of an index and of the parts that are added."""
    files = [] if standing is None else [standing.artifact.file(known_file(n)) for n in range(len(standing.parts))]
    files += [work / known_file(part) for part in added]
    return np.concatenate([np.empty(0, KNOWN), *(np.load(file, allow_pickle=False) for file in files)])
