"""What INT8 may cost against its own FP32, and whether it does: one budget for quantize, qat and verdict.

Two costs, both of what a user sees: hits that are lost and answers that change. What INT8 gains elsewhere by chance
offsets neither. A limit that is None is none; a cost that is NaN breaks any limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmcompress.config import BudgetConfig
from mmcompress.formats import percent


@dataclass(frozen=True)
class Cost:
    """What a model costs against FP32 on some pairs."""

    r10_lost: float
    """Share of the queries, images and texts alike, whose match was among the ten best and is not any more."""
    flips: float
    """Share of the images whose best text is another one."""


@dataclass(frozen=True)
class Budget:
    """The largest cost that is accepted."""

    max_drop: float | None
    """Of `r10_lost`; None for any."""
    max_flips: float | None
    """Of `flips`; None for any."""

    @staticmethod
    def of(config: BudgetConfig) -> Budget:
        return Budget(config.max_drop, config.max_flips)

    @property
    def limited(self) -> bool:
        return self.max_drop is not None or self.max_flips is not None

    def holds(self, cost: Cost) -> bool:
        return not self.broken(cost)

    def used(self, cost: Cost) -> float:
        """How much of the tighter limit a cost takes: it holds up to 1."""
        parts = ((cost.r10_lost, self.max_drop), (cost.flips, self.max_flips))
        shares = [
            value / limit if limit else (0.0 if value == 0 else math.inf) for value, limit in parts if limit is not None
        ]
        return math.inf if any(math.isnan(share) for share in shares) else max(shares, default=0.0)

    def broken(self, cost: Cost) -> list[str]:
        """In words, each limit that a cost passes."""
        phrases = (
            ("loses {} of the R@10 hits", cost.r10_lost, self.max_drop),
            ("answers {} of the images otherwise", cost.flips, self.max_flips),
        )
        return [
            f"it {phrase.format(percent(value, 2))}, and {percent(limit, 2)} were allowed"
            for phrase, value, limit in phrases
            if limit is not None and not value <= limit
        ]

    def told(self, cost: Cost) -> str:
        """In words, a cost beside its limits."""
        limits = ["any" if limit is None else percent(limit, 2) for limit in (self.max_drop, self.max_flips)]
        lost, flips = percent(cost.r10_lost, 2), percent(cost.flips, 2)
        hits = f"loses {lost} of the R@10 hits ({limits[0]} were allowed)"
        return f"{hits} and answers {flips} of the images otherwise ({limits[1]} were allowed)"
