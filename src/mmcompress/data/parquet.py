"""Pairs in Parquet tables, as img2dataset and Hugging Face write them: images as bytes, or paths beside captions.

Rows are read some at a time through a buffer, so memory does not grow with a table or with its row groups. An image is
bytes, a path from the folder of the table, or Hugging Face's pair of both, `{bytes, path}`. pyarrow reads the format,
and only `data pack` asks for it: a shard is what training reads fast and in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.errors import CorruptInputError, require

SUFFIX = ".parquet"
_ROWS = 16
"""That are held at once."""
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Row:
    """One row of a table; bytes of an image, or where it lies."""

    number: int
    image: bytes | str | None
    captions: tuple[Any, ...]
    label: str | None


def parquet_tables(place: Path) -> list[Path]:
    """The table, or those right in a folder, in order; none where a place is or holds none."""
    if place.is_dir():
        found = (path for path in place.iterdir() if path.suffix.lower() == SUFFIX and path.name[0] != ".")
        return sorted(path for path in found if path.is_file())
    return [place] if place.suffix.lower() == SUFFIX and place.is_file() else []


def columns(table: Path) -> list[str]:
    """The names of a table's columns. MissingRequirementError without pyarrow, CorruptInputError for no such table."""
    with _opened(table) as opened:
        return list(opened.schema_arrow.names)


def has_bytes(table: Path, image: str) -> bool:
    """Whether a column holds images, and not only paths of them."""
    pyarrow = require("pyarrow", "parquet")
    with _opened(table) as opened:
        kind = opened.schema_arrow.field(image).type
        inside = [kind.field(i) for i in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        kind = next((field.type for field in inside if field.name == "bytes"), kind)
        return any(check(kind) for check in (pyarrow.types.is_binary, pyarrow.types.is_large_binary))


def rows(table: Path, image: str, texts: Sequence[str]) -> Iterator[Row]:
    """The rows of a table in order, by its columns of an image and of captions, which may be lists."""
    with _opened(table) as opened:
        label = ["label"] if "label" in opened.schema_arrow.names and "label" not in texts else []
        number = 0
        for batch in opened.iter_batches(batch_size=_ROWS, columns=[image, *texts, *label], use_threads=False):
            for at in range(batch.num_rows):
                row = {name: batch.column(name)[at].as_py() for name in batch.schema.names}
                said = [row[text] for text in texts]
                captions = tuple(one for many in said for one in (many if isinstance(many, list) else [many]))
                named = row.get("label")
                yield Row(number, _image(row[image]), captions, named if isinstance(named, str) else None)
                number += 1


def _image(stored: Any) -> bytes | str | None:
    """Of Hugging Face's pairs the bytes, or where there are none the path."""
    if isinstance(stored, dict):
        stored = stored.get("bytes") or stored.get("path")
    return stored if isinstance(stored, bytes | str) else None


@contextmanager
def _opened(table: Path) -> Iterator[Any]:
    require("pyarrow", "parquet")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(table, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
            yield opened
    except (ArrowException, OSError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptInputError(f"{table} cannot be read as a Parquet table: {said}", "fetch it again") from error
