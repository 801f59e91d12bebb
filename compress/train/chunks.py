"""One teacher's cached embeddings on disk, and their reader.

Each shard of the data has files of its own, a chunk of its samples each, named by the shard's content, its keys, the
teacher and the views. So a set that grows, or loses a shard, keeps the files of the others (`embed.py`). A file holds
`images (n, V, D)` and `texts (m, D)` in FP16, `captions (n,)` how many of the texts are of each sample, `marks (n, 16)`
of the image and the captions that were embedded, since two sets may use the same keys, and `keys`, a list in JSON.

Files are mapped into memory, those of the shards that are being read and no others: a sample's key begins with the name
of its shard. So what is held grows with neither the data nor the number of shards. Samples that lie in no shard, of
tables and folders, are found by a table of all their keys, as the lists that they are read from hold these too.
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import Self

from mmcompress.data.sample import difference
from mmcompress.errors import CorruptInputError
from mmcompress.frozen import Config
from mmcompress.strictjson import json_from_text, text_from_json
from mmcompress.wrong import first_wrong

CONTENTS = "shards.json"
FOLDER = "shards"
HELD = 65_536
"""Samples whose shards stay open at a time, at least one shard: those in a shuffle buffer are of few shards."""
AGAIN = "delete the folder, and embed the data again"


class Shard(Config):
    """The embeddings of a shard, or of all samples that lie in none."""

    name: str
    """What its keys begin with; empty for samples that lie in no shard."""
    key: str
    """Of what it was made from; its files begin with it."""
    samples: tuple[int, ...]
    """In each of its files."""
    captions: tuple[int, ...]
    """In each of its files."""

    @property
    def files(self) -> list[str]:
        """Below the artifact's folder."""
        return [chunk_file(self.key, number) for number in range(len(self.samples))]


class Contents(Config):
    """`shards.json`: what an embeddings artifact holds, in the order of the data."""

    shards: tuple[Shard, ...]


def chunk_file(key: str, number: int) -> str:
    """The name of a shard's file with the chunk of that number."""
    return f"{FOLDER}/{key}-{number:04d}.safetensors"


class Given(NamedTuple):
    """Views that somebody else chose, of n samples; see `data/given.py`."""

    boxes: NDArray[np.int32]
    """(n, V, 4): top, left, height, width"""
    operations: NDArray[np.float32]
    """(n, V, A_VIEW, 2): number and magnitude"""


@dataclass(frozen=True)
class Chunk:
    """One file, mapped into memory."""

    images: NDArray[np.float16]
    """(n, V, D)"""
    texts: NDArray[np.float16]
    """(m, D)"""
    captions: NDArray[np.int32]
    """(n,)"""
    marks: NDArray[np.uint8]
    """(n, MARK_BYTES)"""
    keys: list[str]
    given: Given | None
    """Where views are not a function of (seed, view number, key)."""


class Spread(NamedTuple):
    """Some embeddings, and of which samples they are."""

    values: Tensor
    """(K, D) in FP32"""
    keys: list[str]


class _Place(NamedTuple):
    """Where the embeddings of a sample are."""

    chunk: Chunk
    row: int
    first: int
    """Row of its first caption."""


@dataclass(frozen=True)
class _Opened:
    """A shard's files, and the rows of its samples."""

    chunks: list[Chunk]
    ends: list[int]
    """Of each chunk, the row behind its last one."""
    firsts: list[NDArray[np.int64]]
    """Of each chunk, (n,) the row of each sample's first caption."""
    rows: dict[str, int]
    """By key, counted over all chunks."""

    @classmethod
    def of(cls, chunks: list[Chunk]) -> Self:
        ends = list(itertools.accumulate(len(chunk.keys) for chunk in chunks))
        firsts = [np.cumsum(chunk.captions, dtype=np.int64) - chunk.captions for chunk in chunks]
        return cls(chunks, ends, firsts, {key: row for row, key in enumerate(k for c in chunks for k in c.keys)})

    def place(self, key: str) -> _Place | None:
        if (row := self.rows.get(key)) is None:
            return None
        at = bisect.bisect_right(self.ends, row)
        inside = row - self.ends[at] + len(self.chunks[at].keys)
        return _Place(self.chunks[at], inside, int(self.firsts[at][inside]))


def write_chunk(
    path: Path,
    images: Tensor,
    texts: Tensor,
    captions: Sequence[int],
    marks: Sequence[bytes],
    keys: Sequence[str],
    given: Given | None = None,
) -> None:
    """Write a file, whole or not at all: images (n, V, D) and texts (m, D) in FP16."""
    said = text_from_json(list(keys), compact=True).encode()
    tensors = {
        "images": images,
        "texts": texts,
        "captions": torch.tensor(captions, dtype=torch.int32),
        "marks": torch.tensor([list(mark) for mark in marks], dtype=torch.uint8),
        "keys": torch.tensor(list(said), dtype=torch.uint8),
    }
    if given is not None:
        tensors |= {"boxes": torch.from_numpy(given.boxes), "operations": torch.from_numpy(given.operations)}
    partial = path.with_name(f".{path.name}")
    save_file(tensors, partial)
    partial.replace(path)


def read_chunk(path: Path) -> Chunk:
    """Map a file into memory. Raises CorruptInputError for what is none."""
    try:
        tensors = load_file(path)
        arrays = {name: tensors[name].numpy() for name in ("images", "texts", "captions", "marks")}
        given = Given(*(tensors[name].numpy() for name in Given._fields)) if "boxes" in tensors else None
        keys: list[str] = json_from_text(tensors["keys"].numpy().tobytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CorruptInputError(f"{path} cannot be read as embeddings: {error}", AGAIN) from error
    return Chunk(**arrays, keys=keys, given=given)


def sizes_of_chunk(path: Path) -> tuple[int, int] | None:
    """Samples and captions in a file, by its header; None for what is no whole file."""
    try:
        with safe_open(path, framework="numpy") as file:
            samples, captions = (file.get_slice(name).get_shape()[0] for name in ("images", "texts"))
    except (OSError, SafetensorError):
        return None
    return samples, captions


class Store:
    """One teacher's embeddings, all of unit norm, looked up by the keys of samples. The folder has been verified."""

    def __init__(self, folder: Path, held: int | None = None) -> None:
        """Shards of `held` samples together stay open, or of HELD: one at least, which is enough for who asks in the
        order of the data."""
        contents = contents_of(folder)
        self.path, self._held = folder, held
        self._shards = contents.shards
        self._by_name = {shard.name: shard for shard in contents.shards}
        self._open: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = Lock()  # threads that decode ask for views

    def __len__(self) -> int:
        return sum(sum(shard.samples) for shard in self._shards)

    def has(self, key: str) -> bool:
        return self._place(key) is not None

    def check(self, key: str, mark: bytes) -> None:
        """Raise CorruptInputError unless the sample is the one that was embedded under its key."""
        self._checked(key, mark)

    def lookup(
        self, keys: Sequence[str], marks: Sequence[bytes], views: NDArray[np.int64], captions: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The images (B, D) in the given views and the texts (B, D) of the given captions, in FP32.

        Raises what `check` raises, and CorruptInputError that names a sample whose numbers are not finite.
        """
        places = [self._checked(key, mark) for key, mark in zip(keys, marks, strict=True)]
        images = [at.chunk.images[at.row, view] for at, view in zip(places, views, strict=True)]
        texts = [at.chunk.texts[at.first + caption] for at, caption in zip(places, captions, strict=True)]
        return self._finite(images, keys), self._finite(texts, keys)

    def given(self, key: str, view: int) -> tuple[list[int], list[tuple[int, float]]]:
        """The box and the operations of a view that somebody else chose; see `data/given.py`."""
        place = self._place(key)
        if place is None or place.chunk.given is None:
            raise CorruptInputError(f"of the sample {key!r} no view is known", "import the same data again")
        operations = place.chunk.given.operations[place.row, view].tolist()
        return place.chunk.given.boxes[place.row, view].tolist(), [(int(number), size) for number, size in operations]

    def spread(self, count: int) -> tuple[Spread, Spread]:
        """Up to `count` plain images and up to `count` texts, evenly spaced over the data."""
        return (
            self._spread("images", [n for shard in self._shards for n in shard.samples], count),
            self._spread("texts", [n for shard in self._shards for n in shard.captions], count),
        )

    def _spread(self, side: str, sizes: Sequence[int], count: int) -> Spread:
        """Of files with so many rows each; a file is opened for its own rows only."""
        ends = list(itertools.accumulate(sizes))
        files = [self.path / name for shard in self._shards for name in shard.files]
        rows = torch.linspace(0, ends[-1] - 1, min(ends[-1], count), dtype=torch.float64).round().long().tolist()
        found: list[Tensor] = []
        keys: list[str] = []
        for at, some in itertools.groupby(rows, key=lambda row: bisect.bisect_right(ends, row)):
            chunk, inside = read_chunk(files[at]), [row - ends[at] + sizes[at] for row in some]
            values = chunk.images[inside, 0] if side == "images" else chunk.texts[inside]
            owners = chunk.keys if side == "images" else np.repeat(chunk.keys, chunk.captions).tolist()
            found.append(self._finite(list(values), chosen := [owners[row] for row in inside]))
            keys += chosen
        return Spread(torch.cat(found), keys)

    def _finite(self, rows: Sequence[NDArray[np.float16]], keys: Sequence[str]) -> Tensor:
        """(B, D) in FP32, of as many samples."""
        values = torch.from_numpy(np.stack(rows)).float()
        if not torch.isfinite(values).all():
            key = keys[int((~torch.isfinite(values).all(dim=1)).nonzero()[0])]
            raise CorruptInputError(f"{self.path}: the teacher's embedding of the sample {key!r} is not finite", AGAIN)
        return values

    def _checked(self, key: str, mark: bytes) -> _Place:
        place = self._place(key)
        if place is None:
            raise CorruptInputError(
                f"the sample {key!r} has no teacher embedding", "embed the same data that the student learns from"
            )
        if other := difference(mark, place.chunk.marks[place.row].tobytes()):
            raise CorruptInputError(
                f"the sample {key!r} is not the one whose teacher embedding is cached: it has {other}",
                "sets may use the same keys: embed the same data that the student learns from",
            )
        return place

    def _place(self, key: str) -> _Place | None:
        for name in (key.partition("/")[0], ""):
            if (shard := self._by_name.get(name)) is not None:
                place = self._opened(shard).place(key)
                if place is not None:
                    return place
        return None

    def _opened(self, shard: Shard) -> _Opened:
        """A shard's files; of those that were asked for longest ago, files are closed."""
        with self._lock:
            if shard.name not in self._open:
                self._open[shard.name] = _Opened.of([read_chunk(self.path / name) for name in shard.files])
            self._open.move_to_end(shard.name)
            held = HELD if self._held is None else self._held
            while len(self._open) > 1 and sum(len(opened.rows) for opened in self._open.values()) > held:
                self._open.popitem(last=False)
            return self._open[shard.name]


def contents_of(folder: Path) -> Contents:
    path = folder / CONTENTS
    try:
        return Contents.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptInputError(f"{path}{first_wrong(error)}", AGAIN) from error
