"""`mmcompress data dedupe`: images that are nearly the same, by the teacher's embeddings of them.

Two images are near duplicates where their cosine is at or above a threshold, and what is linked by such pairs is one
cluster, named by its first image. Comparing all pairs takes the square of their number. As SemDeDup does (Abbas et al.
2023, section 3), images are compared within cells; here a cell is what has a pivot among its two nearest, the pivots
are images drawn at random, and a set of up to 5,000 images is one cell, so that all its pairs are compared. What shares
no cell with its near duplicate is missed; the nearer two images are, the more likely their pivots are the same.

Memory holds some 50 bytes an image and one cell. Nothing is deleted: a list says what could be left out.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.compress.train.chunks import CONTENTS, Store, contents_of, read_chunk
from mmcompress.data.batches import listing
from mmcompress.data.excluded import check_list, write_list
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind
from mmcompress.progress import track

CELL = 2500
"""Images that a cell has on average, of half as many pivots as images are in cells."""
_ONE_CELL = 5000
_BLOCK = 1024


@dataclass(frozen=True)
class Duplicates:
    """What was found, and how much was looked at."""

    images: int
    clusters: int
    duplicates: int
    """Images that could be left out: all of a cluster but its first."""
    largest: tuple[tuple[str, int], ...]
    """The first images of the largest clusters, with how many images each cluster has."""
    threshold: float


def one_teachers(path: Path) -> tuple[Artifact, Store]:
    """Cached embeddings of one teacher, to be asked in the order of the data. Raises UsageError for anything else."""
    artifact = Artifact.open(path, Kind.EMBEDDINGS)
    if CONTENTS not in artifact.manifest.files:
        raise UsageError(f"{path} holds embeddings of several teachers", "give those of one, as `embed` wrote them")
    return artifact, Store(path, held=1)


def dedupe(spec: str, embeddings: Path, out: Path, threshold: float = 0.95) -> Duplicates:
    """Write the list of near duplicates of a data set: each with the image that it is like, and their cosine.

    Raises CorruptInputError where the embeddings are not of this data.
    """
    check_list(out)
    _, store = one_teachers(embeddings)
    images = _Images(embeddings)
    _check_of_this_data(spec, store)
    roots = clusters(images, threshold)
    members, counts = np.unique(roots, return_counts=True)
    several = members[counts > 1]
    largest = several[np.argsort(-counts[counts > 1], kind="stable")][:10]
    again = np.flatnonzero(roots != np.arange(len(roots)))
    write_list(out, _lines(images, again, roots[again]))
    sizes = dict(zip(members.tolist(), counts.tolist(), strict=True))
    named = tuple((images.key(int(row)), int(sizes[int(row)])) for row in largest)
    return Duplicates(len(images), len(several), len(again), named, threshold)


def _check_of_this_data(spec: str, store: Store) -> None:
    held = 0
    for item in listing(spec):
        if store.has(item.key):
            store.check(item.key, item.mark)
            held += 1
    if held < len(store):
        raise CorruptInputError(
            f"{store.path} embeds {len(store)} samples, and {held} of them are in {spec}",
            "give the data that was embedded, or embed this: mmcompress embed",
        )


def _lines(images: _Images, again: NDArray[np.int64], roots: NDArray[np.int64]) -> Iterator[tuple[str, str, float]]:
    for start in range(0, len(again), _BLOCK):
        rows, first = again[start : start + _BLOCK], roots[start : start + _BLOCK]
        cosines = (images.vectors(rows) * images.vectors(first)).sum(axis=1)
        for row, root, cosine in zip(rows.tolist(), first.tolist(), cosines.tolist(), strict=True):
            yield images.key(row), images.key(root), cosine


class _Images:
    """The plain images of cached embeddings by their rows, in the order of the data; files are mapped when needed."""

    def __init__(self, folder: Path) -> None:
        shards = contents_of(folder).shards
        self._files = [folder / name for shard in shards for name in shard.files]
        self._sizes = [size for shard in shards for size in shard.samples]
        self._ends = list(itertools.accumulate(self._sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N,) -> (N, D) of unit norm, in the order of the rows."""
        order = np.argsort(rows, kind="stable")
        parts = []
        for at, some in itertools.groupby(rows[order].tolist(), key=lambda row: bisect.bisect_right(self._ends, row)):
            inside = [row - self._ends[at] + self._sizes[at] for row in some]
            parts.append(_unit(read_chunk(self._files[at]).images[inside, 0], self._files[at]))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return np.concatenate(parts)[back]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The first row of each file, and its vectors."""
        for file, size, end in zip(self._files, self._sizes, self._ends, strict=True):
            yield end - size, _unit(read_chunk(file).images[:, 0], file)

    def key(self, row: int) -> str:
        at = bisect.bisect_right(self._ends, row)
        return read_chunk(self._files[at]).keys[row - self._ends[at] + self._sizes[at]]


def _unit(rows: NDArray[Any], file: Path) -> NDArray[np.float32]:
    wide = rows.astype(np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise CorruptInputError(f"{file} holds an embedding that is zero or not finite", "embed the data again")
    return cast(NDArray[np.float32], wide / norms)


def clusters(images: _Images, threshold: float) -> NDArray[np.int64]:
    """(N,): of each image the first of its cluster, which is itself where it is like none."""
    roots = np.arange(len(images))
    for rows in track(_cells(images), "comparing", None):
        first = rows[linked(images.vectors(rows), threshold)]
        for row, other in zip(rows[first != rows].tolist(), first[first != rows].tolist(), strict=True):
            a, b = _root(roots, row), _root(roots, other)
            roots[max(a, b)] = min(a, b)
    for row in range(len(roots)):
        roots[row] = roots[roots[row]]  # a root comes before what hangs on it
    return roots


def _root(roots: NDArray[np.int64], row: int) -> int:
    while roots[row] != row:
        roots[row] = roots[roots[row]]
        row = int(roots[row])
    return row


def _cells(images: _Images) -> Iterator[NDArray[np.int64]]:
    """Rows that are compared with each other, in order."""
    count = len(images)
    if count <= _ONE_CELL:
        yield np.arange(count)
        return
    pivots = np.sort(np.random.default_rng(0).choice(count, -(-2 * count // CELL), replace=False))
    held = images.vectors(pivots)
    nearest = np.empty((count, 2), np.int32)
    for first, vectors in images.blocks():
        nearest[first : first + len(vectors)] = np.argpartition(-(vectors @ held.T), 1, axis=1)[:, :2]
    order = np.argsort(nearest, axis=None, kind="stable")
    ends = np.searchsorted(nearest.ravel()[order], np.arange(len(pivots)), side="right")
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        yield np.sort(order[start:end] // 2)


def linked(vectors: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """(N, D) of unit norm -> (N,): the first vector of those that pairs at or above the threshold link each to."""
    first = np.arange(len(vectors))
    likes = np.concatenate([_above(vectors, at, threshold).sum(axis=1) for at in _starts(vectors)])
    near = np.flatnonzero(likes > 1)
    some, labels = vectors[near], np.arange(len(near))
    while len(near):
        lowest = [np.where(_above(some, at, threshold), labels, len(near)).min(axis=1) for at in _starts(some)]
        lower = np.minimum(labels, np.concatenate(lowest))
        lower = lower[lower]
        if (lower == labels).all():
            break
        labels = lower
    first[near] = near[labels]
    return first


def _starts(rows: Sequence[Any] | NDArray[Any]) -> range:
    return range(0, max(1, len(rows)), _BLOCK)


def _above(vectors: NDArray[np.float32], start: int, threshold: float) -> NDArray[np.bool_]:
    """(B, N) of a block of rows."""
    return cast(NDArray[np.bool_], vectors[start : start + _BLOCK] @ vectors.T >= threshold)
