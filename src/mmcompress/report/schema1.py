"""A report.json of schema 1, which mmcompress 0.1 wrote, as one of schema 2.

Rows and engines were called `stage` there, and `environment` repeated what the first machine says of itself. What is
damaged is passed on as it is: the model says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import pydantic_core

from mmcompress.measure.bench.document import BenchEnvironment
from mmcompress.runtime.environment import PACKAGES

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"
_OF_A_MACHINE = frozenset(BenchEnvironment.model_fields) - {"python", "platform", "mmcompress", *PACKAGES}


def schema_2_from_1(text: bytes) -> bytes:
    """The same report in schema 2; any other text unchanged."""
    try:
        report = cast(Json, pydantic_core.from_json(text))
    except ValueError:
        return text
    if not isinstance(report, dict) or report.get("schema") != 1 or isinstance(report["schema"], bool):
        return text
    changed: dict[str, Callable[[Json], Json]] = {
        "schema": lambda _: 2,
        "rows": lambda rows: _each(rows, _row),
        "engines": lambda engines: _each(engines, lambda engine: _renamed(engine, "name")),
        "other_tests": lambda tests: _each(tests, _other_test),
        "environment": _versions,
    }
    new = {key: changed[key](value) if key in changed else value for key, value in report.items()}
    return pydantic_core.to_json(new, inf_nan_mode="constants")


def _each(entries: Json, change: Callable[[dict[str, Json]], Json]) -> Json:
    """Every object of a list; what is no list of objects is left to the model."""
    if not isinstance(entries, list):
        return entries
    return [change(entry) if isinstance(entry, dict) else entry for entry in entries]


def _renamed(entry: dict[str, Json], name: str) -> dict[str, Json]:
    return {name if key == "stage" else key: value for key, value in entry.items()}


def _row(entry: dict[str, Json]) -> Json:
    return {"collapsed": None, **_renamed(entry, "row")}


def _other_test(test: dict[str, Json]) -> Json:
    rows = _each(test.get("rows"), lambda row: _renamed(row, "row"))
    return {key: rows if key == "rows" else value for key, value in test.items()}


def _versions(environment: Json) -> Json:
    if not isinstance(environment, dict):
        return environment
    return {key: value for key, value in environment.items() if key not in _OF_A_MACHINE}
