"""When integers are trained, and whether the trained ones are taken: what a fit costs, and what it must not cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np

from mmcompress.budget import Budget, Cost
from mmcompress.compress.int8.convfit import as_fitted
from mmcompress.compress.int8.fit import KINDS, drift_of_both
from mmcompress.compress.int8.graphtower import GraphTower
from mmcompress.compress.int8.sensitivity import cost
from mmcompress.compress.int8.simulate import TOWERS, Feeds, embedded, quantizing
from mmcompress.export.integers import OUTPUT
from mmcompress.int8 import Linears, Range, Signedness
from mmcompress.model import DualEncoder

ENDS: Mapping[Signedness, tuple[str, ...]] = {"signed": ("absmax",), "unsigned": ("low", "high")}
"""What of a range each kind of graph reads."""
NONE: frozenset[str] = frozenset()
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
    cost: Cost
    """What a user sees of it, each figure by the kind that loses more."""


def needed(before: FitCost, budget: Budget) -> bool:
    """Whether there is something to train for: a limit that is passed, by chance or not, or without one any drift."""
    drifts = any(drift > 0 for towers in before.drift.values() for drift in towers.values())
    passed = budget.broken(before.cost) or budget.doubts(before.cost)
    return drifts and bool(passed or not budget.limited)


def gained(parts: Parts, before: FitCost, result: FitCost, budget: Budget) -> bool:
    """Whether some part came closer, and what has a limit costs no more than before."""
    closer_somewhere = any(taken for towers in parts.values() for taken in towers.values())
    hits = budget.max_drop is None or result.cost.r10_lost <= before.cost.r10_lost
    return closer_somewhere and hits and (budget.max_flips is None or result.cost.flips <= before.cost.flips)


def fit_cost(model: DualEncoder, fitted: Fit, judging: Feeds, convolutions: GraphTower | None = None) -> FitCost:
    """Drift and cost of both kinds of graph; `convolutions` is the image tower in float, where it is of those."""
    own = None if convolutions is None else as_fitted(convolutions, fitted.ranges, fitted.linears)
    reference = embedded(model, "image", judging.image), embedded(model, "text", judging.text)
    costs = []
    for kind in KINDS:
        with quantizing(model, fitted.linears[kind], fitted.ranges, kind):
            texts = embedded(model, "text", judging.text)
            images = embedded(model, "image", judging.image) if own is None else own.embedded(judging.image, NONE, kind)
        costs.append(cost(reference, (images, texts)))
    worst = Cost(*(float(np.max(figures)) for figures in zip(*map(astuple, costs), strict=True)))
    drift = drift_of_both(model, judging, fitted.linears, fitted.ranges)
    if own is not None:
        for kind, moved in own.drifts(judging.image, NONE).items():
            drift[kind]["image"] = moved
    return FitCost(drift, worst)


def closer(
    given: Fit, trained: Fit, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> tuple[Fit, Parts]:
    """For each kind and tower the fit that drifts less, and whether it is the trained one."""
    parts: Parts = {kind: {tower: after[kind][tower] < before[kind][tower] for tower in TOWERS} for kind in KINDS}
    ranges = {name: dict(ends) for name, ends in given.ranges.items()}
    linears: dict[Signedness, Linears] = {}
    for kind, towers in parts.items():
        taken = {name for name in given.linears[kind] if towers[name.partition(".")[0]]}
        linears[kind] = {
            name: (trained if name in taken else given).linears[kind][name] for name in given.linears[kind]
        }
        for name in (one for one in ranges if one.removesuffix(f".{OUTPUT}") in taken):
            ranges[name] |= {end: trained.ranges[name][end] for end in ENDS[kind]}
    return Fit(ranges, linears), parts
