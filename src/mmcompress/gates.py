"""Gates: limits that a report is held against, in a recipe or by `mmcompress check`.

A limit on a figure (`max`, `min`) is a plain comparison. A limit on a change (`max_drop`, `min_speedup`) is judged with
the change's 95% interval: past the limit but with "no change" inside the interval, it is said to be not significant and
passes, unless the gate is strict. So a small test set cannot fail a gate by chance, at the price that it cannot see a
small loss either; the interval is in the verdict, so that this can be told. A drop that is established fails on its
best estimate: the interval need not lie wholly beyond the limit. What was not measured fails.

Intervals, in this order: the paired bootstrap that drift took of the same images; else, from the two rows' own
intervals as if they were independent, sqrt(a^2 + b^2), which is wider than a paired one. Of a speed-up: bench's, of
interleaved rounds; against a baseline report, a bootstrap of both reports' round medians.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from mmcompress.architecture import Config
from mmcompress.errors import UsageError, suggestion

HIGHER_IS_BETTER = frozenset(
    {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    | {"top1", "top5", "cosine_mean", "cosine_p01", "cosine_worst", "text_cosine_mean", "text_cosine_p01"}
    | {"rank_correlation", "margin_mean", "mean_per_class_recall"}
)
METRICS = HIGHER_IS_BETTER | {"flip_rate", "flips_gained", "flips_lost", "mcnemar_p", "ece"}
SIZES = frozenset({"params", "macs", "bytes"})
SPEEDS = frozenset({"throughput_ips", "ceiling_share"})
LATENCY = SPEEDS | {
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "cv", "load_ms", "first_ms"),
    *("peak_bytes", "device_peak_bytes", "energy_mj"),
}
PARTS = {
    "unseen": METRICS,
    "old_index": frozenset(name for name in METRICS if "_r" in name[:5]),
    "int8_against_fp32": frozenset({"cosine_mean", "cosine_p01", "text_cosine_mean", "flip_rate", "r10_drop"}),
}
KNOWN = METRICS | SIZES | LATENCY | {f"{part}.{name}" for part, names in PARTS.items() for name in names}
FALLING = HIGHER_IS_BETTER | {f"{part}.{name}" for part, names in PARTS.items() for name in names & HIGHER_IS_BETTER}
"""What can drop: the metrics that are better when higher."""
Verdict = dict[str, Any]
Interval = tuple[float, float]


class Gates(Config):
    """Limits on one row of a report; the last row, at batch 1, on its fastest backend, where nothing else is said."""

    max_drop: dict[str, float] = Field(default_factory=dict)
    """Largest loss of a metric, in its own unit: `i2t_r10 = 0.01` is one point of R@10 against the reference."""
    max: dict[str, float] = Field(default_factory=dict)
    """Upper limits: `p99_ms = 5`."""
    min: dict[str, float] = Field(default_factory=dict)
    """Lower limits: `top1 = 0.6`."""
    min_speedup: float | None = Field(default=None, gt=0)
    """Smallest ratio of median latencies: the reference's over the row's."""
    row: str | None = None
    """The row that is held against the limits; the last one if not given."""
    backend: str | None = None
    """The backend that latency gates are about; the fastest of the row if not given."""
    batch: int = Field(default=1, ge=1)
    """The batch size that latency gates are about."""
    strict: bool = False
    """Let a change past its limit fail even where its interval includes no change."""

    @field_validator("max_drop", "max", "min")
    @classmethod
    def _known(cls, limits: dict[str, float], info: Any) -> dict[str, float]:
        known = FALLING if info.field_name == "max_drop" else KNOWN
        for name, limit in limits.items():
            if name not in KNOWN:
                raise ValueError(f"there is no metric {name!r}; {suggestion(name, known)}")
            if name not in known:
                raise ValueError(f"{name!r} does not drop, it is better when lower: give a limit with max")
            if not math.isfinite(limit):
                raise ValueError(f"the limit of {name!r} is {limit}, not a number to compare with")
        return limits

    @property
    def count(self) -> int:
        return len(self.max_drop) + len(self.max) + len(self.min) + (self.min_speedup is not None)


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
        passed = None if change.value is None else change.value <= limit
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


def _row(report: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    if not rows:
        raise UsageError("the report has no rows", "join ONNX artifacts with their measurements: mmcompress report DIR")
    found = next((row for row in rows if row["stage"] == name), rows[-1] if name is None else None)
    if found is None:
        raise UsageError(f"the report has no row {name!r}", suggestion(str(name), [row["stage"] for row in rows]))
    return found


def _verdict(gate: str, row: Mapping[str, Any], limit: float, change: Change, passed: bool | None) -> Verdict:
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
) -> Iterable[tuple[float | None, str]]:
    """A figure of the row and where it was taken; of a latency one for each machine."""
    if name in LATENCY:
        return [(entry.get(name), place(entry)) for entry in _entries(report, row, gates)] or [
            (None, "no such latency")
        ]
    return [(_figure(row, name), "")]


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    part, _, rest = name.rpartition(".")
    held = row["metrics"].get(part) if part == "old_index" else row.get(part) if part else row["metrics"]
    found = row.get(name) if name in SIZES else (held or {}).get(rest)
    return None if found is None else float(found)


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
            and entry["batch"] == gates.batch
            and entry["streams"] in (None, 1)
            and gates.backend in (None, entry["backend"])
            and entry["precision"] == row["precision"]
            and entry["p50_ms"] is not None
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
    before, after = _figure(reference, name), _figure(row, name)
    if before is None or after is None:
        return Change(None, None, f"{'baseline' if baseline else reference['stage']} or {row['stage']} has no {name}")
    paired = row.get("r10_change") if baseline is None and name == "i2t_r10" else None
    if paired:
        low, high = paired["ci95"]
        return Change(before - after, (-high, -low), against)
    intervals = [found for one in (reference, row) if (found := _interval(one, name))]
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
    keys = ("backend", "precision", "batch", "threads")
    candidates = [
        one
        for base in baseline["rows"]
        if base["stage"] == row["stage"]
        for one in base["latency"]
        if all(one[key] == entry[key] for key in keys) and one["streams"] in (None, 1) and one["p50_ms"] is not None
    ]
    same = [one for one in candidates if one["machine"] == entry["machine"]]
    if not candidates:
        return Change(None, None, f"the baseline has no such latency ({place(entry)})")
    found = (same or candidates)[0]
    note = place(entry) if same else f"{place(entry)}; the baseline is of another machine, {found['machine']}"
    interval = speedup_interval(entry.get("rounds_ms") or [], found.get("rounds_ms") or [])
    return Change(found["p50_ms"] / entry["p50_ms"], interval, note)


def speedup_interval(
    fast_ms: Sequence[float], slow_ms: Sequence[float], seed: int = 0, resamples: int = 1000
) -> Interval | None:
    """95% percentile bootstrap (Efron 1979) of median(slow) / median(fast) over rounds of two separate runs."""
    import numpy as np

    if len(fast_ms) < 2 or len(slow_ms) < 2:
        return None
    random = np.random.default_rng(seed)
    slow, fast = (
        np.median(random.choice(np.asarray(rounds), (resamples, len(rounds))), axis=1) for rounds in (slow_ms, fast_ms)
    )
    low, high = np.quantile(slow / fast, [0.025, 0.975])
    return float(low), float(high)
