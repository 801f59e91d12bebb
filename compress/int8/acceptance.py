"""When integers are trained, and whether the trained ones are taken: what a fit costs, and what it must not cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmcompress.compress.int8.fit import KINDS, drift_of_both
from mmcompress.compress.int8.sensitivity import lost_matches
from mmcompress.compress.int8.simulate import TOWERS, Feeds, embedded, quantizing
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.model import DualEncoder

Parts = dict[Signedness, dict[str, bool]]
"""By kind and tower."""


@dataclass(frozen=True)
class Fit:
    """The INT8 of both kinds of graph."""

    ranges: Mapping[str, Range]
    linears: Mapping[Signedness, Linears]


@dataclass(frozen=True)
class FitCost:
    """What a fit costs on the samples that judge."""

    drift: dict[str, dict[str, float]]
    """Mean of 1 - cosine to FP32, by kind and tower."""
    lost: float
    """Share of the R@10 hits that are lost, by the kind that loses more."""


def needed(before: FitCost, max_drop: float | None) -> bool:
    """Whether there is something to train for: a budget that does not hold, or, without one, any drift at all."""
    drifts = any(drift > 0 for towers in before.drift.values() for drift in towers.values())
    return drifts and (max_drop is None or not before.lost <= max_drop)


def gained(parts: Parts, before: FitCost, result: FitCost, max_drop: float | None) -> bool:
    """Whether some part came closer and, where hits are budgeted, no more of them are lost."""
    closer_somewhere = any(taken for towers in parts.values() for taken in towers.values())
    return closer_somewhere and (max_drop is None or result.lost <= before.lost)


def fit_cost(model: DualEncoder, fitted: Fit, judging: Feeds) -> FitCost:
    """Drift and lost hits of both kinds of graph."""
    reference = embedded(model, "image", judging.image), embedded(model, "text", judging.text)
    lost = []
    for kind in KINDS:
        with quantizing(model, fitted.linears[kind], fitted.ranges, kind):
            found = embedded(model, "image", judging.image), embedded(model, "text", judging.text)
        lost.append(lost_matches(reference, found))
    return FitCost(drift_of_both(model, judging, fitted.linears, fitted.ranges), max(lost))


def closer(
    given: Fit, trained: Fit, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> tuple[Fit, Parts]:
    """For each kind and tower the fit that drifts less, and whether it is the trained one."""
    parts: Parts = {kind: {tower: after[kind][tower] < before[kind][tower] for tower in TOWERS} for kind in KINDS}
    ranges = {name: dict(found) for name, found in given.ranges.items()}
    linears: dict[Signedness, Linears] = {}
    for kind, towers in parts.items():
        taken = {name for name in given.linears[kind] if towers[name.partition(".")[0]]}
        linears[kind] = {
            name: (trained if name in taken else given).linears[kind][name] for name in given.linears[kind]
        }
        for name in taken:
            ranges[name] |= {end: trained.ranges[name][end] for end in ENDS[kind]}
    return Fit(ranges, linears), parts


ENDS: Mapping[Signedness, tuple[str, ...]] = {"signed": ("absmax",), "unsigned": ("low", "high")}
"""What of a range each kind of graph reads."""
