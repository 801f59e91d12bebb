"""What pydantic finds wrong first, in one form wherever it is read: the key, the value, and what was expected."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError

SHOWN = 60
"""Characters of a wrong value that an error shows."""
_MOST = 10_000
"""Mistakes of which the first is looked for: pydantic tells of all or none, and a million take gigabytes."""


class Wrong(NamedTuple):
    """The first mistake; as text it is what follows the name of the file, the command or the model that it is in."""

    place: tuple[int | str, ...]
    """The key, and those that it is below."""
    kind: str
    """Pydantic's name of the mistake."""
    said: str
    """What was expected."""
    value: object
    cause: object = None
    """The exception of a validator of ours."""

    @property
    def key(self) -> str:
        """`rows.0.latency.3.p50_ms`"""
        return ".".join(map(str, self.place))

    def __str__(self) -> str:
        if self.kind == "json_invalid":
            return f" is no JSON: {self.cause}"
        if self.kind == "missing":
            return f" has no {self.key!r}"
        if self.kind == "extra_forbidden":
            return f" has an unknown key {self.key!r} with the value {shown(self.value)}"
        if not self.key and self.kind == "value_error":
            return f": {self.said}"
        return f"{f': {self.key}' if self.key else ''} is {shown(self.value)}: {self.said}"


def first_wrong(error: ValidationError, *below: str) -> Wrong:
    """The first mistake of those that pydantic found in what lies `below` some keys."""
    if (count := error.error_count()) > _MOST:
        return Wrong((), "value_error", f"{'.'.join(below) or 'it'} is wrong in {count:,} places", None)
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    said = first["msg"].removeprefix("Value error, ")
    return Wrong((*below, *first["loc"]), first["type"], said, first["input"], cause)


def shown(value: object) -> str:
    """A wrong value, as an error shows it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
