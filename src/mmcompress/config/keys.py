"""How a key of a config is marked and refused, and what of a config an artifact's own key is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import (
    BaseModel,
    ValidationError,
)

from mmcompress.errors import MisspeltError, UsageError, nearest_choice, suggestion
from mmcompress.frozen import Config
from mmcompress.wrong import Wrong, first_wrong


class Aside:
    """Marks a key that is no part of an artifact's own key: see `what_counts`."""


HOW = Aside()
"""Says how something is computed, or what follows from it, and not what comes out."""
NAMED = Aside()
"""Names what has a fingerprint, which is part of the artifact's key in its place."""
LARGEST_WHOLE = 2**53
"""Beyond it readers of JSON take numbers for each other, and nothing is so many."""
C = TypeVar("C", bound=Config)


class UnusedError(ValueError):
    """Of a key that says nothing beside the others."""


def refuse_unused(config: BaseModel, names: Sequence[str], why: str) -> None:
    """ValueError for a key that was said and says nothing here: what is ignored is not what was asked for."""
    for name in names:
        if name in config.model_fields_set and getattr(config, name) is not None:
            raise UnusedError(f"{name} {why}")


def what_counts(config: Config) -> dict[str, Any]:
    """The keys and values that a result depends on, beside what has a fingerprint: an artifact's key is made of them.

    Left out is what is marked: the same data elsewhere, more workers or another device give the same artifact.
    """
    counted = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if any(isinstance(mark, Aside) for mark in field.metadata):
            del counted[name]
        elif isinstance(value := getattr(config, name), Config):
            counted[name] = what_counts(value)
    return counted


def validated(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a config, or say which key of `where` is wrong, what was expected, and what is close to it."""
    try:
        built = model.model_validate(values)
        _check_numbers(values, built, where)
        return built
    except ValidationError as error:
        wrong = first_wrong(error)
        path = [str(part) for part in wrong.place]
        hint = _near(wrong) or _docstring(model, path)
        if wrong.kind == "extra_forbidden":
            hint = suggestion(path[-1], _fields_at(model, path[:-1]))
        if isinstance(wrong.cause, MisspeltError):
            hint = wrong.cause.hint
        elif wrong.kind == "value_error" and _fields_at(model, path):  # of several keys, which it names
            hint = "leave it out" if isinstance(wrong.cause, UnusedError) else "leave one of them out"
            raise UsageError(f"{where}: {wrong.said}", hint) from error
        raise UsageError(f"{where}{wrong}", hint) from error


def _check_numbers(said: object, read: object, where: str, key: str = "") -> None:
    """Raise UsageError for true or false that pydantic took for 1 or 0, and for whole numbers that are no amount."""
    if isinstance(said, Mapping):
        for name, part in said.items():
            inner = read.get(name) if isinstance(read, Mapping) else getattr(read, str(name), None)
            _check_numbers(part, inner, where, f"{key}.{name}" if key else str(name))
    elif isinstance(said, list | tuple) and isinstance(read, list | tuple):
        for number, (part, inner) in enumerate(zip(said, read, strict=False)):
            _check_numbers(part, inner, where, f"{key}.{number}")
    elif isinstance(said, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        raise UsageError(f"{where}: {key} is {said}: a number is expected", "write the number that is meant")
    elif isinstance(read, int) and abs(read) > LARGEST_WHOLE:
        raise UsageError(
            f"{where}: {key} is {read}: it is too large for a whole number here", f"the largest is {LARGEST_WHOLE}"
        )


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        if part not in model.model_fields:
            return []
        annotation = model.model_fields[part].annotation
        nested = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _near(wrong: Wrong) -> str:
    """ "did you mean …?" where a value is none of a few texts, and like one of them."""
    if wrong.kind != "literal_error" or not isinstance(wrong.value, str):
        return ""
    near = nearest_choice(wrong.value, re.findall(r"'([^']+)'", wrong.said))
    return "" if near is None else f"did you mean {near!r}?"


def _docstring(model: type[BaseModel], path: Sequence[str]) -> str:
    field = model.model_fields.get(path[0]) if path else None
    return f"{path[0]}: {field.description}" if field is not None and field.description else ""
