"""audit.json: what TensorRT really compiled into each engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from mmcompress.document import Count, Document, Part


class Audit(Part):
    """Of one engine."""

    layers: Count
    """Compiled layers that one call starts: of several profiles those of the one with the most."""
    kinds: dict[str, Count]
    """Compiled layers of each kind, by TensorRT's own names."""
    products: dict[str, Count]
    """Matrix products in each precision."""
    attention: dict[str, Count]
    """Fused attention kernels in each precision."""
    modules: dict[str, str]
    """Precision of each Linear; the widest of its products, in all profiles."""
    quantized: dict[str, str] = Field(default_factory=dict)
    """Linears that the graph has in 8 bits, with their precision there."""
    weights_bytes: Count | None
    """Of the engine's weights; null where the builder does not say."""


class AuditSummary(Part):
    """An audit without its lists, as the manifest's facts have it."""

    layers: Count
    """Compiled layers that one call starts."""
    products: dict[str, Count]
    """Matrix products in each precision."""
    attention: dict[str, Count]
    """Fused attention kernels in each precision."""
    weights_bytes: Count | None
    """Of the engine's weights; null where the builder does not say."""
    modules: dict[str, Count]
    """Linears in each precision."""
    not_int8: tuple[str, ...]
    """Linears that the graph has in 8 bits and the engine has not; empty where it has none."""


class AuditDocument(Document):
    """The audit of each engine, under the name of its file, beside the schema's number."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Audit] = Field(init=False)

    @property
    def engines(self) -> Mapping[str, Audit]:
        """By the engine's file."""
        return self.__pydantic_extra__

    @classmethod
    def of(cls, audits: Mapping[str, Audit]) -> AuditDocument:
        named: dict[str, Any] = dict(audits)
        return cls(schema_version=1, **named)
