"""Rows of the report: one delivered ONNX artifact each, with its sizes, accuracy and latencies; and the steps between.

Everything here is a pure function of artifacts' manifests and measured documents. `fastest` is of the first machine
only, so that neighbouring rows are compared on the same one; the other machines' are in `fastest_elsewhere`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.manifest import Graph
from mmcompress.report.measured import Document, latency_of, named

METRICS = (
    *("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "top1", "top5", "mean_per_class_recall"),
    *("cosine_mean", "cosine_p01", "cosine_worst", "text_cosine_mean", "text_cosine_p01", "rank_correlation"),
    *("margin_mean", "flip_rate", "flips_gained", "flips_lost", "mcnemar_p", "ece"),
)
LATENCY = (
    *("backend", "device", "machine", "precision", "activations", "batch", "threads", "streams"),
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "cv", "load_ms", "first_ms", "samples", "throughput_ips"),
    *("peak_bytes", "device_peak_bytes", "energy_mj", "energy_source", "ceiling_share", "pipeline", "rounds_ms"),
    *("histogram", "throttled", "noisy"),
)
ACCURACY = "i2t_r10"
"""The figure that the ledger, the costs and the plot go by."""


def row_of(
    artifact: Artifact, drift: Document | None, benches: Sequence[Document], ids: Sequence[str], folder: Path
) -> Document:
    """One row; `ids` are the machines of the benches, paths are relative to `folder`."""
    name, facts, found = artifact.path.name, artifact.manifest.facts, named(drift, artifact.path.name)
    precision = found.get("precision") or _smallest_precision(artifact.manifest.graphs)
    latency = [_latency(entry) for entry in latency_of(name, benches, ids)]
    by_machine = {machine: fastest(latency, precision, machine) for machine in dict.fromkeys(ids)}
    best = by_machine.get(ids[0]) if ids else None
    return {
        "stage": name,
        "artifact": relative(artifact.path, folder),
        "digest": artifact.digest,
        "precision": precision,
        "params": facts.get("params"),
        "macs": facts.get("macs"),
        "bytes": delivered_bytes(artifact, precision, best["activations"] if best else None),
        "against": found.get("against"),
        "metrics": metrics_of(found.get("metrics")),
        "collapsed": found.get("collapsed"),
        "r10_change": (found.get("metrics") or {}).get("r10_change") or found.get("r10_change"),
        "previous": found.get("previous"),
        "unseen": metrics_of(found["unseen"]) if found.get("unseen") else None,
        "unseen_images": found.get("unseen_images"),
        "int8_against_fp32": found.get("int8_against_fp32"),
        "cosine_histogram": found.get("cosine_histogram"),
        "per_class": found.get("per_class") or [],
        "latency": latency,
        "fastest": best,
        "by_backend": by_backend(latency, precision, ids[0]) if ids else {},
        "fastest_elsewhere": [entry for entry in list(by_machine.values())[1:] if entry is not None],
    }


def relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def metrics_of(found: Mapping[str, Any] | None) -> Document:
    """Every known figure, None where it was not measured, with the intervals and the figures on the old index."""
    values = found or {}
    known: Document = {key: values.get(key) for key in METRICS}
    return {**known, "old_index": values.get("old_index"), "ci95": dict(values.get("ci95") or {})}


def _latency(entry: Mapping[str, Any]) -> Document:
    return {key: entry.get(key) for key in LATENCY}


def _smallest_precision(graphs: Sequence[Graph]) -> str | None:
    held = {graph.precision for graph in graphs}
    return next((precision for precision in ("int8", "fp32", "fp16") if precision in held), None)


def plain(entry: Mapping[str, Any], batch: int) -> bool:
    """Whether a latency is that of one call at a time, at this batch size."""
    return entry["batch"] == batch and entry["streams"] in (None, 1) and entry["p50_ms"] is not None


def fastest(latency: Sequence[Document], precision: str | None, machine: str) -> Document | None:
    """The lowest median of a machine at batch 1, in the row's own precision."""
    fitting = [e for e in latency if plain(e, 1) and e["precision"] == precision and e["machine"] == machine]
    return min(fitting, key=lambda entry: float(entry["p50_ms"]), default=None)


def by_backend(latency: Sequence[Document], precision: str | None, machine: str) -> dict[str, float]:
    """Lowest median at batch 1 of each backend, in ms."""
    backends = dict.fromkeys(entry["backend"] for entry in latency)
    best = {b: fastest([e for e in latency if e["backend"] == b], precision, machine) for b in backends}
    return {backend: entry["p50_ms"] for backend, entry in best.items() if entry is not None}


def delivered_bytes(artifact: Artifact, precision: str | None, activations: str | None) -> int | None:
    """Both towers' files in one precision, external weights included; of two INT8 files the one that was run."""
    graphs = [graph for graph in artifact.manifest.graphs if graph.precision == precision]
    kinds = {graph.activations for graph in graphs}
    wanted = next((kind for kind in (activations, "unsigned", "signed", "float") if kind in kinds), None)
    names = {graph.file for graph in graphs if graph.activations == wanted}
    files = artifact.manifest.files
    sizes = [entry.bytes for file, entry in files.items() if any(file.startswith(name) for name in names)]
    return sum(sizes) if sizes else None


def step_of(before: Document, after: Document) -> Document:
    """What one step cost in accuracy and bought in size and speed; ratios are before over after."""
    a, b = before["metrics"][ACCURACY], after["metrics"][ACCURACY]
    paired = (after["previous"] or {}).get("r10_change") or {}
    kept = [before["fastest"], after["fastest"]]
    medians = [None if entry is None else entry["p50_ms"] for entry in kept]
    return {
        "from": before["stage"],
        "to": after["stage"],
        "r10_change": None if a is None or b is None else b - a,
        "r10_ci95": paired.get("ci95"),
        "r10_significant": paired.get("significant"),
        "flip_rate": (after["previous"] or {}).get("flip_rate"),
        "params_ratio": ratio(before["params"], after["params"]),
        "macs_ratio": ratio(before["macs"], after["macs"]),
        "bytes_ratio": ratio(before["bytes"], after["bytes"]),
        "latency_ratio": ratio(*medians),
        "backends": [None if entry is None else entry["backend"] for entry in kept],
    }


def ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def other_test(drift: Document) -> Document:
    """A second test set: its retrieval table only."""
    rows = [
        {
            "stage": entry["row"],
            "metrics": metrics_of(entry.get("metrics")),
            "unseen": metrics_of(entry["unseen"]) if entry.get("unseen") else None,
        }
        for entry in drift["rows"]
    ]
    return {**test_of(drift), "rows": rows}


def test_of(drift: Document | None) -> Document:
    """What accuracy was measured on."""
    first = drift["rows"][0] if drift and drift["rows"] else {}
    return {
        "name": drift["name"] if drift else None,
        "data": drift.get("test") if drift else None,
        "backend": drift.get("backend") if drift else None,
        "images": first.get("images"),
        "candidates": first.get("candidates"),
        "unseen_images": first.get("unseen_images"),
    }


def engine_of(artifact: Artifact, folder: Path) -> Document:
    """An engine artifact with the audit of each of its files."""
    facts, files = artifact.manifest.facts, artifact.manifest.files
    audits = facts.get("audit") or {}
    return {
        "stage": artifact.path.name,
        "artifact": relative(artifact.path, folder),
        "backend": facts.get("backend"),
        "version": facts.get("tensorrt_version"),
        "batches": facts.get("batches"),
        "files": [
            {
                "file": graph.file,
                "tower": graph.tower,
                "precision": graph.precision,
                "target": graph.target,
                "bytes": files[graph.file].bytes,
                "audit": audits.get(graph.file),
            }
            for graph in artifact.manifest.graphs
        ],
    }
