"""What INT8 may cost against its own FP32, and whether it does: one budget for quantize, qat and verdict.

Two costs, both of what a user sees: hits that are lost and answers that change. What INT8 gains elsewhere by chance
offsets neither. A limit that is None is none; a cost that is NaN breaks any limit.

A cost is a share of the images that judge, and of few images a share says little: two of a hundred may be 0.6% or 7%
of all. So a limit is broken where the whole 95% interval of the cost lies above it. What is past the limit and no more
than chance may do is accepted, and said, with the number of images that would tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmcompress.config import BudgetConfig
from mmcompress.formats import percent

Z = 1.96
"""Standard errors to each side of a 95% interval."""


@dataclass(frozen=True)
class Cost:
    """What a model costs against FP32 on some pairs."""

    r10_lost: float
    """Share of the queries, images and texts alike, whose match was among the ten best and is not any more."""
    flips: float
    """Share of the images whose best text is another one."""


@dataclass(frozen=True)
class Budget:
    """The largest cost that is accepted, and the images that it is judged on."""

    max_drop: float | None
    """Of `r10_lost`; None for any."""
    max_flips: float | None
    """Of `flips`; None for any."""
    images: int
    """Images that judge. An image and its text may lose their hits together, so both are one observation."""

    @staticmethod
    def of(config: BudgetConfig, images: int) -> Budget:
        return Budget(config.max_drop, config.max_flips, images)

    @property
    def limited(self) -> bool:
        return self.max_drop is not None or self.max_flips is not None

    @property
    def fewest(self) -> int:
        """Images that can judge it at all: one hit of an image and its text, or one answer, is no more than a limit."""
        steps = ((self.max_drop, 2), (self.max_flips, 1))
        return max((math.ceil(1 / (each * limit)) for limit, each in steps if limit), default=0)

    def holds(self, cost: Cost) -> bool:
        return not self.broken(cost)

    def used(self, cost: Cost) -> float:
        """How much of what may be chance a cost takes, by the tighter limit: it holds up to 1."""
        parts = ((cost.r10_lost, self.max_drop), (cost.flips, self.max_flips))
        shares = []
        for value, limit in parts:
            if limit is not None:
                bound = by_chance(limit, self.images)
                shares.append(value / bound if bound else (0.0 if value == 0 else math.inf))
        return math.inf if any(math.isnan(share) for share in shares) else max(shares, default=0.0)

    def broken(self, cost: Cost) -> list[str]:
        """In words, each limit that a cost passes beyond doubt."""
        return [
            f"it {phrase}, and {percent(limit, 2)} were allowed"
            for phrase, value, limit in self._parts(cost)
            if limit is not None and not value <= by_chance(limit, self.images)
        ]

    def doubts(self, cost: Cost) -> list[str]:
        """In words, each limit that a cost passes by no more than chance may do."""
        return [
            f"it {phrase}, and {percent(limit, 2)} were allowed: of {self.images} images that may be chance, "
            f"{telling(value, limit):,} would tell"
            for phrase, value, limit in self._parts(cost)
            if limit is not None and limit < value <= by_chance(limit, self.images)
        ]

    def told(self, cost: Cost) -> str:
        """In words, a cost beside its limits."""
        return " and ".join(
            f"{phrase} ({'any' if limit is None else percent(limit, 2)} were allowed)"
            for phrase, _, limit in self._parts(cost)
        )

    def _parts(self, cost: Cost) -> tuple[tuple[str, float, float | None], ...]:
        lost, flips = percent(cost.r10_lost, 2), percent(cost.flips, 2)
        return (
            (f"loses {lost} of the R@10 hits", cost.r10_lost, self.max_drop),
            (f"answers {flips} of the images otherwise", cost.flips, self.max_flips),
        )


def by_chance(limit: float, images: int) -> float:
    """The largest share of so many images whose 95% interval still holds the limit.

    The interval is Wilson's (1927, "Probable inference, the law of succession, and statistical inference"): a share is
    within `Z` standard errors of every rate in it, and the errors are those of the rate, here the limit.
    """
    return limit + Z * math.sqrt(limit * (1 - limit) / images)


def telling(share: float, limit: float) -> int:
    """The images of which a share would be beyond its limit beyond doubt."""
    return math.floor(Z**2 * limit * (1 - limit) / (share - limit) ** 2) + 1
