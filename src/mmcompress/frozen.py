"""The base of every config and document: a frozen set of values that refuses unknown keys, NaN and infinity.

A list is read up to its first mistake: pydantic keeps every one, and a list of `{}` in a file of 300 kB took 3.6 GB.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema


def _fail_fast(schema: Any, of: type[BaseModel]) -> None:
    """In the core schema of a model, let every sequence end at its first wrong part. Other models see to theirs."""
    if isinstance(schema, dict) and (schema.get("type") != "model" or schema["cls"] is of):
        if schema.get("type") in ("list", "tuple"):
            schema["fail_fast"] = True
        for key, part in schema.items():
            if key not in ("metadata", "serialization"):
                _fail_fast(part, of)
    elif isinstance(schema, list):
        for part in schema:
            _fail_fast(part, of)


class Config(BaseModel):
    """A frozen set of values that refuses unknown keys, NaN and infinity; each field's docstring says what it means."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(handler.resolve_ref_schema(schema), cls)
        return schema
