"""Model cards: `README.md` with the metadata of the Hugging Face hub.

An artifact is immutable, and figures exist only after drift and bench ran on it. So there are two cards of one
template: the export stage writes one into the ONNX artifact with what it knows (sizes, files, how to run them), so that
the folder can be published as it is; the report stage writes it with the measured figures, to be uploaded over it.

The metadata is YAML whose values are JSON, which YAML includes, so nothing in a name can break out of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmcompress.config import CardConfig
from mmcompress.manifest import Graph
from mmcompress.strictjson import text_from_json
from mmcompress.teachers import hub_id
from mmcompress.templates import render

TASK = "zero-shot-image-classification"
Document = dict[str, Any]
RECALLS = {
    f"{way}_r{k}": f"{name} R@{k}"
    for way, name in (("i2t", "image to text"), ("t2i", "text to image"))
    for k in (1, 5, 10)
}
METRIC_TYPES = {key: f"{key[:3]}_recall_at_{key[5:]}" for key in RECALLS} | {
    "top1": "accuracy",
    "top5": "top_5_accuracy",
}
METRIC_NAMES = RECALLS | {"top1": "top-1", "top5": "top-5"}


def export_card(graphs: Sequence[Graph], sizes: dict[str, int], facts: Document, teacher: str | None, name: str) -> str:
    """The card of an export: no figure has been measured yet. `sizes` are bytes by file."""
    card = CardConfig(name=name, base_model=hub_id(teacher) if teacher else None)
    return card_text(card, name, files_of(graphs, sizes), facts, row=None, test=None)


def files_of(graphs: Sequence[Graph], sizes: dict[str, int]) -> list[Document]:
    return [
        {
            "file": graph.file,
            "tower": graph.tower,
            "precision": graph.precision,
            "for": {"signed": "TensorRT", "unsigned": "x86 CPUs"}.get(graph.activations, "any runtime"),
            "bytes": sum(size for name, size in sizes.items() if name.startswith(graph.file)),
        }
        for graph in graphs
    ]


def card_text(
    card: CardConfig, title: str, files: list[Document], facts: Document, row: Document | None, test: Document | None
) -> str:
    name = card.name or title
    metadata = {
        "license": card.license,
        "language": list(card.language),
        "library_name": "onnx",
        "pipeline_tag": TASK,
        "base_model": card.base_model,
        "base_model_relation": "quantized"
        if card.base_model and any(f["precision"] == "int8" for f in files)
        else None,
        "tags": ["clip", "onnx", "mmcompress", *sorted({str(file["precision"]) for file in files})],
        **(_results(name, row, test) if row and test else {}),
    }
    lines = [f"{key}: {text_from_json(value)}" for key, value in metadata.items() if value]
    front = "\n".join(["---", *lines, "---", ""])
    return front + render("card.md.j2", name=name, files=files, facts=facts, row=row, test=test, card=card)


def _results(name: str, row: Document, document: Document) -> dict[str, Any]:
    """The hub's `metrics` and `model-index`, of the figures that were measured."""
    measured = {key: row["metrics"][key] for key in METRIC_TYPES if row["metrics"][key] is not None}
    data = document["test"]["data"]
    if not measured or not data:
        return {}
    metrics = [
        {"type": METRIC_TYPES[key], "name": METRIC_NAMES[key], "value": round(v, 4)} for key, v in measured.items()
    ]
    dataset = {"name": Path(data).name or data, "type": re.sub(r"[^\w.-]+", "-", data).strip("-.") or "data"}
    result = {"task": {"type": TASK}, "dataset": dataset, "metrics": metrics}
    return {"metrics": [METRIC_TYPES[key] for key in measured], "model-index": [{"name": name, "results": [result]}]}
