"""Under which names a set has images and captions, if not under those that are known: `keys:image/caption:SPEC`.

A key is what stands behind the first dot of a file's name in a shard, a name in the JSON beside an image, or a column
of a table. What is said takes the place of what is known, so a `txt` that holds something else is never taken for a
caption. It is a part of the specification, like `part:`, so that whatever reads data reads it in the same way; the
config has it as `data.image_keys` and `data.text_keys`, which are put before what the table names. Folders of images
and what ships have no keys and are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmcompress.errors import UsageError

PAIRS = ("train", "validation", "test", "original")
"""What a table of data names pairs by."""
FIELDS = ("image_keys", "text_keys")
"""What such a table says keys by."""
_BEFORE = "keys:"
_ANY = "*."
_KEY = re.compile(r"(\*\.)?[^\s*/:,]([^*/:,]*[^\s*/:,])?")
_EXAMPLE = "for example: keys:image,png/caption:shards; captions alone are keys:/caption:shards"


@dataclass(frozen=True)
class Keys:
    """What holds images and what holds captions, the first that is there; empty for what is known."""

    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    """All that are there count, each text once."""
    last_dot: bool = False
    """Whether a kind of file begins at the last dot of a name, and dots before it belong to the name."""

    def column(self, wanted: Iterable[str], there: Iterable[str]) -> str | None:
        """The first wanted name that is there, as it is spelled there; capitals make no difference."""
        spelled = {name.strip().casefold(): name for name in there}
        return next((spelled[name.casefold()] for name in wanted if name.casefold() in spelled), None)


KNOWN = Keys()
"""Of sets whose files have the names that WebDataset's readers know."""


def keys_of(spec: str) -> tuple[Keys, str]:
    """`keys:image,png/caption:SPEC` -> (those keys, SPEC); nothing is said where a specification has none.

    Raises UsageError for keys that are none, and for a part of a set behind them.
    """
    if not spec.startswith(_BEFORE):
        return KNOWN, spec
    match = re.fullmatch(r"keys:([^/:]*)(?:/([^/:]*))?:(.+)", spec, re.DOTALL)
    images, texts = (_listed(match[1]), _listed(match[2] or "")) if match else ((), ())
    if match is None or not (images or texts) or not all(map(_KEY.fullmatch, (*images, *texts))):
        raise UsageError(f"{spec[:80]!r} does not say which keys hold images and captions", _EXAMPLE)
    if match[3].startswith("part:"):
        raise UsageError(f"{spec[:80]!r} names keys before a part", "put the part first: part:0-1/10:keys:image:shards")
    last_dot = any(key.startswith(_ANY) for key in (*images, *texts))
    return Keys(_plain(images), _plain(texts), last_dot), match[3]


def with_keys(spec: str, images: Iterable[str], texts: Iterable[str]) -> str:
    """A specification that is read by these keys; those that are not said stay. What ships is left as it is.

    Raises UsageError for a key that no specification can say.
    """
    part = re.match(r"part:[^:]*:", spec)
    before, whole = (part[0], spec[part.end() :]) if part else ("", spec)
    if match := re.match(r"keys:([^/:]*)(?:/([^/:]*))?:", whole):
        whole = whole[match.end() :]
        images, texts = tuple(images) or _listed(match[1]), tuple(texts) or _listed(match[2] or "")
    for key in (*images, *texts):
        if not _KEY.fullmatch(key):
            raise UsageError(f"{key!r} is no key that files of shards can have", _EXAMPLE)
    if whole.startswith("demo:") or not (*images, *texts):
        return spec
    return f"{before}{_BEFORE}{','.join(images)}/{','.join(texts)}:{whole}"


def with_keys_in(values: Mapping[str, Any], table: str = "") -> dict[str, Any] | None:
    """A table of data in which each specification says the keys that the table has; `data.` may stand before its names.

    None where they are no texts, which is for the config to refuse.
    """
    said = [values.get(f"{table}{name}", ()) for name in FIELDS]
    images, texts = (_listed(keys) if isinstance(keys, str) else keys for keys in said)
    for keys in (images, texts):
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
            return None
    pairs = {name: values.get(name) for name in (f"{table}{pair}" for pair in PAIRS)}
    return {**values, **{name: with_keys(spec, images, texts) for name, spec in pairs.items() if isinstance(spec, str)}}


def option_for(images: str = "", texts: str = "") -> str:
    """The words that tell a user how to say which keys are meant."""
    said = {"data.image_keys": images, "data.text_keys": texts}
    options = " ".join(f"--set '{name}={value}'" for name, value in said.items() if value)
    return f"{options}, or in a command without --set '{_BEFORE}{images}{f'/{texts}' if texts else ''}:DATA'"


def _listed(said: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in said.split(",") if part.strip())


def _plain(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key.removeprefix(_ANY) for key in keys)
