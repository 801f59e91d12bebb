"""From the times of single calls to figures with their spread. Pure: nothing here measures anything.

**What is compared.** A round opens every session anew and visits the combinations in many short passes, each in a
random order and then in the reverse one (`interleave.py`). Two combinations are compared pass by pass, milliseconds
apart, as the difference of the logarithms of their medians: whatever slows both of them in that moment cancels, and so
does a drift, since the order is mirrored. The median over its passes is the round's log-ratio.

**What the interval is over.** Calls that follow each other are not independent, and where a session's memory came to
lie favours it until it is closed; an interval over calls or passes would be far too narrow. Rounds are independent, so
they are what is resampled. The estimate is their trimmed mean: one round that a neighbour's job fell upon must not
decide. A percentile bootstrap over about ten values is too narrow by a seventh; its quantiles are moved outwards as in
Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 5.3 (expanded percentile interval).

**What rounds cannot see.** Where a process lies in memory is the same in all of its rounds (Mytkowicz et al. 2009,
"Producing Wrong Data Without Doing Anything Obviously Wrong!"): of two equal files compared by many processes the
ratios varied by 0.4% more than their intervals said. So 1% is added to every interval, as independent errors add, and
a smaller difference is never called significant.

Left out: tests of distributions (that two samples differ is no news), and correction for many comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.document import Interval
from mmcompress.errors import UsageError
from mmcompress.measure.document import CallTimes, Speedup, TimeHistogram

Times = NDArray[np.float64]
"""Milliseconds of the calls of one visit."""
Rounds = Sequence[Sequence[Times]]
"""By round and pass."""
TRIM = 0.2
"""Share of the rounds that is cut off at each end before the mean is taken."""
RESOLUTION = 0.01
"""Half of the 95% interval that two equal files have from process to process, beyond what rounds tell."""
RESAMPLES = 4000
BINS = 40
FEWEST_ROUNDS = 4
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one is as another, and the 95% interval of it."""

    speedup: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        return not self.low <= 1 <= self.high

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def ci95(self) -> Interval:
        return self.low, self.high

    def document(self) -> Speedup:
        return Speedup(speedup=self.speedup, ci95=self.ci95, significant=self.significant)


def paired_speedup(fast: Rounds, slow: Rounds, seed: int = 0) -> Ratio:
    """Time of `slow` over time of `fast`, both measured in the same rounds and passes."""
    logs = np.array([_round_log_ratio(a, b) for a, b in zip(fast, slow, strict=True)])
    return _ratio(trimmed_mean(logs), resampled_means(logs, seed), len(logs))


def unpaired_speedup(fast_ms: Sequence[float], slow_ms: Sequence[float], seed: int = 0) -> Ratio:
    """Time of `slow` over time of `fast`, from the medians of rounds that have nothing to do with each other."""
    fast, slow = np.log(np.asarray(fast_ms)), np.log(np.asarray(slow_ms))
    draws = resampled_means(slow, seed) - resampled_means(fast, seed + 1)
    return _ratio(trimmed_mean(slow) - trimmed_mean(fast), draws, min(len(fast), len(slow)))


def _round_log_ratio(fast: Sequence[Times], slow: Sequence[Times]) -> float:
    return float(np.median([math.log(np.median(b) / np.median(a)) for a, b in zip(fast, slow, strict=True)]))


def trimmed_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., n) -> (...): the mean without the lowest and the highest fifth."""
    cut = int(TRIM * values.shape[-1])
    middle = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut]
    return np.asarray(middle.mean(axis=-1))


def resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(n,) -> (RESAMPLES,): the trimmed means of samples drawn with replacement."""
    if len(values) < FEWEST_ROUNDS:
        raise UsageError(
            f"an interval over {len(values)} rounds cannot be given", f"measure {FEWEST_ROUNDS} rounds or more"
        )
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return trimmed_mean(values[draws])


def _ratio(log_speedup: Any, draws: NDArray[np.float64], rounds: int) -> Ratio:
    tail = expanded_tail(rounds)
    middle = float(log_speedup)
    low, high = (math.hypot(float(end) - middle, RESOLUTION) for end in np.quantile(draws, [tail, 1 - tail]))
    return Ratio(math.exp(middle), math.exp(middle - low), math.exp(middle + high))


def expanded_tail(n: int, level: float = 0.95) -> float:
    """The tail of the bootstrap distribution of a mean of n values at which its interval reaches its level.

    Phi(-sqrt(n / (n - 1)) t), with Student's t at n - 1 degrees of freedom: Hesterberg 2015, section 5.3.
    """
    return _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student_t((1 + level) / 2, n - 1))


def student_t(p: float, degrees: int) -> float:
    """Quantile of Student's t: Abramowitz & Stegun 1964, equation 26.7.5; right to 1% from 3 degrees on."""
    z = _NORMAL.inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def round_medians(rounds: Rounds) -> list[float]:
    """Milliseconds: the median of each round's calls."""
    return [float(np.median(np.concatenate(passes))) for passes in rounds]


def spread(medians_ms: Sequence[float]) -> float:
    """How far rounds differ from each other: 1.4826 times the median absolute deviation, over the median."""
    values = np.asarray(medians_ms)
    middle = float(np.median(values))
    return float(1.4826 * np.median(np.abs(values - middle)) / middle)


def summary(times_ms: Times, batch: int) -> CallTimes:
    """Percentiles of a call's time; throughput is at the mean time, so that slow calls count."""
    p50, p90, p95, p99 = np.quantile(times_ms, [0.5, 0.9, 0.95, 0.99])
    mean = float(times_ms.mean())
    return CallTimes(
        samples=len(times_ms),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        mean_ms=mean,
        cv=float(times_ms.std()) / mean,
        throughput_ips=1000 * batch / mean,
        histogram=histogram(times_ms),
    )


def histogram(times_ms: Times) -> TimeHistogram:
    """Calls by their time, up to the percentile 99.5; slower ones are counted in the last bin."""
    top = float(np.quantile(times_ms, 0.995))
    bins = min(BINS, max(1, math.isqrt(len(times_ms))))
    counts, edges = np.histogram(np.minimum(times_ms, top), bins=bins)
    return TimeHistogram(edges_ms=tuple(map(float, edges)), counts=tuple(map(int, counts)))
