"""`mmcompress compare A B`: is B faster than A, by how much, and is that more than noise?

Two artifacts are measured here and now, interleaved as in bench, until the interval of their ratio is narrow or the
time is over. Two reports are compared by what they stored: the medians of each row's rounds, which are independent, so
the interval is wider, and it knows nothing of what changed on the machine between two runs; a note says so, and says
more where the machines are different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.errors import UsageError
from mmcompress.manifest import Kind
from mmcompress.measure.bench.bench import Timed, latency_entry
from mmcompress.measure.ceiling import ceilings
from mmcompress.measure.comparison import Comparison, ComparisonDocument, RowLatency
from mmcompress.measure.document import Latency, RaceEnvironment
from mmcompress.measure.estimate import FEWEST_ROUNDS, Ratio, paired_speedup, round_medians, spread, unpaired_speedup
from mmcompress.measure.interleave import Contender, Record, add_rounds, no_look
from mmcompress.measure.stored import StoredEnvironment, StoredLatencies, stored_latencies
from mmcompress.measure.subjects import Subject
from mmcompress.runtime.backends import GPU_BACKENDS, graph_for, own_backend
from mmcompress.runtime.conditions import Conditions, snapshot
from mmcompress.runtime.environment import environment_of
from mmcompress.runtime.gpuclocks import watch_gpu
from mmcompress.runtime.machine import machine, usable_cores
from mmcompress.runtime.scheduling import pinned, realtime

ROUNDS = 10
ROUND_S = 0.4
"""Measured time of each side in a round."""
NARROW = 0.035
"""Width of the interval at which measuring ends, of which 0.02 are there in any case."""
SHOWN = 3
"""Measurements that an error names of each report."""
MATCHED = ("backend", "precision", "batch", "threads", "streams")
Key = tuple[str | int | None, ...]
"""A row and the fields that have to match."""


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
) -> ComparisonDocument:
    """Two artifacts measured, or two reports read; `speedup` is how many times as fast as A the B is."""
    before, after = (stored_latencies(path) for path in (a, b))
    if before is not None and after is not None:
        return compare_reports(before, after, str(a), str(b), seed)
    if before is not None or after is not None:
        raise UsageError(f"one of {a} and {b} is a report and the other is none", "give two artifacts, or two reports")
    with pinned(pin):
        subjects = [
            subject(Artifact.open(path, Kind.ONNX, Kind.ENGINE), backend, precision, threads) for path in (a, b)
        ]
        return compare_subjects(subjects[0], subjects[1], batch, seconds, pin, seed)


def subject(artifact: Artifact, backend: Backend | None, precision: Precision | None, threads: int | None) -> Subject:
    """The image graph of an artifact that a backend runs; an engine names its own backend."""
    chosen = backend or own_backend(artifact)
    graph = graph_for(artifact, "image", chosen, precision)
    return Subject(artifact, graph, chosen, None if chosen in GPU_BACKENDS else threads or usable_cores())


def compare_subjects(
    a: Subject, b: Subject, batch: int, seconds: float, pin: tuple[int, ...] | None = None, seed: int = 0
) -> ComparisonDocument:
    """Measure both sides, interleaved, and say what the machine did meanwhile."""
    watch = watch_gpu(None in (a.threads, b.threads))
    threads = [contender.threads for contender in (a, b) if contender.threads is not None]
    with realtime(max(threads, default=1) <= usable_cores()) as priority:
        before = snapshot(watch.gpu)
        records, ratio = race(a, b, batch, seconds, seed, watch.look)
        conditions = Conditions(before, snapshot(watch.gpu), priority, pin, watch)
        reached, no_ceiling = ceilings(contender.kernel for contender in (a, b))
    meanwhile = conditions.meanwhile([spread(round_medians(record.rounds)) for record in records], usable_cores())
    sides = [
        latency_entry(Timed(side, batch, 1, record), reached, meanwhile.noise.noisy, conditions.throttled)
        for side, record in zip((a, b), records, strict=True)
    ]
    return ComparisonDocument(
        measured="here",
        a=str(a.artifact.path),
        b=str(b.artifact.path),
        comparisons=(comparison(row_latency(a.row, sides[0]), row_latency(b.row, sides[1]), ratio),),
        ceiling=tuple(reached),
        notes=(*meanwhile.warnings, *no_ceiling),
        environment=environment_of(RaceEnvironment, machine(), meanwhile, rounds=len(records[0].rounds)),
    )


def row_latency(row: str, entry: Latency) -> RowLatency:
    return RowLatency(row=row, **{name: getattr(entry, name) for name in Latency.model_fields})


def comparison(a: RowLatency, b: RowLatency, ratio: Ratio) -> Comparison:
    return Comparison(a=a, b=b, batch=a.batch, speedup=ratio.speedup, ci95=ratio.ci95, significant=ratio.significant)


def race(
    a: Contender, b: Contender, batch: int, seconds: float, seed: int = 0, look: Callable[[], None] = no_look
) -> tuple[list[Record], Ratio]:
    """Rounds of both until the interval of the ratio is narrow, or each side has been measured for `seconds`.

    The fewest rounds that make an interval are run always, and are shorter where `seconds` are few.
    """
    round_s = min(ROUND_S, seconds / FEWEST_ROUNDS)
    combinations = [(a, batch), (b, batch)]
    records = [Record(), Record()]
    most = max(FEWEST_ROUNDS, int(seconds / round_s))

    def ratio() -> Ratio:
        return paired_speedup(records[1].rounds, records[0].rounds, seed)

    def narrow() -> bool:
        present = ratio()
        return present.width <= NARROW * present.speedup

    add_rounds(records, combinations, round_s, (min(ROUNDS, most), most), seed, "compare", narrow, look)
    return records, ratio()


def compare_reports(
    a: StoredLatencies, b: StoredLatencies, name_a: str, name_b: str, seed: int = 0
) -> ComparisonDocument:
    """Every measurement that both have: the same row, backend, precision, batch, threads and streams."""
    sides = [dict(_entries(stored)) for stored in (a, b)]
    comparisons = tuple(
        comparison(first, sides[1][key], unpaired_speedup(sides[1][key].rounds_ms, first.rounds_ms, seed))
        for key, first in sides[0].items()
        if key in sides[1]
    )
    if not comparisons:
        held = ["; ".join(" ".join(map(str, key)) for key in list(side)[:SHOWN]) or "nothing" for side in sides]
        raise UsageError(
            f"{name_a} and {name_b} have no measurement in common",
            f"both need `rounds_ms` of the same row, backend, precision, batch, threads and streams; A has {held[0]}; "
            f"B has {held[1]}",
        )
    return ComparisonDocument(
        measured="before",
        a=name_a,
        b=name_b,
        comparisons=comparisons,
        ceiling=(),
        notes=(*notes(a.conditions, b.conditions), *_alone((a, b), (name_a, name_b))),
        environment=None,
    )


def _alone(sides: Sequence[StoredLatencies], names: Sequence[str]) -> Iterator[str]:
    """A sentence for each of two files with latencies of rows that the other one does not have."""
    for own, other, name in zip(sides, reversed(sides), names, strict=True):
        there = {row.row for row in other.rows}
        if more := [row.row for row in own.rows if row.latency and row.row not in there]:
            yield f"Not compared, as only {name} has a row of that name: {', '.join(more)}."


def _entries(stored: StoredLatencies) -> Iterator[tuple[Key, RowLatency]]:
    """Latencies with enough rounds for an interval, by what they are of; of several of one run the lowest comes last,
    as it is the one that a report counts."""
    for row in stored.rows:
        for entry in sorted(row.latency, key=lambda entry: entry.p50_ms, reverse=True):
            if len(entry.rounds_ms) >= FEWEST_ROUNDS:
                yield (row.row, *(getattr(entry, name) for name in MATCHED)), row_latency(row.row, entry)


def notes(a: StoredEnvironment, b: StoredEnvironment) -> list[str]:
    """What keeps two runs from being comparable."""
    different = [
        f"{what} ({getattr(a, name)} and {getattr(b, name)})"
        for name, what in (
            ("cpu", "processor"),
            ("cores", "cores"),
            ("power_mode", "power mode"),
            ("governor", "governor"),
            ("priority", "priority"),
            ("onnxruntime", "ONNX Runtime"),
            ("openvino", "OpenVINO"),
        )
        if getattr(a, name) != getattr(b, name)
    ]
    said = ["The two were measured in different runs: what changed on the machine between them counts as difference."]
    if different:
        said.append(f"They were measured under different conditions: {', '.join(different)}.")
    return said + [text for side in (a, b) for text in side.warnings]
