"""The model card of a report's last row, with its figures."""

from __future__ import annotations

from collections.abc import Sequence

from mmcompress.artifact import Artifact
from mmcompress.card import card_text, files_of
from mmcompress.config import CardConfig
from mmcompress.manifest import Kind
from mmcompress.report.measured import Document
from mmcompress.teachers import hub_id


def report_card(document: Document, gathered: Sequence[Artifact], card: CardConfig) -> str:
    """The card of the report's last row, with its figures; empty where there is no row."""
    if not document["rows"]:
        return ""
    row = document["rows"][-1]
    artifact = next(a for a in gathered if a.manifest.kind is Kind.ONNX and a.path.name == row["stage"])
    sizes = {name: entry.bytes for name, entry in artifact.manifest.files.items()}
    completed = card.model_copy(update={"base_model": card.base_model or _base_model(gathered)})
    files = files_of(artifact.manifest.graphs, sizes)
    return card_text(completed, document["title"], files, artifact.manifest.facts, row, document)


def _base_model(gathered: Sequence[Artifact]) -> str | None:
    """The teacher that a stage's recorded config names, if the hub has it."""
    tables = [artifact.manifest.config.get("teacher") for artifact in gathered]
    names = [hub_id(str(table["source"])) for table in tables if isinstance(table, dict) and "source" in table]
    return next((name for name in names if name), None)
