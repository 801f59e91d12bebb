"""What the files of a shard say: samples in order, and what is wrong with those that are none.

The layout is WebDataset's: a sample is the run of files of a tar that share a name up to its first dot. Whoever reads a
shard reads it here, the index (`index.py`) as well as a stream, so that both have the same samples and the same words
for damage.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcompress.data.imagefile import image_size
from mmcompress.data.sample import Sample
from mmcompress.data.shards import SUFFIXES, TEXT_BYTES, BrokenShardError, Member, largest, members
from mmcompress.data.spec import CLASSNAMES, IMAGE_SUFFIXES, is_stream
from mmcompress.datakeys import KNOWN, Keys

_LISTED = 8
NO_IMAGE, NO_CAPTION = "no image (", "no caption ("
"""How reasons begin where files have other names than samples have."""
TOO_MANY_DOTS = "; what is behind the first dot of a name is the kind of file, so these names have a dot too many"


@dataclass(frozen=True)
class Meaning:
    """What the samples of a shard mean, by the lists beside it (`layout.py`)."""

    classes: list[str] | None
    """What a `.cls` counts."""
    lines: bool
    """Whether a `.txt` has one caption a line."""
    keys: Keys = KNOWN
    """What holds images and captions."""


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
        for key, group in itertools.groupby(members(shard, keys=meaning.keys), lambda member: member.key):
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
    keys = meaning.keys
    kinds = tuple(key.lower() for key in keys.images) or IMAGE_SUFFIXES
    suffix = next((suffix for suffix in kinds if suffix in files), None)
    if suffix is None:
        dotted = not keys.last_dot and any(name.rpartition(".")[2] in kinds for name in files)
        raise ValueError(f"{NO_IMAGE}{_either(kinds)}) among: {_listed(files)}{TOO_MANY_DOTS if dotted else ''}")
    wanted = (*SUFFIXES, *kinds, *(key.lower() for key in keys.texts))
    contents = {known: files[known].content for known in wanted if known in files}
    for name, content in contents.items():
        if content is None:
            raise ValueError(f"the {name} has more than {largest(name, keys) >> 20} MiB")
    image = contents[suffix] or b""
    about = _about(contents.get("json"))
    label = about.get("label")
    if meaning.classes is not None and (number := contents.get("cls")) is not None:
        label = _class(number, meaning.classes)
    captions = _named_captions(contents, about, meaning) if keys.texts else _captions(contents, about, meaning)
    if not captions and "cls" in files and not keys.texts:
        captions = different([label])
    if not captions:
        lacks = f", and no {CLASSNAMES} says what its cls means" if "cls" in files else ""
        inside = f"; in json: {_listed(about)}" if about else ""
        where = _either(keys.texts) if keys.texts else "txt, or captions or caption in json"
        raise ValueError(f"{NO_CAPTION}{where}) among: {_listed(files)}{inside}{lacks}")
    if sum(map(len, captions)) > TEXT_BYTES:
        raise ValueError(f"its captions have more than {TEXT_BYTES >> 20} Mi characters in all")
    image_size(image)
    named = None if label is None else writable(str(label))
    return Sample(key, image, captions, named, about.get("seen") is not False), files[suffix].offset


def _captions(contents: Mapping[str, bytes | None], about: Mapping[str, Any], meaning: Meaning) -> tuple[str, ...]:
    """What is said of an image in the places that every reader of such shards knows."""
    synthetic = _about(contents.get("syn.json"), "syn.json").get("syn_text") or []
    if not isinstance(synthetic, list):
        raise ValueError("syn_text in syn.json is no list")
    said = [*_texts(contents, "txt", meaning), *(about.get("captions") or [])]
    return different([*(said if different(said) else [about.get("caption")]), *synthetic])


def _named_captions(
    contents: Mapping[str, bytes | None], about: Mapping[str, Any], meaning: Meaning
) -> tuple[str, ...]:
    """What is said of an image under the keys that the set is read by: in files of such kinds, and in its JSON."""
    said: list[Any] = []
    for key in meaning.keys.texts:
        said += _texts(contents, key.lower(), meaning)
        if (inside := meaning.keys.column([key], about)) is not None:
            said += about[inside] if isinstance(about[inside], list) else [about[inside]]
    return different(said)


def _texts(contents: Mapping[str, bytes | None], suffix: str, meaning: Meaning) -> list[str]:
    try:
        text = (contents.get(suffix) or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the {suffix} is not UTF-8") from error
    return text.splitlines() if meaning.lines else [text]


def _either(names: Sequence[str]) -> str:
    """`jpg, jpeg, png or webp`"""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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
