"""Model cards: `README.md` with the metadata of the Hugging Face hub.

An artifact is immutable, and figures exist only after drift and bench ran on it. So there are two cards of one
template: the export stage writes one into the ONNX artifact with what it knows (sizes, files, how to run them), so that
the folder can be published as it is; the report stage writes it with the measured figures, to be uploaded over it.

The metadata is YAML whose values are JSON, which YAML includes, so nothing in a name can break out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcompress.config import CardConfig
from mmcompress.manifest import Graph
from mmcompress.strictjson import text_from_json
from mmcompress.teachers import hub_id
from mmcompress.templates import render

TASK = "zero-shot-image-classification"
Json = str | float | list["Json"] | dict[str, "Json"] | None
"""A value of the metadata."""


@dataclass(frozen=True)
class CardFile:
    """A graph as the card lists it."""

    file: str
    tower: str
    precision: str
    purpose: str
    """Which runtimes it is for."""
    bytes: int


def export_card(
    graphs: Sequence[Graph], sizes: Mapping[str, int], facts: Mapping[str, float], teacher: str | None, name: str
) -> str:
    """The card of an export: no figure has been measured yet. `sizes` are bytes by file."""
    card = CardConfig(name=name, base_model=hub_id(teacher) if teacher else None)
    return card_text(card, name, files_of(graphs, sizes), facts)


def files_of(graphs: Sequence[Graph], sizes: Mapping[str, int]) -> list[CardFile]:
    return [
        CardFile(
            file=graph.file,
            tower=graph.tower,
            precision=graph.precision,
            purpose={"signed": "TensorRT", "unsigned": "x86 CPUs"}.get(graph.activations, "any runtime"),
            bytes=sum(size for name, size in sizes.items() if name.startswith(graph.file)),
        )
        for graph in graphs
    ]


def card_text(
    card: CardConfig,
    title: str,
    files: Sequence[CardFile],
    facts: Mapping[str, float],
    results: Mapping[str, Json] | None = None,
    **measured: object,
) -> str:
    """`results` are metadata, and `measured` what the template shows, of a model that was measured."""
    quantized = any(file.precision in ("int8", "fp8") for file in files)
    metadata: dict[str, Json] = {
        "license": card.license,
        "language": list(card.language),
        "library_name": "onnx",
        "pipeline_tag": TASK,
        "base_model": card.base_model,
        "base_model_relation": "quantized" if card.base_model and quantized else None,
        "tags": ["clip", "onnx", "mmcompress", *sorted({file.precision for file in files})],
        **(results or {}),
    }
    lines = [f"{key}: {text_from_json(value)}" for key, value in metadata.items() if value]
    front = "\n".join(["---", *lines, "---", ""])
    shown = {"row": None, "report": None, **measured}
    return front + render("card.md.j2", name=card.name or title, files=files, facts=facts, card=card, **shown)
