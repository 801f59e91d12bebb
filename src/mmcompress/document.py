"""Documents: the JSON files that stages write beside their artifacts, as models that are checked when they are read.

Each room defines its own (`measure/bench/document.py`, …), with a docstring a field; docs/documents.md is made of them.
What a file has beyond its model, or otherwise than it, is refused with the key and the value: a figure of another
meaning must not get into a table because its name fits. A field that a later version adds has a default, so that older
files are read; what changes meaning raises the number of the schema, and is then read by the version that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from typing_extensions import Self

from mmcompress.errors import CorruptInputError
from mmcompress.frozen import Config
from mmcompress.strictjson import check_finite, json_bytes, text_from_json
from mmcompress.wrong import first_wrong

LARGEST = 2**63
"""No figure of ours is larger, and what is computed from two of them is finite."""
_DAY_MS = 86_400_000.0
_NANOSECOND_MS = 1e-6
N = TypeVar("N", int, float)
T = TypeVar("T")


def _within(low: float, high: float, expected: str) -> AfterValidator:
    """Of a number from `low` to `high`; -0.0 becomes 0, which it equals and would not be printed as.

    NaN and infinity pass here: they are refused by their place, like every number that is none.
    """

    def held(value: N) -> N:
        if value != value or value in (math.inf, -math.inf):
            return value
        if not low <= value <= high:
            raise ValueError(f"expected {expected}")
        return value + 0

    return AfterValidator(held)


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[1] < ends[0]:
        raise ValueError("expected the lower end before the upper one")
    return ends


def check_bins(edges: Sequence[float], counts: Sequence[int]) -> None:
    """ValueError where edges do not ascend, are not one more than counts, or where a count is negative."""
    if len(edges) != len(counts) + 1:
        raise ValueError(f"expected one edge more than counts, got {len(edges)} and {len(counts)}")
    if all(map(math.isfinite, edges)) and any(after < before for before, after in pairwise(edges)):
        raise ValueError("expected edges that ascend")
    if any(count < 0 for count in counts):
        raise ValueError("expected counts of 0 or more")


def check_once(parts: Iterable[object], *keys: str) -> None:
    """ValueError where two parts, or two values of these keys of theirs, are alike: chance would say which counts."""
    seen: set[object] = set()
    for part in parts:
        of = tuple((key, getattr(part, key)) for key in keys) or part
        if of in seen:
            said = ", ".join(f"{key} {getattr(part, key)}" for key in keys) or part
            raise ValueError(f"expected each once, and {said} is there twice")
        seen.add(of)


def each_once(*keys: str) -> AfterValidator:
    """Of a tuple: as `check_once`."""

    def held(parts: tuple[T, ...]) -> tuple[T, ...]:
        check_once(parts, *keys)
        return parts

    return AfterValidator(held)


Share = Annotated[float, _within(0, 1, "a share from 0 to 1")]
Change = Annotated[float, _within(-1, 1, "a change of a share, from -1 to 1")]
Cosine = Annotated[float, _within(-1.001, 1.001, "a cosine from -1 to 1")]
"""Of which rounding may leave a little more than 1."""
Milliseconds = Annotated[float, _within(0, _DAY_MS, "a time of 0 or more and at most a day")]
CallMilliseconds = Annotated[float, _within(_NANOSECOND_MS, _DAY_MS, "a time above 0 and at most a day")]
"""Of what a machine did: a nanosecond at least, for those who divide by it or draw its logarithm."""
Ratio = Annotated[float, _within(1e-15, 1e15, "a ratio above 0 and below 1e15")]
Rate = Annotated[float, _within(0, 1e15, "a number from 0 to 1e15")]
Count = Annotated[int, _within(0, LARGEST, "a whole number from 0 to 2^63")]
Amount = Annotated[int, _within(1, LARGEST, "a whole number from 1 to 2^63")]
"""Of what was measured with, and cannot have been none."""
Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""Lower and upper end of a 95% interval."""
SchemaVersion = Annotated[Literal[1], Field(alias="schema")]


class Part(Config):
    """A part of a document: frozen, and without unknown keys. A number that is none passes neither reading nor writing,
    which name its place; a measurement that built it would end in the traceback of a bug."""

    model_config = ConfigDict(populate_by_name=True, allow_inf_nan=True)


class Document(Part):
    """A whole file."""

    schema_version: SchemaVersion = 1
    """Of the file's fields and what they mean; a file without it is the first."""

    @classmethod
    def read(cls, path: Path, hint: str = "make it again with this version of mmcompress") -> Self:
        """Raises CorruptInputError, with the file, the key and the value, for what is no such document."""
        try:
            document = cls.model_validate_json(cls.current(json_bytes(path, hint)), strict=True)
            check_finite(document.model_dump(by_alias=True), LARGEST)
            return document
        except CorruptInputError as error:
            raise CorruptInputError(f"{path}: {error.what}", hint) from error
        except ValidationError as error:
            wrong = first_wrong(error)
            if wrong.key == "schema" and wrong.kind != "missing":
                newest = get_args(cls.model_fields["schema_version"].annotation)[-1]
                said = f"is written in schema {wrong.value!r}, and this version reads schema {newest}"
                raise CorruptInputError(f"{path} {said}", hint) from error
            raise CorruptInputError(f"{path}{wrong}", hint) from error

    @classmethod
    def current(cls, text: bytes) -> bytes:
        """A file of an earlier schema as one of this schema, where there has been one; other texts as they are."""
        return text

    def to_json(self) -> str:
        """The text of the file, in the order of the fields; raises CorruptInputError for a number that is none."""
        return text_from_json(self.model_dump(by_alias=True), indent=1)

    def write(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")
