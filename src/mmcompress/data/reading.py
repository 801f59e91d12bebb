"""Samples out of shards, tables, folders and streams, with a tally of what could not be read.

The layout is WebDataset's: a sample is the run of files of a tar that share a name up to its first dot. A shard that
breaks (shards.py) keeps the samples before the break and counts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompress.data.imagefile import image_size
from mmcompress.data.layout import is_retrieval, numbered_classes
from mmcompress.data.sentences import sentence_for
from mmcompress.data.shards import MEMBER_BYTES, SUFFIXES, BrokenShardError, members
from mmcompress.data.spec import CLASSNAMES, IMAGE_SUFFIXES, PHOTO_SUFFIXES, SHARD_SUFFIXES, images_in, is_stream
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError, UsageError


@dataclass(frozen=True)
class Sample:
    """An image as it was stored, and what is said of it."""

    key: str
    """Unique within the data: the shard's or the class's name and the name in it, or the path in a table."""
    image: bytes
    captions: tuple[str, ...]
    label: str | None
    seen: bool
    """False for a class that was kept out of training."""


def samples(places: Iterable[tuple[str, str]], tally: Tally) -> Iterator[Sample]:
    """Every good sample of the (place, name)s, in order. `tally.finish` is left to the caller."""
    for place, name in places:
        if place.endswith(".tsv") and not is_stream(place):
            yield from _table_samples(Path(place), tally)
        elif not is_stream(place) and Path(place).is_dir():
            yield from _class_samples(Path(place), name, tally)
        elif not is_stream(place) and place.lower().endswith(PHOTO_SUFFIXES):
            yield from _photo_sample(Path(place), name, tally)
        else:
            yield from _shard_samples(place, name, tally)


def named(places: list[str]) -> list[tuple[str, str]]:
    """Each place with a short unique name to put in front of its keys: shards number their samples from 0 each.

    Taken before places are shuffled, so that a key means the same sample in every epoch.
    """
    names: list[str] = []
    for place in places:
        name = Path(place).name
        stem = next((name.removesuffix(suffix) for suffix in SHARD_SUFFIXES if name.endswith(suffix)), name)
        names.append(f"stream-{len(names):05d}" if place == "-" or place.startswith("pipe:") else stem)
    if len(set(names)) < len(names):
        names = [f"{index:05d}-{name}" for index, name in enumerate(names)]
    return list(zip(places, names, strict=True))


def _shard_samples(shard: str, name: str, tally: Tally) -> Iterator[Sample]:
    keys: set[str] = set()
    classes, lines = numbered_classes(shard), is_retrieval(shard)
    try:
        for key, group in itertools.groupby(members(shard), lambda member: member[0]):
            files, repeated = {}, key in keys
            for _, suffix, content in group:  # a tar that breaks here drops the unfinished sample
                repeated |= suffix in files
                files[suffix] = content
            keys.add(key)
            try:
                if repeated:
                    raise ValueError("a file or a sample of that name was there before")
                sample = _sample(f"{name}/{key}", files, classes, lines)
            except ValueError as error:
                tally.add_bad(f"{shard}: {key}", str(error))
                continue
            tally.good += 1
            yield sample
    except BrokenShardError as error:
        tally.add_bad(shard, f"the shard breaks after {len(keys)} samples: {error}")


def _sample(key: str, files: Mapping[str, bytes | None], classes: list[str] | None, lines: bool) -> Sample:
    """ValueError says what is wrong with it. `classes` are what a `.cls` counts; with `lines` a `.txt` has one caption
    a line."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if suffix is None:
        raise ValueError(f"no image (jpg, jpeg, png or webp) among: {', '.join(sorted(files))}")
    if any(files[known] is None for known in SUFFIXES if known in files):
        raise ValueError(f"a file has more than {MEMBER_BYTES // 2**20} MiB")
    image = files[suffix] or b""
    about = _about(files.get("json"))
    try:
        text = (files.get("txt") or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("the txt is not UTF-8") from error
    label = about.get("label")
    if classes is not None and (number := files.get("cls")) is not None:
        label = _class(number, classes)
    texts = text.splitlines() if lines else [text]
    captions = _captions([*texts, *(about.get("captions") or [])]) or _captions([about.get("caption")])
    if not captions and "cls" in files:
        captions = _captions([label])
    if not captions:
        lacks = f", and no {CLASSNAMES} says what its cls means" if "cls" in files else ""
        raise ValueError(f"no caption (txt, or captions or caption in json){lacks}")
    image_size(image)
    return Sample(
        key, image, captions, None if label is None else _writable(str(label)), about.get("seen") is not False
    )


def _class(number: bytes, classes: list[str]) -> str:
    """The name of a class, by its number."""
    text = number.decode("ascii", "replace").strip()
    if not (text.isascii() and text.isdigit()) or int(text[:9]) >= len(classes) or len(text) > 9:
        raise ValueError(f"the cls is {text[:20]!r}, and the classes are numbered 0 to {len(classes) - 1}")
    return classes[int(text)]


def _about(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        about = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("the json cannot be parsed") from error
    if not isinstance(about, dict):
        raise ValueError("the json is no object")
    if not isinstance(about.get("captions"), list | None):
        raise ValueError("captions in json is no list")
    if not isinstance(about.get("seen"), bool | None):
        raise ValueError("seen in json is neither true nor false")
    return about


def _captions(texts: list[Any]) -> tuple[str, ...]:
    """What is text and not empty, each once."""
    return tuple(dict.fromkeys(_writable(text.strip()) for text in texts if isinstance(text, str) and text.strip()))


def _writable(text: str) -> str:
    """JSON can escape half a character, which no file could be written with."""
    return text.encode("utf-8", "replace").decode()


def _class_samples(folder: Path, name: str, tally: Tally) -> Iterator[Sample]:
    """The images below a folder, in the order of their paths; its name is their class, and their caption."""
    label = _writable(folder.name)
    for path in sorted(images_in(folder)):
        try:
            image = _stored(path)
        except (ValueError, OSError) as error:
            tally.add_bad(str(path), str(error))
            continue
        tally.good += 1
        yield Sample(_writable(f"{name}/{path.relative_to(folder).as_posix()}"), image, (label,), label, True)


def _photo_sample(path: Path, name: str, tally: Tally) -> Iterator[Sample]:
    """An image of which nothing is said; a sentence stands in, for those who need a text and not this one."""
    try:
        image = _stored(path)
    except (ValueError, OSError) as error:
        tally.add_bad(str(path), str(error))
        return
    tally.good += 1
    key = _writable(name)
    yield Sample(key, image, (sentence_for(key),), None, True)


def _stored(path: Path) -> bytes:
    """The bytes of a whole image file; ValueError says what is wrong with it."""
    if path.stat().st_size > MEMBER_BYTES:
        raise ValueError(f"the image has more than {MEMBER_BYTES // 2**20} MiB")
    image = path.read_bytes()
    image_size(image)
    return image


def _table_samples(table: Path, tally: Tally) -> Iterator[Sample]:
    """Rows of one image, wherever they stand, are the captions of one sample, in the order of the first rows."""
    images: dict[str, list[dict[str, str]]] = {}
    for row in _rows(table):
        images.setdefault(row["image"], []).append(row)
    folder = table.parent.resolve()
    for name, group in images.items():
        try:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder):
                raise ValueError("the image lies outside of the folder of the table")
            captions = _captions([row["caption"] for row in group])
            if not captions:
                raise ValueError("no caption")
            if not path.is_file():
                raise ValueError("there is no such image")
            image = _stored(path)
        except (ValueError, OSError) as error:
            tally.add_bad(f"{table}: {name}", str(error))
            continue
        seen = group[0].get("seen", "").lower() not in ("false", "0", "no")
        tally.good += 1
        yield Sample(name, image, captions, group[0].get("label") or None, seen)


def _rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table with a header; quotes are ordinary characters, cells that are not there are empty."""
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CorruptInputError(f"{table} is not UTF-8: {error}", "save it as UTF-8") from error
    header = lines[0].split("\t")
    if not {"image", "caption"} <= set(header):
        raise UsageError(
            f"{table} has the columns {', '.join(header)}",
            "its first line must name the columns, `image` and `caption` among them, separated by tabs",
        )
    empty = [""] * len(header)
    return [dict(zip(header, line.split("\t") + empty, strict=False)) for line in lines[1:] if line.strip()]
