"""Parts of report.json that are of no row: engines, modules, verdicts and machines."""

from __future__ import annotations

from typing import Annotated

from mmcompress.compress.sizing.document import SizingDocument
from mmcompress.config import Backend, Precision
from mmcompress.document import Part, each_once
from mmcompress.export.document import AuditSummary
from mmcompress.measure.bench.document import BenchEnvironment
from mmcompress.measure.bisect.document import BisectDocument
from mmcompress.measure.document import Ceilings
from mmcompress.measure.verdict.document import VerdictDocument
from mmcompress.runtime.session import Tower


class EngineFile(Part):
    """One engine."""

    file: str
    """Its name in the artifact."""
    tower: Tower
    """Which tower it computes."""
    precision: Precision
    """Of the graph that it was built from."""
    target: str | None
    """Which GPUs it is for, `sm86` say; null for the one that built it."""
    bytes: int
    """Of the file."""
    audit: AuditSummary | None
    """What was really compiled; null where the build has no audit of it."""


class Engine(Part):
    """An artifact of TensorRT engines."""

    name: str
    """Of the artifact."""
    artifact: str
    """Its folder, relative to the report."""
    backend: Backend
    """The runtime that it is for."""
    version: str
    """Of TensorRT or TensorRT-RTX, which alone reads it."""
    batches: tuple[int, ...]
    """Batch sizes that it was built for."""
    files: Annotated[tuple[EngineFile, ...], each_once("file")]
    """One a tower and target."""


class ModuleDrift(Part):
    """What quantizing one module alone moves."""

    module: str
    """Its name, `image.blocks.5.qkv` say."""
    drift: float
    """Mean of 1 - cosine of the tower's embeddings, from 0."""
    kept: bool
    """Whether it stays in float."""


class Sensitivity(Part):
    """What a quantized checkpoint knows about its modules."""

    name: str
    """Of the artifact."""
    sensitivity: Annotated[tuple[ModuleDrift, ...], each_once("module")]
    """Every module, the worst first."""
    budget: float | None
    """Share of R@10 hits that could be lost; null where there was no limit."""


class NamedBisect(BisectDocument):
    """A bisect.json."""

    name: str
    """Of the artifact."""


class NamedSizing(SizingDocument):
    """A sizing.json."""

    name: str
    """Of the artifact."""


class NamedVerdict(VerdictDocument):
    """A verdict.json."""

    name: str
    """Of the artifact."""


class ReportMachine(Part):
    """A machine that measured."""

    id: str
    """Its name, with a number behind it where two have the same."""
    name: str
    """Of its GPU, else of its processor."""
    environment: BenchEnvironment
    """What it says of itself, and what it did meanwhile."""
    ceiling: Ceilings
    """Its peak arithmetic; empty where it was not measured."""
