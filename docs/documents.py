"""Write docs/documents.md from the models of the documents: `make docs`. A test holds it fresh."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

FILE = Path(__file__).with_suffix(".md")
DOCUMENTS = (
    ("bench.json", "mmcompress.measure.bench.document", "BenchDocument"),
    ("costs.json", "mmcompress.compress.sizing.document", "CostsDocument"),
    ("sizing.json", "mmcompress.compress.sizing.document", "SizingDocument"),
    ("drift.json", "mmcompress.measure.drift.document", "DriftDocument"),
    ("bisect.json", "mmcompress.measure.bisect.document", "BisectDocument"),
    ("verdict.json", "mmcompress.measure.verdict.document", "VerdictDocument"),
    ("audit.json", "mmcompress.export.document", "AuditDocument"),
    ("report.json", "mmcompress.report.document", "ReportDocument"),
    ("split.json", "mmcompress.measure.split.document", "SplitDocument"),
    ("times.json", "mmcompress.measure.split.document", "DeviceTimes"),
    ("page.json", "mmcompress.report.page.document", "PageDocument"),
    ("compare --json", "mmcompress.measure.comparison", "ComparisonDocument"),
    ("distill --pilot A,B --json", "mmcompress.pipeline.pilot", "PilotDocument"),
)
HEAD = """# The documents

Every stage that measures writes one JSON document beside its manifest; `mmcompress compare --json` and a pilot print
one. This page is written from their models by `make docs`; change the docstring of a field, not this page. `schema` is
the version of a document: a file of a newer one is refused, and so is a key or a type that is not listed here. Numbers
are finite; a figure that was not measured is null, never 0. Units stand in names: `_ms` milliseconds, `_ips` inputs a
second, `_mj` millijoules, `_db` decibels, `_mhz`, `_c` degrees Celsius.
"""


def models() -> dict[str, type[BaseModel]]:
    """Each document's model, by the name of its file."""
    return {file: getattr(importlib.import_module(module), name) for file, module, name in DOCUMENTS}


def page() -> str:
    sections, described = [HEAD], dict[type[BaseModel], str]()
    for file, model in models().items():
        sections.append(f"## {file}\n\n{_sentence(model.__doc__)}\n\n{table(model)}")
        for part in parts(model):
            if part not in described:
                described[part] = file
                sections.append(f"### {part.__name__}\n\n{_sentence(part.__doc__)}\n\n{table(part)}")
    return "\n".join(sections)


def parts(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models within a model, each after the one that it is in."""
    for field in _types(model):
        for inner in _within(field):
            yield inner
            yield from parts(inner)


def _types(model: type[BaseModel]) -> list[Any]:
    extra = [_extra_of(model)] if model.model_config.get("extra") == "allow" else []
    return [*(field.annotation for field in model.model_fields.values()), *extra]


def _extra_of(model: type[BaseModel]) -> Any:
    """The type of the keys that have no field."""
    return get_type_hints(model)["__pydantic_extra__"]


def _within(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        if not isinstance(inner, str):
            yield from _within(inner)


def table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{field.alias or name}` | {named(field.annotation)} | {_sentence(field.description)} |"
        for name, field in model.model_fields.items()
    ]
    if model.model_config.get("extra") == "allow":
        rows.append(f"| every other key | {named(get_args(_extra_of(model))[1])} | The value of that name. |")
    return "\n".join(["| Field | Type | Meaning |", "|---|---|---|", *rows, ""])


def named(annotation: Any) -> str:
    """`tuple[Latency, ...]` -> `list of [Latency](#latency)`"""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return named(inside[0])
    if origin in (Union, types.UnionType):
        return " or ".join(named(inner) for inner in inside)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin is tuple:
        if inside[-1] is Ellipsis:
            return f"list of {named(inside[0])}"
        return f"{len(inside)} × {named(inside[0])}" if len(set(inside)) == 1 else ", ".join(map(named, inside))
    if origin is dict:
        return f"object of {named(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {type(None): "null", str: "text", float: "number", int: "integer", bool: "true or false"}[annotation]


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
