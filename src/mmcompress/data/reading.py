"""Samples of shards, tables, folders and streams, with a tally of what could not be read.

A local shard is read by its index (`index.py`): what is listed of it is references, whose images nobody has read yet.
Everything else is read from its begin to its end. A shard that breaks keeps the samples before the break and counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mmcompress.data.imagefile import image_size
from mmcompress.data.index import Reference, indexed_shard, references
from mmcompress.data.layout import is_retrieval, numbered_classes
from mmcompress.data.parsing import Damage, Meaning, different, parsed, writable
from mmcompress.data.remote import UnreachableError, at_hand
from mmcompress.data.sample import Sample
from mmcompress.data.sentences import sentence_for
from mmcompress.data.shards import MEMBER_BYTES, TEXT_BYTES
from mmcompress.data.spec import PHOTO_SUFFIXES, SHARD_SUFFIXES, STDIN, images_in, is_stream, is_table
from mmcompress.data.tally import Tally
from mmcompress.datakeys import Keys, option_for
from mmcompress.errors import CorruptInputError, UsageError

Listed = Sample | Reference
"""A good sample, its image in memory or still in its shard."""


def samples(stream: Iterable[Listed], tally: Tally) -> Iterator[Sample]:
    """What is listed, with its images read. `tally.finish` is left to the caller."""
    for item in stream:
        try:
            sample = item if isinstance(item, Sample) else _read(item)
        except OSError as error:
            tally.good -= 1
            tally.add_bad(item.key, f"the image cannot be read: {error}")
            continue
        yield sample


def _read(item: Reference) -> Sample:
    return Sample(item.key, item.stored(), item.captions, item.label, item.seen)


def listed(places: Iterable[tuple[str, str]], keys: Keys, tally: Tally) -> Iterator[Listed]:
    """Every good sample of the (place, name)s, in order, read by some keys. `tally.finish` is left to the caller."""
    for place, name in places:
        if not is_image_or_table(place):
            yield from _of_shard(place, name, keys, tally)
        elif is_table(place):
            yield from _table_samples(Path(place), keys, tally)
        elif Path(place).is_dir():
            yield from _class_samples(Path(place), name, tally)
        else:
            yield from _photo_sample(Path(place), name, tally)


def is_image_or_table(place: str) -> bool:
    """Whether a place is a table, a folder of a class or an image by itself; any other one is read as a shard."""
    if is_stream(place):
        return False
    return is_table(place) or Path(place).is_dir() or place.lower().endswith(PHOTO_SUFFIXES)


def named(places: list[str]) -> list[tuple[str, str]]:
    """Each place with a short unique name to put in front of its keys: shards number their samples from 0 each.

    Taken before places are shuffled, so that a key means the same sample in every epoch.
    """
    names: list[str] = []
    for place in places:
        name = Path(place).name
        stem = next((name[: -len(suffix)] for suffix in SHARD_SUFFIXES if name.lower().endswith(suffix)), name)
        names.append(f"stream-{len(names):05d}" if place == STDIN or place.startswith("pipe:") else stem)
    if len(set(names)) < len(names):
        names = [f"{index:05d}-{name}" for index, name in enumerate(names)]
    return list(zip(places, names, strict=True))


def _of_shard(place: str, name: str, keys: Keys, tally: Tally) -> Iterator[Listed]:
    try:
        place = at_hand(place)
    except UnreachableError as error:
        tally.add_bad(place, f"the shard cannot be fetched: {error}", may_pass=True)
        return
    shard = indexed_shard(place, name, keys)
    indexed = shard is not None and shard.index.seekable
    for found in references(shard) if shard is not None and indexed else _unindexed(place, name, keys):
        if isinstance(found, Damage):
            tally.add_bad(place if found.key is None else f"{place}: {found.key}", found.reason, found.may_pass)
            continue
        tally.good += 1
        yield found


def _unindexed(place: str, name: str, keys: Keys) -> Iterator[Sample | Damage]:
    meaning = Meaning(numbered_classes(place), is_retrieval(place), keys)
    for found in parsed(place, f"{name}/", meaning):
        yield found if isinstance(found, Damage) else found[0]


def _class_samples(folder: Path, name: str, tally: Tally) -> Iterator[Sample]:
    """The images below a folder, in the order of their paths; its name is their class, and their caption."""
    label = writable(folder.name)
    for path in sorted(images_in(folder)):
        try:
            image = stored_image(path)
        except (ValueError, OSError) as error:
            tally.add_bad(str(path), str(error))
            continue
        tally.good += 1
        yield Sample(writable(f"{name}/{path.relative_to(folder).as_posix()}"), image, (label,), label, True)


def _photo_sample(path: Path, name: str, tally: Tally) -> Iterator[Sample]:
    """An image of which nothing is said; a sentence stands in, for those who need a text and not this one."""
    try:
        image = stored_image(path)
    except (ValueError, OSError) as error:
        tally.add_bad(str(path), str(error))
        return
    tally.good += 1
    key = writable(name)
    yield Sample(key, image, (sentence_for(key),), None, True)


def stored_image(path: Path) -> bytes:
    """The bytes of a whole image file; ValueError says what is wrong with it."""
    if path.stat().st_size > MEMBER_BYTES:
        raise ValueError(f"the image has more than {MEMBER_BYTES // 2**20} MiB")
    image = path.read_bytes()
    image_size(image)
    return image


def _table_samples(table: Path, keys: Keys, tally: Tally) -> Iterator[Sample]:
    """Rows of one image, wherever they stand, are the captions of one sample, in the order of the first rows."""
    images: dict[str, list[dict[str, str]]] = {}
    column, texts, rows = _rows(table, keys)
    for row in rows:
        images.setdefault(row[column], []).append(row)
    folder = table.parent.resolve()
    for name, group in images.items():
        try:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder):
                raise ValueError("the image lies outside of the folder of the table")
            captions = different([row[text] for row in group for text in texts])
            if not captions:
                raise ValueError("no caption")
            if max(map(len, captions)) > TEXT_BYTES:
                raise ValueError(f"a caption has more than {TEXT_BYTES:,} characters")
            if not path.is_file():
                raise ValueError("there is no such image")
            image = stored_image(path)
        except (ValueError, OSError) as error:
            tally.add_bad(f"{table}: {name}", str(error))
            continue
        seen = group[0].get("seen", "").lower() not in ("false", "0", "no")
        tally.good += 1
        yield Sample(name, image, captions, group[0].get("label") or None, seen)


def _rows(table: Path, keys: Keys) -> tuple[str, list[str], list[dict[str, str]]]:
    """The columns of the image and of captions, and the rows of a table with a header; quotes are ordinary characters,
    cells that are not there are empty.
    """
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CorruptInputError(f"{table} is not UTF-8: {error}", "save it as UTF-8") from error
    header = lines[0].split("\t")
    image = keys.column(keys.images or ("image",), header)
    texts = [name for key in keys.texts or ("caption",) if (name := keys.column([key], header)) is not None]
    if image is None or not texts:
        raise UsageError(
            f"{table} has the columns {', '.join(header)}",
            "its first line must name the columns, `image` and `caption` among them, separated by tabs; "
            f"or say which they are: {option_for('COLUMN', 'COLUMN')}",
        )
    empty = [""] * len(header)
    rows = [dict(zip(header, line.split("\t") + empty, strict=False)) for line in lines[1:] if line.strip()]
    return image, texts, rows
