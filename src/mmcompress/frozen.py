"""The base of every config and document: a frozen set of values that refuses unknown keys, NaN and infinity."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen set of values that refuses unknown keys, NaN and infinity; each field's docstring says what it means."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
