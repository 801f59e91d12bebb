"""The estimator on synthetic times with known ratios: coverage and width by simulation, quantiles against tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest

from mmcompress.errors import UsageError
from mmcompress.measure import estimate
from mmcompress.measure.estimate import (
    Rounds,
    histogram,
    paired_speedup,
    round_medians,
    spread,
    student_t,
    summary,
    trimmed_mean,
    unpaired_speedup,
)

Noise = Callable[[np.random.Generator, int], "np.ndarray[tuple[int], np.dtype[np.float64]]"]


def autoregressive(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """AR(1) with a coefficient of 0.95 and a standard deviation of 15%, as it was seen on two shared cores."""
    ages = np.subtract.outer(np.arange(count), np.arange(count))
    memory = np.where(ages >= 0, 0.95 ** np.maximum(ages, 0), 0.0)
    steps = rng.standard_normal(count) * 0.15
    steps[1:] *= np.sqrt(1 - 0.95**2)
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = memory @ steps
    return found


def spikes(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """5% of noise, and one call in twenty takes up to six times as long."""
    return 0.05 * rng.standard_normal(count) + np.where(rng.random(count) < 1 / 20, rng.uniform(0, 1.8, count), 0)


def drift(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A clock that falls by a third during each round."""
    return np.linspace(0, 0.4, count) + 0.03 * rng.standard_normal(count)


def measured(noise: Noise, ratio: float, seed: int, rounds: int = 10, passes: int = 20) -> tuple[Rounds, Rounds]:
    """Two contenders that take turns in mirrored order on one machine; the sessions of a round are 1% lucky or not."""
    rng = np.random.default_rng(seed)
    found: tuple[list[list[np.ndarray]], list[list[np.ndarray]]] = ([], [])  # type: ignore[type-arg]
    for _ in range(rounds):
        logs = noise(rng, 4 * passes)
        luck = 0.01 * rng.standard_normal(2)
        sides: list[list[np.ndarray]] = [[], []]  # type: ignore[type-arg]
        for number in range(passes):
            order = [number % 2, 1 - number % 2]
            for place, side in enumerate(order):
                calls = logs[4 * number + 2 * place : 4 * number + 2 * place + 2]
                sides[side].append((ratio if side else 1.0) * np.exp(calls + luck[side]))
        found[0].append(sides[0])
        found[1].append(sides[1])
    return found


@pytest.mark.parametrize("noise", [autoregressive, spikes, drift])
@pytest.mark.parametrize("ratio", [1.0, 1.05])
def test_intervals_cover_the_true_ratio_and_are_narrow(
    noise: Noise, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 93% of 80 intervals hold the ratio they were made with; all of a 5% slower one are significant."""
    monkeypatch.setattr(estimate, "RESAMPLES", 400)
    intervals = [paired_speedup(*measured(noise, ratio, seed), seed) for seed in range(80)]
    assert np.mean([one.low <= ratio <= one.high for one in intervals]) >= 0.93
    assert np.quantile([one.width for one in intervals], 0.95) < 0.06
    if ratio > 1:
        assert np.mean([one.significant for one in intervals]) >= 0.95
    else:
        assert np.mean([one.significant for one in intervals]) <= 0.07


def test_pairs_ignore_what_slows_both() -> None:
    """Each pass is slowed by another factor, up to a hundred times; the ratio is 3 in all of them."""
    rng = np.random.default_rng(0)
    factors = 10 ** rng.uniform(0, 2, (8, 6))
    fast = [[f * np.ones(3) * (1 + 0.001 * rng.standard_normal()) for f in row] for row in factors]
    slow = [[3 * f * np.ones(2) for f in row] for row in factors]
    found = paired_speedup(fast, slow)
    assert found.speedup == pytest.approx(3, rel=0.002)
    assert found.significant
    assert (found.low, found.high) == pytest.approx((3 * 0.99, 3 * 1.01), rel=0.002)


def test_one_spoilt_round_does_not_decide() -> None:
    rounds = [[np.full(4, 1.0)] for _ in range(10)]
    other = [[np.full(4, 1.0 + 0.001 * index)] for index in range(9)] + [[np.full(4, 9.0)]]
    assert paired_speedup(rounds, other).speedup == pytest.approx(1.0045, abs=1e-5)


def test_unpaired_intervals_cover_the_true_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "RESAMPLES", 400)
    hits = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = np.exp(0.03 * rng.standard_normal(8)), 1.1 * np.exp(0.03 * rng.standard_normal(10))
        found = unpaired_speedup(a.tolist(), b.tolist(), seed)
        hits.append(found.low <= 1.1 <= found.high)
    assert np.mean(hits) >= 0.93


def test_a_difference_below_the_resolution_is_never_significant() -> None:
    rounds = [[np.full(4, 1.0)]] * 10
    assert not paired_speedup(rounds, [[np.full(4, 1.009)]] * 10).significant
    assert paired_speedup(rounds, [[np.full(4, 1.011)]] * 10).significant


def test_the_same_seed_gives_the_same_interval() -> None:
    rounds = measured(spikes, 1.02, 3)
    assert paired_speedup(*rounds, 5) == paired_speedup(*rounds, 5)


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match="an interval over 3 rounds cannot be given") as caught:
        unpaired_speedup([1, 1, 1], [1, 1, 1, 1])
    assert caught.value.hint == "measure 4 rounds or more"


@pytest.mark.parametrize(
    ("degrees", "expected"), [(3, 3.182), (4, 2.776), (7, 2.365), (9, 2.262), (19, 2.093), (120, 1.980)]
)
def test_student_t_matches_the_printed_table(degrees: int, expected: float) -> None:
    """Abramowitz & Stegun 1964, table 26.10, two-sided 5%."""
    assert student_t(0.975, degrees) == pytest.approx(expected, rel=0.002)


def test_the_trimmed_mean_is_the_mean_of_the_middle() -> None:
    values = np.array([100.0, 1, 2, 3, 4, 5, 6, 7, 8, -100])
    assert trimmed_mean(values) == statistics.mean([2, 3, 4, 5, 6, 7])
    assert trimmed_mean(np.stack([values, values + 1])).tolist() == [4.5, 5.5]


def test_summary_matches_numpy_and_counts_every_call() -> None:
    times = np.random.default_rng(0).gamma(4, 1, 1000)
    found = summary(times, batch=8)
    assert found.p95_ms == np.percentile(times, 95)
    assert found.cv == pytest.approx(times.std() / times.mean())
    assert found.throughput_ips == pytest.approx(8000 / times.mean())
    edges, counts = found.histogram.edges_ms, found.histogram.counts
    assert len(edges) == len(counts) + 1 <= 41
    assert sum(counts) == 1000
    assert edges[-1] == pytest.approx(np.quantile(times, 0.995))
    assert histogram(np.array([2.0])).counts == (1,)


def test_spread_is_a_standard_deviation_that_ignores_outliers() -> None:
    medians = np.random.default_rng(0).normal(10, 0.3, 4000)
    medians[:40] = 1000
    assert spread(medians.tolist()) == pytest.approx(0.03, rel=0.1)
    assert round_medians([[np.array([1.0, 9.0]), np.array([2.0])], [np.array([4.0])]]) == [2.0, 4.0]
