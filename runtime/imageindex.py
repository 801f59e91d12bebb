"""An index of images: an artifact with their embeddings as a graph of neighbours, and with their names.

Images are rows, numbered in the order in which they came. Parts of some 1,024 rows are two files: the names as JSON,
and an array of what each row is known by. Those stay as they are when images are added, and get a second name in the
new artifact; the graph is written again. So what is held while an index is searched is the graph and the parts that
are looked at.

An image is known by its content, by 8 bytes of its hash (`sample.image_of`): one collision is expected among six
billion images. A later row with the same image or the same name takes the place of one before: the image has moved, or
the file has changed. That one stays in the graph, and is never found (`gone.npy`).
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, ValidationError

from mmcompress.artifact import Artifact
from mmcompress.datakeys import KNOWN as KNOWN_KEYS
from mmcompress.datakeys import Keys, keys_of
from mmcompress.document import Count, Part
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Kind, hash_json
from mmcompress.places import MANIFEST
from mmcompress.runtime.neighbours import Graph, array_of
from mmcompress.strictjson import read_json, text_from_json, write_json
from mmcompress.wrong import first_wrong

GRAPH, NODES = "graph.faiss", "nodes.npy"
"""The graph, and (rows,) the node of each row in it: images with equal vectors share one."""
GONE = "gone.npy"
"""(G,) rows in whose place a later one is."""
PART_ROWS = 1024
KNOWN = np.dtype([("content", "<u8"), ("name", "<u8")])
"""What a row is known by: hashes of the image and of its name."""
MODEL, PRECISION, BACKEND, WIDTH, PARTS = "model_digest", "precision", "backend", "width", "parts"
"""Facts: digest of the model that embedded the images, its graph's precision, where that ran, D, rows of each part.
"""
CANDIDATES, RECALL = "candidates", "recall_at_10"
"""How many a search holds, a fact, LOOK_AT_ALL where it walks none of the graph; and what of the ten nearest that finds
of a sample, a measurement."""
SOURCE = "model"
"""Where the model was, as it was said; a measurement, as it is no part of what an index is."""
KEYS = "keys"
"""By which keys its sets were read, as they were said (`keys:image/caption:`), where other than the known ones were; a
measurement, too."""
_AGAIN = "make the index again"


class _Facts(Part):
    """What an index says of itself, held against its files when it is opened."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model_digest: str
    precision: str
    backend: str
    width: Count
    parts: tuple[Count, ...]
    candidates: Count


class Match(NamedTuple):
    """An image that was found."""

    name: str
    cosine: float


@dataclass(frozen=True)
class ImageIndex:
    """A verified index, its graph in memory."""

    artifact: Artifact
    graph: Graph
    gone: NDArray[np.int64]

    @classmethod
    def open(cls, path: Path | str) -> ImageIndex:
        """Raises UsageError for what is no index, CorruptInputError for a damaged one, and for one of before."""
        artifact = Artifact.open(path, Kind.INDEX)
        facts = artifact.manifest.facts
        if NODES not in artifact.manifest.files or CANDIDATES not in facts:
            raise CorruptInputError(
                f"{path} was made by an earlier mmcompress, whose indices had no {NODES} and tried no search",
                f"delete it, and make it again: mmcompress index {artifact.manifest.metrics.get(SOURCE, 'MODEL')}"
                f" --images IMAGES --out {path}",
            )
        try:
            said = _Facts.model_validate_json(text_from_json(facts), strict=True)
        except ValidationError as error:
            raise CorruptInputError(f"{artifact.path / MANIFEST}{first_wrong(error, 'facts')}", _AGAIN) from error
        rows = sum(said.parts)
        graph = Graph.read(artifact.file(GRAPH), artifact.file(NODES), said.width, rows)
        gone = array_of(artifact.file(GONE), np.dtype(np.int64))
        if len(gone) and not 0 <= gone.min() <= gone.max() < rows:
            raise CorruptInputError(f"{artifact.file(GONE)} names rows that the index has not", _AGAIN)
        return cls(artifact, graph, gone)

    @property
    def width(self) -> int:
        """D"""
        return int(self.artifact.manifest.facts[WIDTH])

    @property
    def model_digest(self) -> str:
        return str(self.artifact.manifest.facts[MODEL])

    @property
    def parts(self) -> list[int]:
        """How many rows each has."""
        return list(self.artifact.manifest.facts[PARTS])

    def __len__(self) -> int:
        return len(self.graph) - len(self.gone)

    @property
    def keys(self) -> tuple[Keys, ...]:
        """By which its images are to be read again: the known ones, and what was said when it was made."""
        said = self.artifact.manifest.metrics.get(KEYS)
        return KNOWN_KEYS, *(keys_of(f"{one}-")[0] for one in (said if isinstance(said, list) else ()))

    def content(self, row: int) -> int:
        """The hash of the image of a row."""
        ends = self._ends
        part = bisect.bisect_right(ends, row)
        known = _known(self.artifact.file(known_file(part)), self.parts[part])
        return int(known["content"][row - ends[part] + self.parts[part]])

    def name(self, row: int) -> str:
        """Of the image of a row."""
        ends = self._ends
        part = bisect.bisect_right(ends, row)
        return _names(self.artifact.file(names_file(part)), self.parts[part])[row - ends[part] + self.parts[part]]

    @property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(self.parts))

    def live(self) -> NDArray[np.int64]:
        """Rows that can be found, in order."""
        return np.setdiff1d(np.arange(len(self.graph)), self.gone)

    def nearest(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, D) -> (Q, K) rows and (Q, K) cosines, the largest first, as `Graph.nearest`."""
        return self.graph.nearest(queries, count, self.gone, self.artifact.manifest.facts[CANDIDATES])

    def search(self, query: NDArray[np.float32], top: int) -> list[Match]:
        """(D,) -> the `top` images, best first."""
        rows, cosines = self.nearest(query[None], top)
        return [Match(self.name(int(row)), float(cosine)) for row, cosine in zip(rows[0], cosines[0], strict=True)]


def digest_of_model(model: Artifact) -> str:
    """Of all that an artifact's embeddings depend on, whatever it is called and wherever it lies."""
    said = model.manifest.model_dump(mode="json", include={"graphs", "preprocessing", "tokenizer"})
    return hash_json([said, {name: entry.sha256 for name, entry in model.manifest.files.items()}])


def names_file(part: int) -> str:
    return f"names-{part:06d}.json"


def known_file(part: int) -> str:
    return f"known-{part:06d}.npy"


def vectors_file(part: int) -> str:
    """While the index is made; afterwards the graph holds them."""
    return f"vectors-{part:06d}.npy"


@functools.lru_cache(maxsize=16)
def _names(path: Path, rows: int) -> list[str]:
    names = read_json(path, _AGAIN)
    if not isinstance(names, list) or len(names) != rows or not all(isinstance(name, str) for name in names):
        raise CorruptInputError(f"{path} is no list of the names of {rows} images", _AGAIN)
    return names


@functools.lru_cache(maxsize=16)
def _known(path: Path, rows: int) -> NDArray[np.void]:
    return cast(NDArray[np.void], array_of(path, KNOWN, rows))


def hash_of(content: bytes) -> int:
    return int.from_bytes(content, "little")


def hash_of_name(name: str) -> int:
    return hash_of(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def superseded(known: NDArray[np.void]) -> NDArray[np.int64]:
    """(rows,) of KNOWN -> the rows whose image or name a later one has, in order."""
    later = np.zeros(len(known), np.bool_)
    for field in ("content", "name"):
        _, last = np.unique(known[field][::-1], return_index=True)
        stays = np.zeros(len(known), np.bool_)
        stays[len(known) - 1 - last] = True
        later |= ~stays
    return np.flatnonzero(later)


def write_part(
    folder: Path, part: int, names: Sequence[str], known: NDArray[np.void], vectors: NDArray[np.float16]
) -> None:
    """Write a part, its names last: one without names is none."""
    np.save(folder / vectors_file(part), vectors, allow_pickle=False)
    np.save(folder / known_file(part), known, allow_pickle=False)
    partial = folder / f".{names_file(part)}"
    write_json(partial, list(names), None)
    partial.replace(folder / names_file(part))


def written_parts(folder: Path, first: int) -> list[int]:
    """The numbers of the parts that a run before wrote whole, from `first` on."""
    return list(itertools.takewhile(lambda part: (folder / names_file(part)).is_file(), itertools.count(first)))


def vectors_of(folder: Path, part: int) -> NDArray[np.float16]:
    """(rows, D), mapped into memory."""
    return cast(NDArray[np.float16], np.load(folder / vectors_file(part), mmap_mode="r", allow_pickle=False))
