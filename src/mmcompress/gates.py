"""Gates: limits that a report is held against, in a recipe or by `mmcompress check`; which figures have one, and how
it is written. `report/judging.py` judges them.

They are checked when the recipe is read, hours before the report is there: a misspelt metric is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from mmcompress import metrics
from mmcompress.document import LARGEST
from mmcompress.errors import MisspeltError
from mmcompress.frozen import Config

R10 = "i2t_r10"
HIGHER_IS_BETTER = frozenset(metrics.METRICS) - set(metrics.LOWER_IS_BETTER)
METRICS = frozenset(metrics.METRICS)
SIZES, LATENCY = frozenset(metrics.SIZES), frozenset(metrics.LATENCY)
ENGINES = metrics.ENGINES
PARTS = {
    "unseen": METRICS,
    "old_index": frozenset(metrics.RECALLS),
    "int8_against_fp32": frozenset(metrics.INT8_METRICS),
}
KNOWN = (
    METRICS
    | SIZES
    | LATENCY
    | frozenset(ENGINES)
    | {f"{part}.{name}" for part, names in PARTS.items() for name in names}
)
FALLING = HIGHER_IS_BETTER | {f"{part}.{name}" for part, names in PARTS.items() for name in names & HIGHER_IS_BETTER}
"""What can drop: the metrics that are better when higher."""

CHOOSING = frozenset({"row", "backend", "batch"})
"""What chooses the part of a report that is judged."""


class Gates(Config):
    """Limits on one row of a report; the last row, at batch 1, on its fastest backend, where nothing else is said."""

    max_drop: dict[str, float] = Field(default_factory=dict)
    """Largest loss that is accepted, METRIC=NUMBER: `i2t_r10=0.01` is one point of R@10 against the reference, as is a
    bare `0.01`."""
    max: dict[str, float] = Field(default_factory=dict)
    """Upper limits, METRIC=NUMBER: `p99_ms=5`."""
    min: dict[str, float] = Field(default_factory=dict)
    """Lower limits, METRIC=NUMBER: `top1=0.6`."""
    min_speedup: float | None = Field(default=None, gt=0, le=LARGEST)
    """Smallest ratio of median latencies: the reference's over the row's."""
    row: str | None = None
    """The row that is held against the limits; the last one if not given."""
    backend: str | None = None
    """The backend that latency gates are about; the fastest of the row if not given."""
    batch: int = Field(default=1, ge=1)
    """The batch size that latency gates are about."""
    strict: bool = False
    """Exit with 1 where a limit is not clearly met: also for a change past it whose interval includes no change."""

    @field_validator("max_drop", mode="before")
    @classmethod
    def _of_r10(cls, limits: object) -> object:
        """`0.01` -> `{"i2t_r10": 0.01}`: the R@10 of tables and headlines."""
        if isinstance(limits, int | float):
            return {R10: limits}
        return {name or R10: limit for name, limit in limits.items()} if isinstance(limits, Mapping) else limits

    @field_validator("max_drop", "max", "min")
    @classmethod
    def _known(cls, limits: dict[str, float], info: Any) -> dict[str, float]:
        known = FALLING if info.field_name == "max_drop" else KNOWN
        for name, limit in limits.items():
            if abs(limit) > LARGEST:
                raise ValueError(f"no figure reaches the limit of {limit:g} for {name!r}")
            if info.field_name == "max_drop" and limit < 0:
                raise ValueError(f"a drop of {limit:g} in {name!r} is a gain: give a limit with min")
            if info.field_name == "max_drop" and limit > 1:
                raise ValueError(f"nothing drops by {limit:g}, all of {name!r} is 1: one point is 0.01")
            if name in ENGINES and info.field_name != "max":
                raise ValueError(f"{name!r} is better when lower: give a limit with max")
            if name not in KNOWN:
                raise MisspeltError(f"there is no metric {name!r}", name, known)
            if name not in known:
                raise ValueError(f"{name!r} does not drop, it is better when lower: give a limit with max")
        return limits

    @property
    def count(self) -> int:
        return len(self.max_drop) + len(self.max) + len(self.min) + (self.min_speedup is not None)
