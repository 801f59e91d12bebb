"""JSON in which every number is a number: the one way that documents are written and read here.

Python writes NaN and Infinity, which no other reader takes, and every comparison with NaN is false, so that it passes
a limit. Neither gets into a file or out of one, not even as 1e999, which Python reads as infinite. What could not be
computed is null, and it is the producer that says so: to write null for every NaN would hide a broken model. Left out:
the json of a sample in a shard, where others write NaN into fields that nobody reads here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcompress.errors import CorruptInputError

LARGEST_BYTES = 16 << 20
"""Of a manifest, a document or a config: the manifest of 100,000 shards. A million keys take minutes to be read."""
LARGEST_TOKENIZER = 64 << 20
"""Bytes of a `tokenizer.json`: Gemma's 262,144 tokens take 33 MB."""
_LONGEST_INTEGER = 308
"""Characters: what a float can hold. transformers writes 10^30 into tokenizers for "as long as you like"."""


def text_from_json(
    value: object, indent: int | None = None, *, compact: bool = False, canonical: bool = False, ascii: bool = False
) -> str:
    """The JSON text; `compact` is without blanks, `canonical` also sorted and ASCII, to be hashed.

    It is ASCII too where a name in it is no Unicode, as old photos' are: its bytes are escapes then, and read as such.

    Raises CorruptInputError with the key of the first number that is NaN or infinite.
    """
    form: dict[str, Any] = {"separators": (",", ":")} if compact or canonical else {"indent": indent}
    try:
        text = json.dumps(value, sort_keys=canonical, ensure_ascii=canonical or ascii, allow_nan=False, **form)
    except ValueError:
        check_finite(value)
        raise
    return text if is_unicode(text) else json.dumps(value, allow_nan=False, **form)


def is_unicode(text: str) -> bool:
    """Whether a text can be written: the bytes of a file's name that are no UTF-8 are surrogates, which cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def check_finite(value: object, largest: float = math.inf) -> None:
    """Raise CorruptInputError with the key of the first number in a document that is NaN, infinite or too large."""
    place = _place(value, largest)
    if place is not None:
        key, number = place
        if isinstance(number, int) or math.isfinite(number):
            raise CorruptInputError(f"{key or 'the value'} is {str(number)[:12]}…, and no figure is that large", "")
        raise CorruptInputError(
            f"{key or 'the value'} is {number}, and every figure has to be a finite number",
            "the model or the data that it was computed from is broken: look for NaN in them",
        )


def _place(value: object, largest: float) -> tuple[str, float] | None:
    """`{"rows": [{"p50_ms": nan}]}` -> `("rows.0.p50_ms", nan)`; None where every number is finite."""
    if isinstance(value, float | int):
        wrong = abs(value) > largest if isinstance(value, int) or math.isfinite(value) else True
        return ("", value) if wrong else None
    if not isinstance(value, Mapping | list | tuple):
        return None
    for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
        place = _place(part, largest)
        if place is not None:
            return f"{key}.{place[0]}".removesuffix("."), place[1]
    return None


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    path.write_text(text_from_json(value, indent), encoding="utf-8")


def json_from_text(text: str | bytes) -> Any:
    """Raises ValueError for what is no JSON, and for a number that is NaN, infinite or longer than any figure."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_sized)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _sized(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"it has a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it has the number {text}, and every figure has to be finite")
    return number


def check_size(path: Path, hint: str, largest: int = LARGEST_BYTES) -> None:
    """Raise CorruptInputError for a file that is larger than any of its kind."""
    if (size := path.stat().st_size) > largest:
        raise CorruptInputError(f"{path} has {size:,} bytes, and none of its kind has more than {largest:,}", hint)


def json_bytes(path: Path, hint: str) -> bytes:
    """Of a file that is no larger than any of its kind; raises CorruptInputError for another one, and for none."""
    try:
        check_size(path, hint)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptInputError(f"{path} is missing, or was removed while it was being read", hint) from error


def read_json(path: Path, hint: str) -> Any:
    """Raises CorruptInputError for a file that is no JSON, or larger than any."""
    try:
        return json_from_text(json_bytes(path, hint))
    except ValueError as error:
        raise CorruptInputError(f"{path} is no JSON: {error}", hint) from error
