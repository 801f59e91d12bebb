"""The model card of a report's last row, with its figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.card import TASK, Json, card_text, files_of
from mmcompress.config import CardConfig
from mmcompress.manifest import Kind
from mmcompress.metrics import RECALLS
from mmcompress.report.document import ReportDocument
from mmcompress.report.row import Row, figure
from mmcompress.teachers import hub_id

_WAYS = {"i2t": "image to text", "t2i": "text to image"}
METRIC_TYPES = {name: f"{name[:3]}_recall_at_{name[5:]}" for name in RECALLS} | {
    "top1": "accuracy",
    "top5": "top_5_accuracy",
}
METRIC_NAMES = {name: f"{_WAYS[name[:3]]} R@{name[5:]}" for name in RECALLS} | {"top1": "top-1", "top5": "top-5"}


def report_card(report: ReportDocument, gathered: Sequence[Artifact], card: CardConfig) -> str:
    """The card of the report's last row, with its figures; empty where there is no row."""
    if not report.rows:
        return ""
    row = report.rows[-1]
    manifest = next(a.manifest for a in gathered if a.manifest.kind is Kind.ONNX and a.path.name == row.row)
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    completed = card.model_copy(update={"base_model": card.base_model or _base_model(gathered)})
    files, results = files_of(manifest.graphs, sizes), _results(card.name or report.title, row, report.test.data)
    return card_text(completed, report.title, files, manifest.facts, results, row=row, report=report)


def _base_model(gathered: Sequence[Artifact]) -> str | None:
    """The teacher that a stage's recorded config names, if the hub has it."""
    tables = [artifact.manifest.config.get("teacher") for artifact in gathered]
    names = [hub_id(str(table["source"])) for table in tables if isinstance(table, dict) and "source" in table]
    return next((name for name in names if name), None)


def _results(name: str, row: Row, data: str | None) -> dict[str, Json]:
    """The hub's `metrics` and `model-index`, of the figures that were measured."""
    measured = {key: value for key in METRIC_TYPES if (value := figure(row.metrics, key)) is not None}
    if not measured or not data:
        return {}
    metrics: list[Json] = [
        {"type": METRIC_TYPES[key], "name": METRIC_NAMES[key], "value": round(v, 4)} for key, v in measured.items()
    ]
    dataset: Json = {"name": Path(data).name or data, "type": re.sub(r"[^\w.-]+", "-", data).strip("-.") or "data"}
    result: Json = {"task": {"type": TASK}, "dataset": dataset, "metrics": metrics}
    return {"metrics": [METRIC_TYPES[key] for key in measured], "model-index": [{"name": name, "results": [result]}]}
