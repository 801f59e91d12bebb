"""Judging gates: a pure function from a report's document to verdicts.

A limit on a figure (`max`, `min`) is a plain comparison. A limit on a change (`max_drop`, `min_speedup`) is judged with
the change's 95% interval: past the limit but with "no change" inside the interval, it is said to be not significant and
passes, unless the gate is strict. So a small test set cannot fail a gate by chance, at the price that it cannot see a
small loss either; the interval is in the verdict, so that this can be told. A drop that is established fails on its
best estimate: the interval need not lie wholly beyond the limit. What was not measured fails.

Intervals, in this order: the paired bootstrap that drift took of the same images; else, from the two rows' own
intervals as if they were independent, sqrt(a^2 + b^2), which is wider than a paired one. Of a speed-up: bench's, of
interleaved rounds; against a baseline report, a bootstrap of both reports' round medians, which knows nothing of what
changed on the machine between the two runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmcompress.errors import UsageError, suggestion
from mmcompress.gates import ENGINES, LATENCY, SIZES, Gates
from mmcompress.measure.estimate import FEWEST_ROUNDS, unpaired_speedup
from mmcompress.report.document import GateVerdict, MachineRatio, ReportDocument
from mmcompress.report.enginegates import engine_verdicts
from mmcompress.report.row import MachineLatency, Row, figure
from mmcompress.report.rows import plain

ROUNDING = 1e-9
"""A drop from 0.3 to 0.29 is one of 0.01, whatever floating point makes of it."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Change:
    """A drop or a speed-up, with its 95% interval where there is one, and what it is against."""

    value: float | None
    interval: Interval | None
    note: str


def judged(report: ReportDocument, gates: Gates, baseline: ReportDocument | None = None) -> list[GateVerdict]:
    """A verdict for each gate; the reference of changes is the same row of the baseline, else the report's first row.

    Raises UsageError for a row that the report does not have.
    """
    of_engines = {name: limit for name, limit in gates.max.items() if name in ENGINES}
    verdicts = engine_verdicts(report.engines, of_engines)
    if gates.count == len(of_engines):
        return verdicts
    row = _row(report, gates.row)
    for name, limit in gates.max_drop.items():
        change = _drop(report, row, name, baseline)
        passed = None if change.value is None else change.value <= limit + ROUNDING
        verdicts.append(_of_change(f"max-drop {name}", row.row, limit, change, passed, 0.0, gates.strict))
    for sign, limits in (("max", gates.max), ("min", gates.min)):
        for name, limit in ((name, limit) for name, limit in limits.items() if name not in ENGINES):
            for value, note in _values(report, row, name, gates):
                passed = None if value is None else value <= limit if sign == "max" else value >= limit
                verdicts.append(_verdict(f"{sign} {name}", row.row, limit, Change(value, None, note), passed))
    if gates.min_speedup is not None:
        for change in _speedups(report, row, gates, baseline):
            passed = None if change.value is None else change.value >= gates.min_speedup
            none = 1.0 if gates.min_speedup <= 1 else math.nan  # no change cannot excuse a missing gain
            verdicts.append(_of_change("min-speedup", row.row, gates.min_speedup, change, passed, none, gates.strict))
    return verdicts


def unjudged(gates: Gates, note: str) -> GateVerdict:
    """The one verdict on gates that could not be judged at all."""
    return _verdict("row", gates.row or "the last row", None, Change(None, None, note), passed=False)


def _row(report: ReportDocument, name: str | None) -> Row:
    if not report.rows:
        raise UsageError("the report has no rows", "join ONNX artifacts with their measurements: mmcompress report DIR")
    if name is None:
        return report.rows[-1]
    row = report.row(name)
    if row is None:
        raise UsageError(f"the report has no row {name!r}", suggestion(name, [row.row for row in report.rows]))
    return row


def _verdict(
    gate: str, row: str, limit: float | None, change: Change, passed: bool | None, significant: bool | None = None
) -> GateVerdict:
    return GateVerdict(
        gate=gate,
        row=row,
        value=change.value,
        limit=limit,
        passed=bool(passed),
        significant=significant,
        interval=change.interval,
        note=change.note if passed is not None else f"not measured; {change.note}".removesuffix("; "),
    )


def _of_change(
    gate: str, row: str, limit: float, change: Change, passed: bool | None, none: float, strict: bool
) -> GateVerdict:
    """A verdict that knows the interval; `none` is the value of no change."""
    if change.interval is None:
        return _verdict(gate, row, limit, change, passed)
    low, high = change.interval
    significant = not low <= (1.0 if gate == "min-speedup" else 0.0) <= high
    if passed is False and low <= none <= high:
        note = f"not significant: the 95% interval includes no change; {change.note}"
        return _verdict(gate, row, limit, Change(change.value, change.interval, note), not strict, significant)
    return _verdict(gate, row, limit, change, passed, significant)


def _values(report: ReportDocument, row: Row, name: str, gates: Gates) -> list[tuple[float | None, str]]:
    """A figure of the row and where it was taken; of a latency one for each machine."""
    if (why := report.says_nothing(name)) is not None:
        return [(None, f"the gate is meaningless: {why}")]
    if name not in LATENCY:
        apart = name.startswith("int8_against_fp32.") and row.int8_against_fp32 is None
        return [
            (
                _figure(row, name),
                "the row is not INT8 or FP8, or its own FP32 is no row before it" if apart else "",
            )
        ]
    entries = _entries(report, row, gates)
    return [(figure(entry, name), place(entry)) for entry in entries] or [(None, "no such latency")]


def _figure(row: Row, name: str) -> float | None:
    """`i2t_r10`, `bytes` or `unseen.i2t_r10` of a row."""
    part, _, metric = name.rpartition(".")
    return figure(row if name in SIZES else row.part(part), metric)


def _interval(row: Row, name: str) -> Interval | None:
    """The 95% interval of a figure; that of an old-index recall is kept among the row's own."""
    part, _, metric = name.rpartition(".")
    if part == "unseen":
        return row.unseen.ci95.get(metric) if row.unseen else None
    return row.metrics.ci95.get(name.replace(".", "_"))


def _entries(report: ReportDocument, row: Row, gates: Gates) -> list[MachineLatency]:
    """The fastest latency of each machine that fits the gates."""
    entries = []
    for machine in report.machines:
        fitting = [
            entry
            for entry in row.latency
            if entry.machine == machine.id
            and plain(entry, gates.batch)
            and gates.backend in (None, entry.backend)
            and entry.precision == row.precision
        ]
        entries += [min(fitting, key=lambda entry: entry.p50_ms)] if fitting else []
    return entries


def place(entry: MachineLatency) -> str:
    """Where a latency was taken, and what disturbed it."""
    disturbed = [word for word, is_so in (("noisy", entry.noisy), ("throttled", entry.throttled)) if is_so]
    return ", ".join([f"{entry.backend} on {entry.machine}, batch {entry.batch}", *disturbed])


def _drop(report: ReportDocument, row: Row, name: str, baseline: ReportDocument | None) -> Change:
    """Reference minus row."""
    if baseline is None:
        reference, against = report.rows[0], f"against {report.rows[0].row}"
    else:
        same, against = baseline.row(row.row), "against the baseline"
        if same is None:
            return Change(None, None, f"the baseline has no row {row.row}")
        reference = same
        tests = [(side.test.images, side.test.candidates) for side in (report, baseline)]
        if tests[0] != tests[1]:
            return Change(None, None, "the baseline was measured on another test set")
    # The old index is the reference's own: what it finds there itself is its plain recall.
    own = name.removeprefix("old_index.") if baseline is None else name
    before, after = _figure(reference, own), _figure(row, name)
    if reference.collapsed and row.collapsed:
        return Change(None, None, f"the gate is meaningless: in both rows {row.collapsed} ({against})")
    if (why := report.says_nothing(name)) is not None:
        return Change(None, None, f"the gate is meaningless: {why}")
    if before is None or after is None:
        return Change(None, None, f"{'baseline' if baseline else reference.row} or {row.row} has no {name}")
    paired = row.r10_change if baseline is None and name == "i2t_r10" else None
    if paired and paired.ci95:
        low, high = paired.ci95
        return Change(before - after, (-high, -low), against)
    intervals = [interval for interval in (_interval(reference, own), _interval(row, name)) if interval]
    if len(intervals) < 2:
        return Change(before - after, None, f"{against}, no interval is known")
    half = math.hypot(*((high - low) / 2 for low, high in intervals))
    return Change(before - after, (before - after - half, before - after + half), f"{against}, unpaired interval")


def _speedups(report: ReportDocument, row: Row, gates: Gates, baseline: ReportDocument | None) -> Sequence[Change]:
    """One for each machine."""
    if baseline is not None:
        changes = [_against_baseline(entry, row, baseline) for entry in _entries(report, row, gates)]
        return changes or [Change(None, None, "no such latency")]
    first = report.rows[0].row
    best: dict[str, MachineRatio] = {}
    for ratio in report.ratios:
        ends = (ratio.numerator.row, ratio.denominator.row, ratio.batch)
        fits = ends == (row.row, first, gates.batch) and gates.backend in (None, ratio.numerator.backend)
        if fits and (ratio.machine not in best or ratio.speedup > best[ratio.machine].speedup):
            best[ratio.machine] = ratio
    return [
        Change(ratio.speedup, ratio.ci95, f"{ratio.numerator.backend} against {first} on {machine}")
        for machine, ratio in best.items()
    ] or [Change(None, None, f"no interleaved ratio against {first}")]


def _against_baseline(entry: MachineLatency, row: Row, baseline: ReportDocument) -> Change:
    """The same latency in another report: backend, precision, batch and threads are equal."""
    of_row = baseline.row(row.row)
    candidates = [
        other
        for other in (of_row.latency if of_row else ())
        if plain(other, entry.batch)
        and (other.backend, other.precision, other.threads) == (entry.backend, entry.precision, entry.threads)
    ]
    if not candidates:
        return Change(None, None, f"the baseline has no such latency ({place(entry)})")
    same = [other for other in candidates if other.machine == entry.machine]
    slower = (same or candidates)[0]
    note = place(entry) if same else f"{place(entry)}; the baseline is of another machine, {slower.machine}"
    if min(len(entry.rounds_ms), len(slower.rounds_ms)) < FEWEST_ROUNDS:
        return Change(slower.p50_ms / entry.p50_ms, None, f"{note}; too few rounds for an interval")
    ratio = unpaired_speedup(entry.rounds_ms, slower.rounds_ms)
    return Change(ratio.speedup, (ratio.low, ratio.high), note)
