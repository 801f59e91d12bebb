"""Which vectors are nearest to one? A graph of neighbours over all of them (HNSW), through faiss.

Malkov and Yashunin 2018: each vector is linked to some near ones, and a search walks from link to link, so it looks at
some hundred vectors where an exact one looks at all. Vectors are held in FP16, which halves the memory and leaves the
order as it is. A graph takes more of them at any time, without training, which a quantizer with cells would need.

Equal vectors are one node with several rows. As nodes of their own they would be linked to one another alone, all at a
distance of 0, and walks would neither leave them nor reach what lies behind.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mmcompress.errors import CorruptInputError, MissingRequirementError

LINKS = 32
"""Neighbours that a vector is linked to, M of the paper; twice as many in the lowest layer."""
BUILDING = 100
"""Candidates that are held while a vector is linked, efConstruction of the paper."""
SEARCHING = 128
"""Candidates that are held while one is looked for at least, ef of the paper; see `candidates`."""

LOOK_AT_ALL = 0
"""In place of a number of candidates: no walk, each vector is looked at."""
FEWEST_LIVE = 0.5
"""Share of the vectors that may be found below which all are looked at: where a walk meets mostly what is left out, it
ends early, with some of the nearest or with too few. Looking at all is exact, and takes time with their number."""


def faiss_module() -> Any:
    """faiss; MissingRequirementError where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its SWIG types
            import faiss
    except ImportError as error:
        raise MissingRequirementError(
            f"an index needs the Python package faiss, which cannot be imported ({error})",
            "pip install 'mmcompress[search]'",
        ) from error
    return faiss


def candidates(rows: int) -> int:
    """How many to hold while one of so many vectors is looked for: texts lie apart from the images that are linked, so
    their walks end in more places the more images there are. The square root kept recall@10 of texts above 0.98 from
    a thousand to a million vectors (benchmarks/results/search.md)."""
    return max(SEARCHING, math.isqrt(rows))


def array_of(path: Path, dtype: np.dtype[Any] | None = None, rows: int | None = None) -> NDArray[Any]:
    """(rows,) of a file. Raises CorruptInputError for one that holds no such array; any array where nothing is said."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        said = f"{path} is missing, or was removed while it was being read"
        raise CorruptInputError(said, "make the index again") from error
    except (ValueError, EOFError) as error:
        raise CorruptInputError(f"{path} holds no array: {error}", "make the index again") from error
    alike = dtype is None or (array.ndim == 1 and array.dtype == dtype)
    if not alike or rows not in (None, len(array)):
        raise CorruptInputError(f"{path} is no array of {dtype}, a row an image", "make the index again")
    return array


class Graph:
    """Unit vectors by their rows, 0 and on, in the order in which they were added."""

    def __init__(self, index: Any, nodes: NDArray[np.int32]) -> None:
        self._index, self._nodes = index, nodes
        self._hashes, self._nodes_by_hash = np.empty(0, np.uint64), np.empty(0, np.int32)
        """(nodes,) sorted, and the node of each; once vectors are added."""

    @classmethod
    def empty(cls, width: int) -> Self:
        """A graph of vectors (width,)."""
        faiss = faiss_module()
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(width, half, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILDING
        return cls(index, np.empty(0, np.int32))

    @classmethod
    def read(cls, path: Path, nodes: Path, width: int, rows: int) -> Self:
        """Raises CorruptInputError for files that hold no such graph."""
        faiss = faiss_module()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise CorruptInputError(f"{path} cannot be read as a graph: {error}", "make the index again") from error
        node_of = array_of(nodes)
        said = (width, rows, index.ntotal)
        if not isinstance(index, faiss.IndexHNSWSQ) or (index.d, len(node_of), _count(node_of)) != said:
            raise CorruptInputError(
                f"{path} holds {index.ntotal} vectors of width {index.d} for {len(node_of)} rows, and its index says"
                f" {rows} of {width}",
                "make the index again",
            )
        index.hnsw.efConstruction = BUILDING
        return cls(index, node_of)

    @property
    def width(self) -> int:
        """D"""
        return int(self._index.d)

    def __len__(self) -> int:
        return len(self._nodes)

    def write(self, path: Path, nodes: Path) -> None:
        """The graph, and (rows,) the node of each row."""
        faiss_module().write_index(self._index, str(path))
        np.save(nodes, self._nodes, allow_pickle=False)

    def add(self, vectors: NDArray[np.floating[Any]]) -> None:
        """(N, D). On all threads of OpenMP, so that links may differ from run to run; on one they do not."""
        halves = vectors.astype(np.float16) + np.float16(0)  # -0 is 0
        if len(self._hashes) != self._index.ntotal:
            hashes = _contents(self._codes())
            self._nodes_by_hash = np.argsort(hashes).astype(np.int32)
            self._hashes = hashes[self._nodes_by_hash]
        hashes, first, which = np.unique(_contents(halves), return_index=True, return_inverse=True)
        at = np.searchsorted(self._hashes, hashes)
        known = np.append(self._hashes, np.uint64(0))[at] == hashes
        known &= at < len(self._hashes)
        new = np.sort(first[~known])
        node = np.append(self._nodes_by_hash, np.int32(0))[at]
        node[~known] = self._index.ntotal + np.searchsorted(new, first[~known])
        self._index.add(np.ascontiguousarray(halves[new], np.float32))
        self._nodes = np.concatenate([self._nodes, node[which]])
        self._nodes_by_hash = np.insert(self._nodes_by_hash, at[~known], node[~known])
        self._hashes = np.insert(self._hashes, at[~known], hashes[~known])

    def vectors(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """N rows -> (N, D), as they are held."""
        found = [self._index.reconstruct(int(self._nodes[row])) for row in rows]
        return cast(NDArray[np.float32], np.stack(found) if found else np.empty((0, self._index.d), np.float32))

    def nearest(
        self,
        queries: NDArray[np.float32],
        count: int,
        without: NDArray[np.int64] | None = None,
        held: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, D) -> (Q, K) rows and (Q, K) cosines, the largest first, of all rows but those `without`.

        K is `count`, or as many rows as there are. A walk holds `held` candidates, those of `candidates` where none is
        given; with LOOK_AT_ALL there is none, and what is found is exact.
        """
        candidates_held = candidates(len(self)) if held is None else held
        if (without is None or not len(without)) and len(self) == self._index.ntotal:
            return self._nodes_near(queries, min(count, len(self)), None, candidates_held)
        rows = np.setdiff1d(np.arange(len(self)), [] if without is None else without)
        rows = rows[np.argsort(self._nodes[rows], kind="stable")]
        live, first, copies = np.unique(self._nodes[rows], return_index=True, return_counts=True)
        wanted = min(count, len(live))
        at, cosines = self._nodes_near(queries, wanted, live, candidates_held)
        place = np.searchsorted(live, at)
        found = min(count, len(rows))
        if len(live) == len(rows):
            return rows[place], cosines
        answer, near = np.empty((len(at), found), np.int64), np.empty((len(at), found), np.float32)
        for query, (places, of_nodes) in enumerate(zip(place, cosines, strict=True)):
            answer[query] = np.concatenate([rows[first[one] : first[one] + copies[one]] for one in places])[:found]
            near[query] = np.repeat(of_nodes, copies[places])[:found]
        return answer, near

    def _nodes_near(
        self, queries: NDArray[np.float32], count: int, live: NDArray[np.int32] | None, held: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, D) -> (Q, count) nodes and cosines, the largest first, among those that are `live`, or all."""
        faiss = faiss_module()
        total = int(self._index.ntotal)
        alive = total if live is None else len(live)
        walked = faiss.SearchParametersHNSW(efSearch=max(held, 2 * count) * total // max(1, alive))
        looked = faiss.SearchParameters()
        if live is not None and alive < total:
            out = faiss.IDSelectorBatch(np.setdiff1d(np.arange(total), live))
            walked.sel = looked.sel = kept = faiss.IDSelectorNot(out)  # faiss keeps pointers: both live to the end
        asked = np.ascontiguousarray(queries)
        exact = held == LOOK_AT_ALL or alive < total * FEWEST_LIVE
        if not exact:
            cosines, nodes = self._index.search(asked, count, params=walked)
            exact = bool((nodes < 0).any())  # the walk ended before it had found enough
        if exact:
            cosines, nodes = faiss.downcast_index(self._index.storage).search(asked, count, params=looked)
        if live is not None and alive < total:
            del kept, out
        return nodes, np.minimum(cosines, 1)  # FP16 rounds norms

    def _codes(self) -> NDArray[np.float16]:
        """(nodes, D) as faiss holds them, without a copy."""
        faiss = faiss_module()
        total, codes = int(self._index.ntotal), faiss.downcast_index(self._index.storage).codes
        held = faiss.rev_swig_ptr(codes.data(), codes.size()) if total else np.empty(0, np.uint8)
        return cast(NDArray[np.float16], held.view(np.float16).reshape(total, self._index.d))


def _contents(halves: NDArray[np.float16]) -> NDArray[np.uint64]:
    """(N, D) -> (N,) what each vector is known by: one collision is expected among six billion."""
    digests = b"".join(hashlib.blake2b(half.tobytes(), digest_size=8).digest() for half in halves)
    return np.frombuffer(digests, np.uint64)


def _count(nodes: NDArray[np.int32]) -> int:
    """How many nodes there are, -1 where they are not numbered in the order in which they came."""
    if nodes.dtype != np.int32 or nodes.ndim != 1:
        return -1
    ahead = np.maximum.accumulate(np.concatenate([np.array([-1], np.int32), nodes]))
    return int(ahead[-1]) + 1 if bool(((nodes >= 0) & (nodes <= ahead[:-1] + 1)).all()) else -1
