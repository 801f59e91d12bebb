"""How many candidates does a graph of neighbours need? So many that it finds what an exact search finds, by a sample.

How well a walk finds depends on the vectors: among many near duplicates, whose links stay among themselves, one needs
far more candidates, or never arrives. So a graph is tried when it is written. Queries are images of its own, and, as
the texts of the future are not at hand, sums of two images less a third: they lie apart from images as texts do, and
are a little harder (benchmarks/results/search.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmcompress.runtime.neighbours import LOOK_AT_ALL, Graph, candidates

SAMPLE = 100
"""Queries of each sort."""
NEIGHBOURS = 10
ENOUGH = 0.99
"""Recall of a sample; 0.98 is wanted, and a sample errs by some thousandths."""
LONGER = (1, 2, 4, 8)
"""Times the usual number of candidates that are tried; behind them, looking at all is hardly slower."""
EQUAL = 1e-4
"""Cosines that differ by less are of equal rank: FP16 tells them apart by chance."""


@dataclass(frozen=True)
class Walk:
    """How a graph is searched."""

    candidates: int
    """LOOK_AT_ALL where no number of them finds enough."""
    recall_at_10: float
    """Share of the ten nearest that it finds, of the sample's harder half; 1 where all are looked at."""


def walk_for(graph: Graph, without: NDArray[np.int64] | None = None, seed: int = 0) -> Walk:
    """The shortest walk whose recall@10 is enough for both sorts of queries, among all rows but those `without`."""
    live = np.setdiff1d(np.arange(len(graph)), [] if without is None else without)
    if not len(live):
        return Walk(candidates(len(graph)), 1.0)
    drawn = np.random.default_rng(seed).choice(live, (3, min(SAMPLE, len(live))))
    image, other, third = (graph.vectors(rows) for rows in drawn)
    apart = image + other - third
    apart /= np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-6)
    sorts = [image, apart]
    least = [graph.nearest(asked, NEIGHBOURS, without, LOOK_AT_ALL)[1][:, -1:] for asked in sorts]
    for times in LONGER:
        held = times * candidates(len(graph))
        found = [graph.nearest(asked, NEIGHBOURS, without, held)[1] for asked in sorts]
        recall = min(float((near >= worst - EQUAL).mean()) for near, worst in zip(found, least, strict=True))
        if recall >= ENOUGH:
            return Walk(held, recall)
    return Walk(LOOK_AT_ALL, 1.0)
