"""Pairs that lie in no shard yet: images with captions beside them, folders of classes, tables of paths or of images.

Readers of training data hold a table and the paths of a folder in memory (`reading.py`). Here they go through a
database on the disk, which puts them into order, so that a folder or a table of any size is packed in the same memory.
"""

from __future__ import annotations

import csv
import itertools
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from mmcompress.data.imagefile import image_size
from mmcompress.data.parquet import SUFFIX, columns, has_bytes, parquet_tables, rows
from mmcompress.data.parsing import Meaning, different, sample_of, writable
from mmcompress.data.reading import stored_image
from mmcompress.data.sample import Sample
from mmcompress.data.shards import TEXT_BYTES, Member, largest
from mmcompress.data.spec import IMAGE_SUFFIXES, SHARD_SUFFIXES, TABLE, expand, part_of
from mmcompress.data.tally import Tally
from mmcompress.datakeys import KNOWN, Keys, keys_of
from mmcompress.errors import CorruptInputError, UsageError

IMAGE_COLUMNS, CAPTION_COLUMNS = ("image", "path", "filepath"), ("caption", "text", "title")
"""What the columns of a table may be called."""
BESIDE = ("txt", "json")
_LOOKED_AT = 100
_CELL_CHARACTERS = 2**20
"""Of a table, at most; csv's own limit is lower."""
_ACCEPTED = (
    "give a folder of images with captions beside them (a.jpg, a.txt), a folder of images by class (DIR/CLASS/*.jpg), "
    f"or a table (.tsv, .csv, {SUFFIX}) with a column of {', '.join(IMAGE_COLUMNS)} and one of "
    f"{', '.join(CAPTION_COLUMNS)}"
)
_OTHERS = "say which columns have them: keys:IMAGE/CAPTION:TABLE"
_ORDERED = """
    SELECT row.image, row.caption, row.label FROM row
    JOIN (SELECT image, MIN(number) AS first FROM row GROUP BY image) AS one ON row.image = one.image
    ORDER BY one.first, row.number
"""


class _Tabs(csv.excel_tab):
    """Quotes are ordinary characters."""

    quoting = csv.QUOTE_NONE


class _Commas(csv.excel):
    """A quote that is never closed is an error: all rows behind it would be one cell."""

    strict = True


def loose_samples(source: Path, tally: Tally, keys: Keys = KNOWN) -> Iterator[Sample]:
    """Every good sample of a folder or of a table, its key the path; damage goes to the tally.

    A folder is in the order of its paths, a table in that of its images' first rows. `keys` say which columns and
    which files beside images count. Raises UsageError for what is
    neither, and for a folder without captions.
    """
    if source.is_dir() and (source / TABLE).is_file():
        source = source / TABLE
    if (tables := parquet_tables(source)) and not (source.is_dir() and _holds_shards(source)):
        for table in tables:
            yield from _parquet_samples(table, tally, keys)
    elif source.is_dir():
        yield from _folder_samples(source, tally, keys)
    elif source.suffix.lower() in (".tsv", ".csv") and source.is_file():
        yield from _table_samples(source, _rows(source, keys), tally)
    else:
        raise UsageError(
            f"{source} is neither a folder nor a table" if source.exists() else f"there is no {source}", _ACCEPTED
        )


def _holds_shards(folder: Path) -> bool:
    return any(path.name.lower().endswith(SHARD_SUFFIXES) for path in folder.iterdir())


def _folder_samples(folder: Path, tally: Tally, keys: Keys) -> Iterator[Sample]:
    with tempfile.TemporaryDirectory(prefix="mmcompress-") as place, closing(_database(Path(place))) as rows:
        captioned = loose = False
        for path in _files(str(folder)):
            stem, dot, suffix = path.rpartition(".")
            if dot and suffix.lower() in (keys.images or IMAGE_SUFFIXES):
                name = os.path.relpath(path, folder)
                captioned = captioned or bool(_texts_beside(stem, keys))
                loose = loose or os.sep not in name
                rows.execute("INSERT INTO row (image) VALUES (?)", (os.fsencode(name),))
            elif path.lower().endswith(SHARD_SUFFIXES):
                raise UsageError(f"{folder} holds {os.path.relpath(path, folder)}, which is packed already", _ACCEPTED)
        if not captioned and loose:
            raise UsageError(f"no image in {folder} has a caption beside it, nor do all lie in folders", _ACCEPTED)
        for (stored,) in rows.execute("SELECT image FROM row ORDER BY image"):
            inside = Path(os.fsdecode(stored))
            try:
                sample = _beside(folder, inside, keys) if captioned else _of_class(folder, inside)
            except (ValueError, OSError) as error:
                tally.add_bad(str(inside), str(error))
                continue
            tally.good += 1
            yield sample


def _files(folder: str) -> Iterator[str]:
    """Every file below a folder, in no order; hidden ones left out. No list of a folder is held."""
    below = [folder]
    while below:
        with os.scandir(below.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_file():
                    yield entry.path


def _beside(folder: Path, inside: Path, keys: Keys) -> Sample:
    """An image with what lies beside it, read as the files of one sample of a shard."""
    path = folder / inside
    files = {path.suffix[1:].lower(): path} | _texts_beside(str(path.with_suffix("")), keys)
    members = {
        suffix: Member("", suffix, file.read_bytes() if file.stat().st_size <= largest(suffix, keys) else None, 0)
        for suffix, file in files.items()
    }
    if not members.keys() & {*BESIDE, *keys.texts}:
        raise ValueError(f"no caption beside it ({' or '.join(f'.{name}' for name in keys.texts or BESIDE)})")
    return sample_of(writable(inside.as_posix()), members, Meaning(None, False, keys))[0]


def _texts_beside(stem: str, keys: Keys) -> dict[str, Path]:
    """What is said of an image, in small letters and in capitals, as cameras and archives of Windows have it."""
    places = ((name, Path(f"{stem}.{suffix}")) for name in (*BESIDE, *keys.texts) for suffix in (name.upper(), name))
    return {name: path for name, path in places if path.is_file()}


def caption_beside(spec: str) -> Path | None:
    """A caption that lies beside one of the first photos of a folder, which nothing but `data pack` reads."""
    keys, _ = keys_of(part_of(spec)[1])
    stems = (str(Path(place).with_suffix("")) for place in itertools.islice(expand(spec), _LOOKED_AT))
    return next((path for stem in stems for path in _texts_beside(stem, keys).values()), None)


def _of_class(folder: Path, inside: Path) -> Sample:
    label = writable(inside.parts[0])
    return Sample(writable(inside.as_posix()), stored_image(folder / inside), (label,), label, True)


def _parquet_samples(table: Path, tally: Tally, keys: Keys) -> Iterator[Sample]:
    """Rows with images are samples, each by itself; those with paths are as of any table."""
    image, texts = _columns(table, columns(table), (*IMAGE_COLUMNS, *IMAGE_SUFFIXES), keys)
    if not has_bytes(table, image):
        found = rows(table, image, texts)
        pairs = ((str(row.image or ""), text, row.label or "") for row in found for text in row.captions)
        yield from _table_samples(table, pairs, tally)
        return
    for row in rows(table, image, texts):
        key = f"{table.stem}/{row.number:09d}"
        try:
            if row.image is None:
                raise ValueError("no image")
            stored = row.image if isinstance(row.image, bytes) else stored_image(table.parent / row.image)
            if len(stored) > largest(IMAGE_SUFFIXES[0]):
                raise ValueError(f"the image has more than {largest(IMAGE_SUFFIXES[0]) >> 20} MiB")
            image_size(stored)
            if not (captions := different(list(row.captions))):
                raise ValueError("no caption")
            if sum(map(len, captions)) > TEXT_BYTES:
                raise ValueError(f"its captions have more than {TEXT_BYTES >> 20} Mi characters in all")
        except (ValueError, OSError) as error:
            tally.add_bad(f"{table}: row {row.number}", str(error))
            continue
        tally.good += 1
        yield Sample(writable(key), stored, captions, row.label, True)


def _columns(table: Path, there: Sequence[str], images: Sequence[str], keys: Keys) -> tuple[str, list[str]]:
    """The columns of a table that hold the image and its captions. UsageError names those that are there."""
    image = keys.column(keys.images or images, there)
    found = (keys.column([name], there) for name in keys.texts or CAPTION_COLUMNS)
    texts = [name for name in found if name is not None]
    if image is None or not texts:
        raise UsageError(f"{table} has the columns {', '.join(there) or '(none)'}", f"{_ACCEPTED}; or {_OTHERS}")
    return image, texts if keys.texts else texts[:1]


def _table_samples(table: Path, pairs: Iterable[tuple[str, str, str]], tally: Tally) -> Iterator[Sample]:
    """Rows of one image, wherever they stand, are the captions of one sample. Paths are from the table's folder."""
    with tempfile.TemporaryDirectory(prefix="mmcompress-") as place, closing(_database(Path(place))) as kept:
        kept.executemany("INSERT INTO row (image, caption, label) VALUES (?, ?, ?)", pairs)
        kept.execute("CREATE INDEX by_image ON row (image, number)")
        for name, group in itertools.groupby(kept.execute(_ORDERED), key=lambda row: row[0]):
            said = list(group)
            try:
                captions = different([caption for _, caption, _ in said])
                if not captions:
                    raise ValueError("no caption")
                if not (path := table.parent / name).is_file():
                    raise ValueError("there is no such image")
                image = stored_image(path)
            except (ValueError, OSError) as error:
                tally.add_bad(f"{table}: {name}", str(error))
                continue
            tally.good += 1
            yield Sample(writable(name), image, captions, said[0][2] or None, True)


def _rows(table: Path, keys: Keys) -> Iterator[tuple[str, str, str]]:
    """Image, caption and label of every row. In a .csv cells may be quoted, in a .tsv quotes are characters."""
    form = _Tabs if table.suffix.lower() == ".tsv" else _Commas
    csv.field_size_limit(_CELL_CHARACTERS)
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", dialect=form)
            image, captions = _columns(table, reader.fieldnames or [], IMAGE_COLUMNS, keys)
            for row in reader:
                yield from ((row[image], row[caption], row.get("label", "")) for caption in captions)
    except UnicodeDecodeError as error:
        raise CorruptInputError(f"{table} is not UTF-8: {error}", "save it as UTF-8") from error
    except csv.Error as error:
        raise CorruptInputError(f"{table} cannot be read as a table: {error}", "write it again") from error


def _database(folder: Path) -> sqlite3.Connection:
    """An empty table of rows, on the disk and gone afterwards; of its pages 4 MB are held, so memory is flat."""
    rows = sqlite3.connect(folder / "rows.sqlite", isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", "cache_size = -4096"):
        rows.execute(f"PRAGMA {pragma}")
    rows.execute("CREATE TABLE row (number INTEGER PRIMARY KEY, image, caption, label)")
    rows.execute("BEGIN")
    return rows
