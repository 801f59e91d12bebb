"""`mmcompress compare A B`: is B faster than A, by how much, and is that more than noise?

Two artifacts are measured here and now, interleaved as in bench, until the interval of their ratio is narrow or the
time is over. Two reports are compared by what they stored: the medians of each row's rounds, which are independent, so
the interval is wider, and it knows nothing of what changed on the machine between two runs; a note says so, and says
more where the machines are different ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Kind
from mmcompress.measure.bench.bench import Measured, entry_document
from mmcompress.measure.ceiling import ceilings
from mmcompress.measure.estimate import FEWEST_ROUNDS, Ratio, paired_speedup, round_medians, spread, unpaired_speedup
from mmcompress.measure.interleave import Contender, Record, add_rounds
from mmcompress.measure.subjects import Subject
from mmcompress.places import MANIFEST
from mmcompress.runtime.backends import GPU_BACKENDS, default_backend, graph_for
from mmcompress.runtime.conditions import Conditions, snapshot
from mmcompress.runtime.machine import machine, usable_cores
from mmcompress.runtime.nvml import open_gpu
from mmcompress.runtime.scheduling import pinned, realtime
from mmcompress.strictjson import read_json

ROUNDS = 10
ROUND_S = 0.4
"""Measured time of each side in a round."""
NARROW = 0.035
"""Width of the interval at which measuring ends, of which 0.02 are there in any case."""
SHOWN = 3
"""Measurements that an error names of each report."""
Document = dict[str, Any]
MATCHED = ("backend", "precision", "batch", "threads", "streams")


def compare(
    a: Path,
    b: Path,
    *,
    backend: Backend | None = None,
    precision: Precision | None = None,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 30.0,
    pin: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Document:
    """Two artifacts measured, or two reports read; `speedup` is how many times as fast as A the B is."""
    documents = [stored_report(path) for path in (a, b)]
    if documents[0] is not None and documents[1] is not None:
        return compare_reports(documents[0], documents[1], str(a), str(b), seed)
    if documents[0] is not None or documents[1] is not None:
        raise UsageError(f"one of {a} and {b} is a report and the other is none", "give two artifacts, or two reports")
    with pinned(pin):
        subjects = [
            subject(Artifact.open(path, Kind.ONNX, Kind.ENGINE), backend, precision, threads) for path in (a, b)
        ]
        return compare_subjects(subjects[0], subjects[1], batch, seconds, pin, seed)


def subject(artifact: Artifact, backend: Backend | None, precision: Precision | None, threads: int | None) -> Subject:
    """The image graph of an artifact that a backend runs; an engine names its own backend."""
    engine = artifact.manifest.kind is Kind.ENGINE
    chosen: Backend = backend or (artifact.manifest.facts["backend"] if engine else default_backend())
    graph = graph_for(artifact, "image", chosen, precision)
    return Subject(artifact, graph, chosen, None if chosen in GPU_BACKENDS else threads or usable_cores())


def compare_subjects(
    a: Subject, b: Subject, batch: int, seconds: float, pin: tuple[int, ...] | None = None, seed: int = 0
) -> Document:
    """Measure both sides, interleaved, and say what the machine did meanwhile."""
    gpu = open_gpu() if None in (a.threads, b.threads) else None
    threads = [one.threads for one in (a, b) if one.threads is not None]
    with realtime(max(threads, default=1) <= usable_cores()) as priority:
        before = snapshot(gpu)
        records, ratio = race(a, b, batch, seconds, seed)
        conditions = Conditions(before, snapshot(gpu), priority, pin, tuple(gpu.slowdowns() if gpu else ()))
        found, no_ceiling = ceilings(one.kernel for one in (a, b))
    recorded = conditions.document([spread(round_medians(record.rounds)) for record in records], usable_cores())
    sides = [
        {"row": side.row}
        | entry_document(Measured(side, batch, 1, record), found, recorded["noise"]["noisy"], conditions.throttled)
        for side, record in zip((a, b), records, strict=True)
    ]
    return {
        "schema": 1,
        "measured": "here",
        "a": str(a.artifact.path),
        "b": str(b.artifact.path),
        "comparisons": [{"a": sides[0], "b": sides[1], "batch": batch, **ratio.document()}],
        "ceiling": found,
        "notes": recorded["warnings"] + no_ceiling,
        "environment": {**machine(), **recorded, "rounds": len(records[0].rounds)},
    }


def race(a: Contender, b: Contender, batch: int, seconds: float, seed: int = 0) -> tuple[list[Record], Ratio]:
    """Rounds of both until the interval of the ratio is narrow, or each side has been measured for `seconds`."""
    combinations = [(a, batch), (b, batch)]
    records = [Record(), Record()]
    most = max(FEWEST_ROUNDS, int(seconds / ROUND_S))

    def ratio() -> Ratio:
        return paired_speedup(records[1].rounds, records[0].rounds, seed)

    def narrow() -> bool:
        found = ratio()
        return found.width <= NARROW * found.speedup

    add_rounds(records, combinations, ROUND_S, (min(ROUNDS, most), most), seed, "compare", narrow)
    return records, ratio()


def stored_report(path: Path) -> Document | None:
    """What bench or report wrote, from its folder or its file; None for anything else."""
    if path.is_file():
        return _document(path)
    if not (path / MANIFEST).is_file():
        return None
    artifact = Artifact.open(path)
    if artifact.manifest.kind is not Kind.REPORT:
        return None
    for name in ("bench.json", "report.json"):
        if name in artifact.manifest.files:
            return _document(artifact.file(name))
    raise UsageError(
        f"{path} holds no latencies, it was made by {artifact.manifest.stage!r}", "give a bench or a report"
    )


def _document(path: Path) -> Document:
    found = read_json(path, "give a report.json or a bench.json")
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise CorruptInputError(f"{path} has no list of rows", "give a report.json or a bench.json")
    return found


def compare_reports(a: Document, b: Document, name_a: str, name_b: str, seed: int = 0) -> Document:
    """Every measurement that both have: the same row, backend, precision, batch, threads and streams."""
    sides = [dict(_entries(document)) for document in (a, b)]
    comparisons = [
        {
            "a": first,
            "b": sides[1][key],
            "batch": first["batch"],
            **unpaired_speedup(sides[1][key]["rounds_ms"], first["rounds_ms"], seed).document(),
        }
        for key, first in sides[0].items()
        if key in sides[1]
    ]
    if not comparisons:
        held = ["; ".join(" ".join(map(str, key)) for key in list(side)[:SHOWN]) or "nothing" for side in sides]
        raise UsageError(
            f"{name_a} and {name_b} have no measurement in common",
            f"both need `rounds_ms` of the same row, backend, precision, batch, threads and streams; A has {held[0]}; "
            f"B has {held[1]}",
        )
    return {
        "schema": 1,
        "measured": "before",
        "a": name_a,
        "b": name_b,
        "comparisons": comparisons,
        "ceiling": [],
        "notes": notes(a.get("environment", {}), b.get("environment", {})),
        "environment": None,
    }


def _entries(document: Document) -> Iterator[tuple[tuple[Any, ...], Document]]:
    """Latencies with enough rounds for an interval, by what they are of."""
    for row in document["rows"]:
        name = row.get("row", row.get("stage"))
        for entry in row.get("latency", []):
            if len(entry.get("rounds_ms") or ()) >= FEWEST_ROUNDS:
                yield (name, *(entry.get(key) for key in MATCHED)), {"row": name, **entry}


def notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Sequence[str]:
    """What keeps two runs from being comparable."""
    different = [
        f"{what} ({a.get(key)} and {b.get(key)})"
        for key, what in (
            ("cpu", "processor"),
            ("cores", "cores"),
            ("power_mode", "power mode"),
            ("governor", "governor"),
            ("priority", "priority"),
            ("onnxruntime", "ONNX Runtime"),
            ("openvino", "OpenVINO"),
        )
        if a.get(key) != b.get(key)
    ]
    found = ["The two were measured in different runs: what changed on the machine between them counts as difference."]
    if different:
        found.append(f"They were measured under different conditions: {', '.join(different)}.")
    return found + [text for side in (a, b) for text in side.get("warnings") or ()]
