"""What an index is to get: which of the given images are new to it, and their embeddings, a part at a time."""

from __future__ import annotations

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
    superseded,
    write_part,
    written_parts,
)
from mmcompress.runtime.neighbours import array_of


class Growth:
    """Takes images one by one, and leaves the parts that are to be added in a work folder, a killed run's too."""

    def __init__(self, encoder: Encoder, work: Path, standing: ImageIndex | None) -> None:
        self._encoder, self._work, self._standing = encoder, work, standing
        self.first = len(standing.parts) if standing is not None else 0
        """The number of the first part that is added."""
        self._known = np.empty(0, KNOWN)
        self._contents_known, self._names_known = _Rows(), _Rows()
        self._standing_rows = len(standing.graph) if standing is not None else 0
        self._gone = frozenset(standing.gone.tolist() if standing is not None else ())
        for part in range(self.first):
            assert standing is not None
            self._know(array_of(standing.artifact.file(known_file(part)), KNOWN, standing.parts[part]))
        self._number = self.first
        for part in written_parts(work, self.first):
            self._know(np.load(work / known_file(part), allow_pickle=False))
            self._number = part + 1
        self._copied = np.zeros(len(self._known), np.bool_)
        """Rows whose image was seen under another name, and which are thought to be found still."""
        self._stale: set[int] = set()
        """Rows whose file holds another image now, which the index has or gets."""
        self._names: list[str] = []
        self._contents: list[int] = []
        self._vectors: list[NDArray[np.float16]] = []
        self._pending: set[int] = set()
        self._batch: list[tuple[str, int, NDArray[np.uint8]]] = []
        self.embedded = self.moved = self.copies = 0

    def take(self, name: str, item: Listed) -> str | None:
        """One image; why it cannot be embedded, where that is so."""
        content = hash_of(image_of(item.mark))
        row, named = self._contents_known.find(content), self._names_known.find(hash_of_name(name))
        if named is not None and int(self._known["content"][named]) != content:
            self._stale.add(named)
        if content in self._pending or (row is not None and self._stands(row)):
            self.copies += 1
            if row is not None and row < len(self._copied) and row != named:
                self._copied[row] = True
        elif row is not None and row < self._standing_rows:
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

    def gone(self) -> NDArray[np.int64]:
        """Rows that searches are not to find: of moved images and of files that have changed; once all is written."""
        return np.union1d(superseded(self._known), np.array([*self._gone, *self._stale], np.int64))

    def lost(self) -> set[int]:
        """Hashes of images that were given and passed for copies of what is gone now, so that no row is left of them:
        where two files have changed places, say. They are to be taken again."""
        gone = self.gone()
        lost = self._known["content"][np.intersect1d(gone, np.flatnonzero(self._copied))]
        if not len(lost):
            return set()
        self._gone = frozenset(gone.tolist())
        live = np.delete(self._known["content"], gone)
        return set(np.setdiff1d(lost, live).tolist())

    def _stands(self, row: int) -> bool:
        """Whether a row is found by searches, and its image where it was."""
        if row in self._gone or row in self._stale:
            return False
        if self._standing is None or row >= self._standing_rows:
            return True  # it was seen just now
        place = place_of(self._standing.name(row))
        return "://" in place or Path(place).exists()

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
        self._known = np.concatenate([self._known, known])
        self._contents_known.add(known["content"])
        self._names_known.add(known["name"])


class _Rows:
    """Rows by hashes, 16 bytes a row, in arrays that are searched in halves."""

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

    def find(self, wanted: int) -> int | None:
        """The last row with a hash."""
        at = int(np.searchsorted(self._hashes, np.uint64(wanted), side="right")) - 1
        return int(self._rows[at]) if at >= 0 and int(self._hashes[at]) == wanted else None
