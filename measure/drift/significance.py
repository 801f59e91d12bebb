"""How far a figure would move with other images: bootstrap intervals, and the exact test for changed answers.

The image is what was drawn at random, so it is the unit. The captions of one image go together (a cluster bootstrap),
and every figure of every row is taken over the same resamples, which makes the difference of two rows a paired
comparison. A resample is a count for each unit, so all figures of a resample are one matrix product.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.document import Interval

RESAMPLES = 1000
_CHUNK = 32
"""Resamples that are floats at once."""


@functools.lru_cache(maxsize=4)
def resample_counts(units: int, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """(R, N): how often each unit was drawn when N are drawn with replacement (Efron 1979). One byte each.

    A count beyond 255 would need more than 255 units, where each is drawn once on average; it does not happen. Rows of
    one table ask for the same counts, so the last ones are kept.
    """
    draw = np.random.default_rng(seed)
    counts = np.empty((resamples, units), dtype=np.uint8)
    for row in counts:
        row[:] = np.bincount(draw.integers(0, units, units, dtype=np.int32), minlength=units) if units else 0
    counts.setflags(write=False)
    return counts


def resampled_means(
    values: NDArray[Any], counts: NDArray[np.uint8], weights: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """(N, K) sums of each unit, (R, N), (N, K) sizes of each unit (1 if not given) -> (R, K) means of each resample."""
    values = np.asarray(values, dtype=np.float64)
    sizes = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    columns = np.concatenate([values, sizes], axis=1)
    totals = np.concatenate(
        [counts[at : at + _CHUNK].astype(np.float64) @ columns for at in range(0, len(counts), _CHUNK)]
    )
    sums, sizes = np.split(totals, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any weight has no mean
        means: NDArray[np.float64] = sums / sizes
    return means


def interval(means: NDArray[np.float64]) -> Interval | None:
    """(R,) -> 95% percentile interval; None where there was nothing to resample."""
    known = means[np.isfinite(means)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_ci(values: NDArray[Any], seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """(N,) one value a unit -> 95% percentile interval of the mean."""
    counts = resample_counts(len(values), seed, resamples)
    return interval(resampled_means(np.asarray(values)[:, None], counts)[:, 0])


def paired_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[Interval | None, bool]:
    """(R,), (R,) means over the same resamples -> interval of the change, and whether it excludes 0."""
    change = interval(after - before)
    return change, change is not None and not change[0] <= 0 <= change[1]


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test (McNemar 1947): are as many answers gained as lost?

    Under no change, `gained` of the n = gained + lost changed answers is binomial(n, 1/2), whose tail is summed in
    logarithms: log C(n, i) grows by log((n - i) / (i + 1)).
    """
    changed, fewer = gained + lost, min(gained, lost)
    steps = np.log(np.arange(changed, changed - fewer, -1)) - np.log(np.arange(1, fewer + 1))
    logs = np.concatenate([[0.0], np.cumsum(steps)]) - changed * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))
