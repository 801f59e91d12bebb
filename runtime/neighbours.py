"""Which vectors are nearest to one? A graph of neighbours over all of them (HNSW), through faiss.

Malkov and Yashunin 2018: each vector is linked to some near ones, and a search walks from link to link, so it looks at
some hundred vectors where an exact one looks at all. Vectors are held in FP16, which halves the memory and leaves the
order as it is. A graph takes more of them at any time, without training, which a quantizer with cells would need.
"""

from __future__ import annotations

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


class Graph:
    """Unit vectors by their rows, 0 and on, in the order in which they were added."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def empty(cls, width: int) -> Self:
        """A graph of vectors (width,)."""
        faiss = faiss_module()
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(width, half, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILDING
        return cls(index)

    @classmethod
    def read(cls, path: Path, width: int, rows: int) -> Self:
        """Raises CorruptInputError for a file that holds no such graph."""
        faiss = faiss_module()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise CorruptInputError(f"{path} cannot be read as a graph: {error}", "make the index again") from error
        if not isinstance(index, faiss.IndexHNSWSQ) or (index.d, index.ntotal) != (width, rows):
            raise CorruptInputError(
                f"{path} holds {index.ntotal} vectors of width {index.d}, and its index says {rows} of {width}",
                "make the index again",
            )
        index.hnsw.efConstruction = BUILDING
        return cls(index)

    @property
    def width(self) -> int:
        """D"""
        return int(self._index.d)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def write(self, path: Path) -> None:
        faiss_module().write_index(self._index, str(path))

    def add(self, vectors: NDArray[np.floating[Any]]) -> None:
        """(N, D). On all threads of OpenMP, so that links may differ from run to run; on one they do not."""
        self._index.add(np.ascontiguousarray(vectors, np.float32))

    def vectors(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """N rows -> (N, D), as they are held."""
        found = [self._index.reconstruct(int(row)) for row in rows]
        return cast(NDArray[np.float32], np.stack(found) if found else np.empty((0, self._index.d), np.float32))

    def nearest(
        self, queries: NDArray[np.float32], count: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, D) -> (Q, K) rows and (Q, K) cosines, the largest first, of all rows but those `without`.

        K is `count`, or as many rows as there are.
        """
        faiss = faiss_module()
        left_out = 0 if without is None else len(without)
        live = len(self) - left_out
        found = min(count, live)
        walked = faiss.SearchParametersHNSW(efSearch=max(candidates(len(self)), 2 * found) * len(self) // max(1, live))
        looked = faiss.SearchParameters()
        if without is not None and left_out:
            out = faiss.IDSelectorBatch(without)
            walked.sel = looked.sel = held = faiss.IDSelectorNot(out)  # faiss keeps pointers: both live to the end
        asked = np.ascontiguousarray(queries)
        exact = live < len(self) * FEWEST_LIVE
        if not exact:
            cosines, rows = self._index.search(asked, found, params=walked)
            exact = bool((rows < 0).any())  # the walk ended before it had found enough
        if exact:
            cosines, rows = faiss.downcast_index(self._index.storage).search(asked, found, params=looked)
        if left_out:
            del held, out
        return rows, np.minimum(cosines, 1)  # FP16 rounds norms
