"""Which float model an artifact computes, whatever its precision: INT8 is held against its own FP32 and no other.

A quantized checkpoint keeps the float weights that it was quantized from, and `qat` leaves them as they are. So the
hash of their file tells both, and every export, verdict and engine passes it on. Where SmoothQuant was folded in, the
file is another one while the model is the same: `quantize` records what the weights were before.
"""

from __future__ import annotations

from mmcompress.architecture import WEIGHTS
from mmcompress.artifact import Artifact
from mmcompress.manifest import Kind, hash_json

FLOAT_MODEL = "float_model"
"""The fact that says it, of what is quantized and of what is exported."""


def float_model(artifact: Artifact) -> str | None:
    """What its FP32 graphs would compute, as a hash; None where nothing tells it."""
    manifest = artifact.manifest
    if isinstance(said := manifest.facts.get(FLOAT_MODEL), str):
        return said
    if manifest.kind is Kind.CHECKPOINT:
        return manifest.files[WEIGHTS].sha256 if WEIGHTS in manifest.files else None
    graphs = sorted(graph.file for graph in manifest.graphs if graph.precision == "fp32")
    files = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith(tuple(graphs))}
    return hash_json(files) if files else None
