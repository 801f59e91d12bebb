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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcompress.errors import UsageError, suggestion
from mmcompress.gates import LATENCY, SIZES, Gates
from mmcompress.measure.estimate import FEWEST_ROUNDS, unpaired_speedup
from mmcompress.report.rows import plain

ROUNDING = 1e-9
"""A drop from 0.3 to 0.29 is one of 0.01, whatever floating point makes of it."""
Verdict = dict[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Change:
    """A drop or a speed-up, with its 95% interval where there is one, and what it is against."""

    value: float | None
    interval: Interval | None
    note: str


def judged(report: Mapping[str, Any], gates: Gates, baseline: Mapping[str, Any] | None = None) -> list[Verdict]:
    """A verdict for each gate; the reference of changes is the same row of the baseline, else the report's first row.

    Raises UsageError for a row that the report does not have.
    """
    if not gates.count:
        return []
    row = _row(report, gates.row)
    verdicts = []
    for name, limit in gates.max_drop.items():
        change = _drop(report, row, name, baseline)
        passed = None if change.value is None else change.value <= limit + ROUNDING
        verdicts.append(_of_change(f"max-drop {name}", row, limit, change, passed, 0.0, gates.strict))
    for sign, limits in (("max", gates.max), ("min", gates.min)):
        for name, limit in limits.items():
            for value, note in _values(report, row, name, gates):
                passed = None if value is None else value <= limit if sign == "max" else value >= limit
                verdicts.append(_verdict(f"{sign} {name}", row, limit, Change(value, None, note), passed))
    if gates.min_speedup is not None:
        for change in _speedups(report, row, gates, baseline):
            passed = None if change.value is None else change.value >= gates.min_speedup
            none = 1.0 if gates.min_speedup <= 1 else math.nan  # no change cannot excuse a missing gain
            verdicts.append(_of_change("min-speedup", row, gates.min_speedup, change, passed, none, gates.strict))
    return verdicts


def unjudged(gates: Gates, note: str) -> Verdict:
    """The one verdict on gates that could not be judged at all."""
    return _verdict("row", {"stage": gates.row or "the last row"}, None, Change(None, None, note), passed=False)


def _row(report: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    if not rows:
        raise UsageError("the report has no rows", "join ONNX artifacts with their measurements: mmcompress report DIR")
    found = next((row for row in rows if row["stage"] == name), rows[-1] if name is None else None)
    if found is None:
        raise UsageError(f"the report has no row {name!r}", suggestion(str(name), [row["stage"] for row in rows]))
    return found


def _verdict(gate: str, row: Mapping[str, Any], limit: float | None, change: Change, passed: bool | None) -> Verdict:
    return {
        "gate": gate,
        "row": row["stage"],
        "value": change.value,
        "limit": limit,
        "passed": bool(passed),
        "significant": None,
        "interval": change.interval,
        "note": change.note if passed is not None else f"not measured; {change.note}".removesuffix("; "),
    }


def _of_change(
    gate: str, row: Mapping[str, Any], limit: float, change: Change, passed: bool | None, none: float, strict: bool
) -> Verdict:
    """A verdict that knows the interval; `none` is the value of no change."""
    verdict = _verdict(gate, row, limit, change, passed)
    if change.interval is not None:
        low, high = change.interval
        verdict["significant"] = not low <= (1.0 if gate == "min-speedup" else 0.0) <= high
        if passed is False and low <= none <= high:
            verdict["passed"] = not strict
            verdict["note"] = f"not significant: the 95% interval includes no change; {change.note}"
    return verdict


def _values(
    report: Mapping[str, Any], row: Mapping[str, Any], name: str, gates: Gates
) -> list[tuple[float | None, str]]:
    """A figure of the row and where it was taken; of a latency one for each machine."""
    if name in LATENCY:
        return [(_finite(entry.get(name)), place(entry)) for entry in _entries(report, row, gates)] or [
            (None, "no such latency")
        ]
    return [(_figure(row, name), "")]


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    part, _, rest = name.rpartition(".")
    held = row["metrics"].get(part) if part == "old_index" else row.get(part) if part else row["metrics"]
    return _finite(row.get(name) if name in SIZES else (held or {}).get(rest))


def _finite(found: float | None) -> float | None:
    """A figure that is no number was not measured, and what was not measured fails."""
    return None if found is None or not math.isfinite(found) else float(found)


def _interval(row: Mapping[str, Any], name: str) -> Sequence[float] | None:
    """The 95% interval of a figure; that of an old-index recall is kept among the row's own."""
    part, _, rest = name.rpartition(".")
    held = (row.get("unseen") or {}) if part == "unseen" else row["metrics"]
    found: Sequence[float] | None = held.get("ci95", {}).get(rest if part == "unseen" else name.replace(".", "_"))
    return found


def _entries(report: Mapping[str, Any], row: Mapping[str, Any], gates: Gates) -> list[Mapping[str, Any]]:
    """The fastest latency of each machine that fits the gates."""
    found = []
    for machine in [machine["id"] for machine in report["machines"]]:
        fitting = [
            entry
            for entry in row["latency"]
            if entry["machine"] == machine
            and plain(entry, gates.batch)
            and gates.backend in (None, entry["backend"])
            and entry["precision"] == row["precision"]
        ]
        found += [min(fitting, key=lambda entry: float(entry["p50_ms"]))] if fitting else []
    return found


def place(entry: Mapping[str, Any]) -> str:
    """Where a latency was taken, and what disturbed it."""
    disturbed = [word for word in ("noisy", "throttled") if entry.get(word)]
    return ", ".join([f"{entry['backend']} on {entry['machine']}, batch {entry['batch']}", *disturbed])


def _drop(report: Mapping[str, Any], row: Mapping[str, Any], name: str, baseline: Mapping[str, Any] | None) -> Change:
    """Reference minus row."""
    if baseline is None:
        reference, against = report["rows"][0], f"against {report['rows'][0]['stage']}"
    else:
        reference = next((one for one in baseline["rows"] if one["stage"] == row["stage"]), None)
        against = "against the baseline"
        if reference is None:
            return Change(None, None, f"the baseline has no row {row['stage']}")
        if any(baseline["test"][key] != report["test"][key] for key in ("images", "candidates")):
            return Change(None, None, "the baseline was measured on another test set")
    # The old index is the reference's own: what it finds there itself is its plain recall.
    own = name.removeprefix("old_index.") if baseline is None else name
    before, after = _figure(reference, own), _figure(row, name)
    if reference.get("collapsed") and row.get("collapsed"):
        return Change(None, None, f"the gate is meaningless: in both rows {row['collapsed']} ({against})")
    if before is None or after is None:
        return Change(None, None, f"{'baseline' if baseline else reference['stage']} or {row['stage']} has no {name}")
    paired = row.get("r10_change") if baseline is None and name == "i2t_r10" else None
    if paired:
        low, high = paired["ci95"]
        return Change(before - after, (-high, -low), against)
    intervals = [found for found in (_interval(reference, own), _interval(row, name)) if found]
    if len(intervals) < 2:
        return Change(before - after, None, f"{against}, no interval is known")
    half = math.hypot(*((high - low) / 2 for low, high in intervals))
    return Change(before - after, (before - after - half, before - after + half), f"{against}, unpaired interval")


def _speedups(
    report: Mapping[str, Any], row: Mapping[str, Any], gates: Gates, baseline: Mapping[str, Any] | None
) -> list[Change]:
    """One for each machine."""
    if baseline is not None:
        found = [_against_baseline(entry, row, baseline) for entry in _entries(report, row, gates)]
        return found or [Change(None, None, "no such latency")]
    first = report["rows"][0]["stage"]
    best: dict[str, Mapping[str, Any]] = {}
    for ratio in report["ratios"]:
        pair = (ratio["numerator"]["row"], ratio["denominator"]["row"], ratio["batch"])
        fits = pair == (row["stage"], first, gates.batch) and gates.backend in (None, ratio["numerator"]["backend"])
        if fits and ratio["speedup"] > best.get(ratio["machine"], {"speedup": -1.0})["speedup"]:
            best[ratio["machine"]] = ratio
    return [
        Change(r["speedup"], tuple(r["ci95"]), f"{r['numerator']['backend']} against {first} on {machine}")
        for machine, r in best.items()
    ] or [Change(None, None, f"no interleaved ratio against {first}")]


def _against_baseline(entry: Mapping[str, Any], row: Mapping[str, Any], baseline: Mapping[str, Any]) -> Change:
    """The same latency in another report: backend, precision, batch and threads are equal."""
    keys = ("backend", "precision", "threads")
    candidates = [
        one
        for base in baseline["rows"]
        if base["stage"] == row["stage"]
        for one in base["latency"]
        if plain(one, entry["batch"]) and all(one[key] == entry[key] for key in keys)
    ]
    same = [one for one in candidates if one["machine"] == entry["machine"]]
    if not candidates:
        return Change(None, None, f"the baseline has no such latency ({place(entry)})")
    found = (same or candidates)[0]
    note = place(entry) if same else f"{place(entry)}; the baseline is of another machine, {found['machine']}"
    fast, slow = (one.get("rounds_ms") or [] for one in (entry, found))
    if min(len(fast), len(slow)) < FEWEST_ROUNDS:
        return Change(found["p50_ms"] / entry["p50_ms"], None, f"{note}; too few rounds for an interval")
    ratio = unpaired_speedup(fast, slow)
    return Change(ratio.speedup, (ratio.low, ratio.high), note)
