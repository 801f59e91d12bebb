"""Distances between models, against double loops and textbook cases."""

from __future__ import annotations

import numpy as np
import pytest

from mmcompress.measure.agreement import (
    calibration_error,
    class_changes,
    cosines,
    flip_shares,
    histogram,
    ranked_images,
    unit_ranks,
)
from mmcompress.measure.drift.document import ClassChange


def test_cosines_do_not_depend_on_lengths() -> None:
    angles = np.radians([0.0, 60.0])
    reference, other = np.array([[1.0, 0.0], [1.0, 0.0]]), np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert cosines(reference, 3 * other) == pytest.approx([1.0, 0.5])


def average_ranks(values: np.ndarray) -> list[float]:
    """The definition: equal values share the mean of their places."""
    ordered = sorted(values)
    return [np.mean([place for place, other in enumerate(ordered) if other == value]) for value in values]


def test_rank_products_equal_the_correlation_of_average_ranks() -> None:
    """Spearman's coefficient is Pearson's of the ranks; whole numbers make ties."""
    rng = np.random.default_rng(0)
    images, texts = rng.integers(-2, 3, (20, 3)).astype(np.float32), rng.integers(-2, 3, (15, 3)).astype(np.float32)
    other = rng.integers(-2, 3, (20, 3)).astype(np.float32)
    images[images.any(axis=1) == 0] = 1
    other[other.any(axis=1) == 0] = 1
    found = (unit_ranks(images, texts) * unit_ranks(other, texts)).sum(axis=1)
    for row in range(20):
        ranks = average_ranks(images[row] @ texts.T), average_ranks(other[row] @ texts.T)
        assert found[row] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_without_an_order_there_is_no_rank_correlation() -> None:
    assert not unit_ranks(np.zeros((2, 3), np.float32), np.ones((5, 3), np.float32)).any()


def test_ranked_images_are_evenly_spread_and_few_where_candidates_are_many() -> None:
    assert ranked_images(10, 5).tolist() == list(range(10))
    assert len(ranked_images(100_000, 1000)) == 2097
    some = ranked_images(100_000, 1 << 20)
    assert len(some) == 64 and some[0] == 0 and some[-1] == 99_999
    assert ranked_images(0, 5).tolist() == []


def test_flips_are_split_by_what_became_of_them() -> None:
    before, after = np.array([0, 1, 2, 3]), np.array([0, 5, 6, 7])
    was, now = np.array([True, True, False, False]), np.array([True, False, True, False])
    shares = {name: values.mean() for name, values in flip_shares(before, after, was, now).items()}
    assert shares == {"flip_rate": 0.75, "flips_gained": 0.25, "flips_lost": 0.25}


def test_calibration_error_equals_the_bins_of_guo_et_al() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.random(500), rng.random(500) < 0.5
    expected = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.sum() / 500 * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected)
    assert calibration_error(np.full(4, 1.0), np.array([True, True, False, False])) == pytest.approx(0.5)


def test_the_classes_that_lost_most_come_first() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1, 2])
    was = np.array([True, True, True, True, True, True, False])
    now = np.array([True, False, False, False, False, True, True])
    found = class_changes(labels, ["cat", "dog", "owl"], was, now)
    assert found == [
        ClassChange(label="dog", images=4, before=1.0, after=0.25),
        ClassChange(label="cat", images=2, before=1.0, after=0.5),
    ]
    assert class_changes(labels, ["cat", "dog", "owl"], was, now, most=1) == found[:1]


def test_histogram_holds_every_value() -> None:
    found = histogram(np.array([0.5, 0.9, 1.0, 1.0000001]), bins=10)
    assert len(found.edges) == 11 and sum(found.counts) == 4
    assert found.edges[0] == 0.5 and found.edges[-1] == 1.0
    assert histogram(np.ones(3), bins=4).counts == (0, 0, 0, 3)
