"""Rows of the report: one delivered ONNX artifact each, with its sizes, accuracy and latencies; and the steps between.

Everything here is a pure function of artifacts' manifests and measured documents. `fastest` is of the first machine
only, so that neighbouring rows are compared on the same one; the other machines' are in `fastest_elsewhere`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.manifest import Graph
from mmcompress.measure.bench.document import BenchDocument
from mmcompress.measure.drift.document import Classification, DriftDocument
from mmcompress.report.document import OtherRow, OtherTest, Step, TestedOn
from mmcompress.report.measured import Measurement, drift_row, latency_of, part_of_facts
from mmcompress.report.parts import Engine
from mmcompress.report.row import MachineLatency, Row, RowMetrics


def row_of(
    artifact: Artifact, drift: DriftDocument | None, benches: Sequence[BenchDocument], ids: Sequence[str], folder: Path
) -> Row:
    """One row; `ids` are the machines of the benches, paths are relative to `folder`."""
    name, facts, accuracy = artifact.path.name, artifact.manifest.facts, drift_row(drift, artifact.path.name)
    precision = accuracy.precision if accuracy else _smallest_precision(artifact.manifest.graphs)
    latency = latency_of(name, benches, ids)
    by_machine = {machine: fastest(latency, precision, machine) for machine in dict.fromkeys(ids)}
    best = by_machine[ids[0]] if ids else None
    return Row(
        row=name,
        artifact=relative(artifact.path, folder),
        digest=artifact.digest,
        precision=precision,
        params=facts.get("params"),
        macs=facts.get("macs"),
        bytes=delivered_bytes(artifact, precision, best.activations if best else None),
        against=accuracy.against if accuracy else None,
        metrics=RowMetrics.of(accuracy.metrics if accuracy else None),
        collapsed=accuracy.collapsed if accuracy else None,
        r10_change=accuracy.metrics.r10_change if accuracy else None,
        previous=accuracy.previous if accuracy else None,
        unseen=RowMetrics.of(accuracy.unseen) if accuracy and accuracy.unseen else None,
        unseen_images=accuracy.unseen_images if accuracy else None,
        int8_against_fp32=accuracy.int8_against_fp32 if accuracy else None,
        cosine_histogram=accuracy.cosine_histogram if accuracy else None,
        per_class=accuracy.per_class if accuracy else (),
        classification=_worst(accuracy.classification) if accuracy else None,
        latency=latency,
        fastest=best,
        by_backend=by_backend(latency, precision, ids[0]) if ids else {},
        fastest_elsewhere=tuple(entry for entry in list(by_machine.values())[1:] if entry is not None),
    )


_SMALLEST_FIRST: tuple[Precision, ...] = ("int8", "fp8", "fp32", "fp16")


def _worst(of: Classification | None, most: int = 20) -> Classification | None:
    """With the classes of lowest F1 alone; all of them are in drift.json."""
    return None if of is None else of.model_copy(update={"classes": of.classes[:most]})


def relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _smallest_precision(graphs: Sequence[Graph]) -> Precision | None:
    held = {graph.precision for graph in graphs}
    return next((precision for precision in _SMALLEST_FIRST if precision in held), None)


def plain(entry: MachineLatency, batch: int) -> bool:
    """Whether a latency is that of one call at a time, at this batch size."""
    return entry.batch == batch and entry.streams == 1


def fastest(latency: Sequence[MachineLatency], precision: Precision | None, machine: str) -> MachineLatency | None:
    """The lowest median of a machine at batch 1, in the row's own precision."""
    fitting = [e for e in latency if plain(e, 1) and e.precision == precision and e.machine == machine]
    return min(fitting, key=lambda entry: entry.p50_ms, default=None)


def by_backend(latency: Sequence[MachineLatency], precision: Precision | None, machine: str) -> dict[Backend, float]:
    """Lowest median at batch 1 of each backend, in ms."""
    backends = dict.fromkeys(entry.backend for entry in latency)
    best = {b: fastest([e for e in latency if e.backend == b], precision, machine) for b in backends}
    return {backend: entry.p50_ms for backend, entry in best.items() if entry is not None}


def delivered_bytes(artifact: Artifact, precision: Precision | None, activations: str | None) -> int | None:
    """Both towers' files in one precision, external weights included; of two INT8 files the one that was run.

    A tower that stays in float whole has no file in INT8, and its float file counts.
    """
    names = set()
    for tower in dict.fromkeys(graph.tower for graph in artifact.manifest.graphs):
        graphs = [graph for graph in artifact.manifest.graphs if graph.tower == tower]
        own = precision if any(graph.precision == precision for graph in graphs) else _smallest_precision(graphs)
        kinds = {graph.activations for graph in graphs if graph.precision == own}
        wanted = next((kind for kind in (activations, "unsigned", "signed", "float") if kind in kinds), None)
        names |= {graph.file for graph in graphs if (graph.precision, graph.activations) == (own, wanted)}
    files = artifact.manifest.files
    sizes = [entry.bytes for file, entry in files.items() if any(file.startswith(name) for name in names)]
    return sum(sizes) if sizes else None


def step_of(before: Row, after: Row) -> Step:
    """What one step cost in accuracy and bought in size and speed; ratios are before over after."""
    a, b = before.metrics.i2t_r10, after.metrics.i2t_r10
    paired = after.previous.r10_change if after.previous else None
    medians = [entry.p50_ms if entry else None for entry in (before.fastest, after.fastest)]
    return Step(
        from_row=before.row,
        to_row=after.row,
        r10_change=None if a is None or b is None else b - a,
        r10_ci95=paired.ci95 if paired else None,
        r10_significant=paired.significant if paired else None,
        flip_rate=after.previous.flip_rate if after.previous else None,
        params_ratio=ratio(before.params, after.params),
        macs_ratio=ratio(before.macs, after.macs),
        bytes_ratio=ratio(before.bytes, after.bytes),
        latency_ratio=ratio(*medians),
        backends=(
            before.fastest.backend if before.fastest else None,
            after.fastest.backend if after.fastest else None,
        ),
    )


def ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before is not None and after else None


def test_of(drift: Measurement[DriftDocument] | None) -> TestedOn:
    """What accuracy was measured on."""
    first = drift.document.rows[0] if drift and drift.document.rows else None
    return TestedOn(
        name=drift.name if drift else None,
        data=drift.document.test if drift else None,
        backend=drift.document.backend if drift else None,
        images=first.images if first else None,
        candidates=first.candidates if first else None,
        unseen_images=first.unseen_images if first else None,
        own_answers=bool(drift and drift.document.own_answers),
    )


def other_test(drift: Measurement[DriftDocument]) -> OtherTest:
    """A second test set: its retrieval table only."""
    rows = tuple(
        OtherRow(
            row=row.row,
            metrics=RowMetrics.of(row.metrics),
            unseen=RowMetrics.of(row.unseen) if row.unseen else None,
        )
        for row in drift.document.rows
    )
    return OtherTest(**dict(test_of(drift)), rows=rows)


def engine_of(artifact: Artifact, folder: Path) -> Engine:
    """An engine artifact with the audit of each of its files."""
    manifest = artifact.manifest
    audits = manifest.facts.get("audit") or {}
    files = [
        {
            "file": graph.file,
            "tower": graph.tower,
            "precision": graph.precision,
            "target": graph.target,
            "bytes": manifest.files[graph.file].bytes,
            "audit": audits.get(graph.file),
        }
        for graph in manifest.graphs
    ]
    return part_of_facts(
        Engine,
        artifact,
        ("backend", "batches"),
        name=artifact.path.name,
        artifact=relative(artifact.path, folder),
        version=manifest.facts.get("tensorrt_version"),
        files=files,
    )
