"""What the files of a shard say: samples in order, and what is wrong with those that are none.

The layout is WebDataset's: a sample is the run of files of a tar that share a name up to its first dot. Whoever reads a
shard reads it here, the index (`index.py`) as well as a stream, so that both have the same samples and the same words
for damage.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmcompress.data.imagefile import image_size
from mmcompress.data.sample import Sample
from mmcompress.data.shards import SUFFIXES, TEXT_BYTES, BrokenShardError, Member, largest, members
from mmcompress.data.spec import CLASSNAMES, IMAGE_SUFFIXES, is_stream

_LISTED = 8


@dataclass(frozen=True)
class Meaning:
    """What the samples of a shard mean, by the lists beside it (`layout.py`)."""

    classes: list[str] | None
    """What a `.cls` counts."""
    lines: bool
    """Whether a `.txt` has one caption a line."""


@dataclass(frozen=True)
class Damage:
    """What cannot be read."""

    key: str | None
    """Of the sample; None for the rest of the shard."""
    reason: str
    may_pass: bool = False
    """Whether it is of the system that reads, and not of what is read; a stream that brings nothing may be either."""


def parsed(shard: str, prefix: str, meaning: Meaning) -> Iterator[tuple[Sample, int] | Damage]:
    """Every sample of a shard with the offset of its image, as `shards.Member` has it, and all damage, in order.

    Keys begin with the prefix; those of damage do not.
    """
    keys: set[str] = set()
    try:
        for key, group in itertools.groupby(members(shard), lambda member: member.key):
            files: dict[str, Member] = {}
            repeated = key in keys
            for member in group:  # a tar that breaks here drops the unfinished sample
                repeated |= member.suffix in files
                files[member.suffix] = member
            keys.add(key)
            try:
                if repeated:
                    raise ValueError("a file or a sample of that name was there before")
                found: tuple[Sample, int] | Damage = sample_of(prefix + key, files, meaning)
            except ValueError as error:
                found = Damage(key, str(error))
            yield found
    except BrokenShardError as error:
        may_pass = isinstance(error.__cause__, OSError) or (is_stream(shard) and not keys)
        yield Damage(None, f"the shard breaks after {len(keys)} samples: {error}", may_pass)


def sample_of(key: str, files: Mapping[str, Member], meaning: Meaning) -> tuple[Sample, int]:
    """The sample that files are, by their suffixes, with its image's offset. ValueError says what is wrong with it."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if suffix is None:
        dotted = any(name.rpartition(".")[2] in IMAGE_SUFFIXES for name in files)
        why = "; what is behind the first dot of a name is the kind of file, so these names have a dot too many"
        raise ValueError(f"no image (jpg, jpeg, png or webp) among: {_listed(files)}{why if dotted else ''}")
    contents = {known: files[known].content for known in SUFFIXES if known in files}
    for name, content in contents.items():
        if content is None:
            raise ValueError(f"the {name} has more than {largest(name) >> 20} MiB")
    image = contents[suffix] or b""
    about = _about(contents.get("json"))
    try:
        text = (contents.get("txt") or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("the txt is not UTF-8") from error
    label = about.get("label")
    if meaning.classes is not None and (number := contents.get("cls")) is not None:
        label = _class(number, meaning.classes)
    texts = text.splitlines() if meaning.lines else [text]
    synthetic = _about(contents.get("syn.json"), "syn.json").get("syn_text") or []
    if not isinstance(synthetic, list):
        raise ValueError("syn_text in syn.json is no list")
    said = [*texts, *(about.get("captions") or [])]
    captions = different([*(said if different(said) else [about.get("caption")]), *synthetic])
    if not captions and "cls" in files:
        captions = different([label])
    if not captions:
        lacks = f", and no {CLASSNAMES} says what its cls means" if "cls" in files else ""
        inside = f"; in json: {_listed(about)}" if about else ""
        raise ValueError(f"no caption (txt, or captions or caption in json) among: {_listed(files)}{inside}{lacks}")
    if sum(map(len, captions)) > TEXT_BYTES:
        raise ValueError(f"its captions have more than {TEXT_BYTES >> 20} Mi characters in all")
    image_size(image)
    named = None if label is None else writable(str(label))
    return Sample(key, image, captions, named, about.get("seen") is not False), files[suffix].offset


def _listed(names: Iterable[str]) -> str:
    """Some names, in order."""
    named = sorted(names)
    return ", ".join(named[:_LISTED]) + (f" and {len(named) - _LISTED} more" if len(named) > _LISTED else "")


def _class(number: bytes, classes: list[str]) -> str:
    """The name of a class, by its number."""
    text = number.decode("ascii", "replace").strip()
    if not (text.isascii() and text.isdigit()) or int(text[:9]) >= len(classes) or len(text) > 9:
        raise ValueError(f"the cls is {text[:20]!r}, and the classes are numbered 0 to {len(classes) - 1}")
    return classes[int(text)]


def _about(content: bytes | None, name: str = "json") -> dict[str, Any]:
    if content is None:
        return {}
    try:
        about = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {name} cannot be parsed") from error
    if not isinstance(about, dict):
        raise ValueError(f"the {name} is no object")
    if not isinstance(about.get("captions"), list | None):
        raise ValueError("captions in json is no list")
    if not isinstance(about.get("seen"), bool | None):
        raise ValueError("seen in json is neither true nor false")
    return about


def different(texts: list[Any]) -> tuple[str, ...]:
    """What is text and not empty, each once."""
    return tuple(dict.fromkeys(writable(text.strip()) for text in texts if isinstance(text, str) and text.strip()))


def writable(text: str) -> str:
    """JSON can escape half a character, which no file could be written with."""
    return text.encode("utf-8", "replace").decode()
