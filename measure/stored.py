"""What an earlier bench or report stored of latencies, as far as a comparison needs it.

A report belongs to a room further up, whose document this room cannot import. So only the keys that are compared are
read here, of either file and of each schema that a report has had; all others are left to their own models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, ConfigDict, Field, model_validator
from typing_extensions import Self

from mmcompress.artifact import Artifact
from mmcompress.document import Count, Document, Part, check_once, each_once
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.measure.document import RUN, Latency
from mmcompress.places import MANIFEST

_PARTLY = ConfigDict(extra="ignore")


class StoredLatency(Latency):
    """An entry; a report's also says on which machine."""

    model_config = _PARTLY


class StoredRow(Part):
    """An artifact."""

    model_config = _PARTLY
    row: str = Field(validation_alias=AliasChoices("row", "stage"))
    """Its name; `stage` in the first schema of reports."""
    latency: tuple[StoredLatency, ...]
    """Its entries. A report of several benches has a run more than once, a bench has not."""


class StoredEnvironment(Part):
    """What two measurements must have in common to be compared without a note; null where the file does not say."""

    model_config = _PARTLY
    cpu: str | None = None
    cores: Count | None = None
    power_mode: str | None = None
    governor: str | None = None
    priority: str | None = None
    onnxruntime: str | None = None
    openvino: str | None = None
    warnings: tuple[str, ...] = ()


class StoredMachine(Part):
    """A machine of a report."""

    model_config = _PARTLY
    environment: StoredEnvironment
    """What it says of itself."""


class StoredLatencies(Document):
    """A bench.json or a report.json."""

    model_config = _PARTLY
    schema_version: Annotated[Literal[1, 2], Field(alias="schema")] = 1  # type: ignore[assignment]
    """Of a bench 1, of a report 1 or 2."""
    rows: Annotated[tuple[StoredRow, ...], each_once("row")]
    """Its artifacts."""
    environment: StoredEnvironment = StoredEnvironment()
    """Of a bench what it was measured on."""
    machines: tuple[StoredMachine, ...] = ()
    """Of a report."""

    @model_validator(mode="after")
    def _runs_of_a_bench(self) -> Self:
        for row in self.rows if not self.machines else ():
            check_once(row.latency, *RUN)
        return self

    @property
    def conditions(self) -> StoredEnvironment:
        """Of the bench, or of the first machine of the report."""
        return self.machines[0].environment if self.machines else self.environment


def stored_latencies(path: Path) -> StoredLatencies | None:
    """What bench or report wrote, from its folder or its file; None for anything else."""
    hint = "give a report.json or a bench.json"
    if path.is_file():
        return StoredLatencies.read(path, hint)
    if not (path / MANIFEST).is_file():
        return None
    artifact = Artifact.open(path)
    if artifact.manifest.kind is not Kind.REPORT:
        return None
    for name in ("bench.json", "report.json"):
        if name in artifact.manifest.files:
            return StoredLatencies.read(artifact.file(name), hint)
    raise UsageError(
        f"{path} holds no latencies, it was made by {artifact.manifest.stage!r}", "give a bench or a report"
    )
