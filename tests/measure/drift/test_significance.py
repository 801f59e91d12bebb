"""Intervals against the normal ones and against resampling by index; McNemar's test against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from mmcompress.measure.drift.significance import (
    bootstrap_ci,
    interval,
    mcnemar_p,
    paired_change,
    resample_counts,
    resampled_means,
)


def test_interval_matches_the_normal_one() -> None:
    hits = np.arange(400) % 4 == 0
    found = bootstrap_ci(hits, seed=1)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert found == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)
    assert bootstrap_ci(hits, seed=1) == found
    assert bootstrap_ci(np.ones(10)) == (1.0, 1.0)
    assert bootstrap_ci(np.ones(0)) is None


def test_counts_are_those_of_draws_with_replacement() -> None:
    counts = resample_counts(300, seed=3, resamples=200)
    assert (counts.sum(axis=1) == 300).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(300), abs=0.4)
    assert counts.var() == pytest.approx(1, abs=0.05)  # of a binomial with 300 draws of 1/300


def test_means_equal_those_of_the_drawn_units() -> None:
    """Clusters of captions: the ratio of the sums over the drawn images."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 50)
    sums = rng.integers(0, sizes + 1)
    counts = resample_counts(50, seed=7, resamples=20)
    draw = np.random.default_rng(7)
    expected = []
    for _ in range(20):
        drawn = draw.integers(0, 50, 50, dtype=np.int32)
        expected.append(sums[drawn].sum() / sizes[drawn].sum())
    found = resampled_means(sums[:, None], counts, sizes[:, None])[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_captions_of_one_image_widen_the_interval() -> None:
    """Five captions that all hit or all miss are one observation, not five."""
    image_hits = np.random.default_rng(0).random(200) < 0.6
    counts = resample_counts(200)
    clustered = interval(resampled_means(image_hits[:, None] * 5, counts, np.full((200, 1), 5))[:, 0])
    separate = bootstrap_ci(np.repeat(image_hits, 5))
    assert clustered is not None and separate is not None
    assert (clustered[1] - clustered[0]) / (separate[1] - separate[0]) == pytest.approx(np.sqrt(5), rel=0.15)


def test_a_paired_change_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(2000) < 0.6
    after = before & (rng.random(2000) < 0.97)
    counts = resample_counts(2000)
    means = resampled_means(np.stack([before, after], axis=1), counts)
    change, significant = paired_change(means[:, 0], means[:, 1])
    assert change is not None and significant and change[1] < 0
    assert change[0] <= after.mean() - before.mean() <= change[1]
    assert interval(means[:, 1])[1] > before.mean() - 0.02  # type: ignore[index]  # alone, they overlap
    assert paired_change(means[:, 0], means[:, 0]) == ((0.0, 0.0), False)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 12), (12, 3), (50, 50), (20, 60), (400, 700)])
def test_mcnemar_equals_exact_fractions(gained: int, lost: int) -> None:
    changed = gained + lost
    tail = sum(Fraction(comb(changed, i), 2**changed) for i in range(min(gained, lost) + 1))
    assert mcnemar_p(gained, lost) == pytest.approx(min(1.0, float(2 * tail)), rel=1e-9)
    assert 0 < mcnemar_p(gained, lost) <= 1
