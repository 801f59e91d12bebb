"""Budgets against the exact binomial test: what is beyond doubt, what may be chance, and how many images tell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmcompress.budget import Budget, Cost, by_chance, telling


def binomial_tail(hits: int, draws: int, rate: float) -> float:
    """P(X >= hits), summed term by term: the exact test."""
    return math.fsum(math.comb(draws, k) * rate**k * (1 - rate) ** (draws - k) for k in range(hits, draws + 1))


def wilson_low(share: float, images: int) -> float:
    """The lower end of Wilson's interval, by its closed form (Wilson 1927)."""
    z2 = 1.96**2
    middle = share + z2 / (2 * images)
    return (middle - 1.96 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))) / (1 + z2 / images)


@pytest.mark.parametrize("limit", [0.002, 0.005, 0.02, 0.3])
def test_a_limit_is_broken_where_the_interval_lies_above_it(limit: float) -> None:
    for images in (40, 104, 256, 2000):
        budget = Budget(None, limit, images)
        for flips in range(images + 1):
            share = flips / images
            broken, doubted = budget.broken(Cost(0.0, share)), budget.doubts(Cost(0.0, share))
            assert bool(broken) == (wilson_low(share, images) > limit) == (budget.used(Cost(0.0, share)) > 1)
            assert bool(doubted) == (share > limit and not broken)


@pytest.mark.parametrize(("images", "flips"), [(104, 5), (256, 10), (500, 17), (900, 27)])
def test_what_is_beyond_doubt_is_so_by_the_exact_test_too(images: int, flips: int) -> None:
    """The fewest flips that break 2% would come of a model of 2% in 6% of all draws at most, and one fewer oftener."""
    fewest = math.floor(by_chance(0.02, images) * images) + 1
    assert fewest == flips
    assert binomial_tail(flips, images, 0.02) < 0.06 and binomial_tail(flips - 1, images, 0.02) > 0.025


def test_a_model_beyond_its_limit_is_found_out_with_enough_images_and_never_blamed_within_it() -> None:
    rng = np.random.default_rng(0)

    def broken(rate: float, images: int) -> float:
        return float(
            np.mean(
                [
                    Budget(None, 0.02, images).holds(Cost(0.0, k / images)) is False
                    for k in rng.binomial(images, rate, 2000)
                ]
            )
        )

    assert broken(0.01, 104) < 0.01 and broken(0.02, 104) < 0.07
    assert broken(0.05, 400) > 0.9 and broken(0.04, 1000) > 0.9


def test_the_images_that_would_tell_do() -> None:
    for share in (0.021, 0.03, 0.08):
        images = telling(share, 0.02)
        assert share > by_chance(0.02, images) and share <= by_chance(0.02, images - 1)


def test_without_any_loss_allowed_one_is_beyond_doubt() -> None:
    none = Budget(0.0, 0.0, 50)
    assert none.holds(Cost(0.0, 0.0)) and none.used(Cost(0.0, 0.0)) == 0
    assert len(none.broken(Cost(0.01, 0.02))) == 2 and none.used(Cost(0.0, 0.02)) == math.inf
    assert none.fewest == 0


def test_the_fewest_images_are_those_of_which_one_loss_is_within_the_limit() -> None:
    assert Budget(0.005, None, 1).fewest == 100, "an image and its text are two queries"
    assert Budget(None, 0.02, 1).fewest == 50
    assert Budget(0.005, 0.02, 1).fewest == 100 and Budget(None, None, 1).fewest == 0


def test_doubts_say_how_many_images_would_tell() -> None:
    (said,) = Budget(0.005, 0.02, 104).doubts(Cost(0.0, 3 / 104))
    assert said.startswith("it answers 2.88% of the images otherwise, and 2.00% were allowed")
    assert said.endswith(f"of 104 images that may be chance, {telling(3 / 104, 0.02)} would tell")
    assert not Budget(None, None, 104).doubts(Cost(0.5, 0.5))
