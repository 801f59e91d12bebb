"""Gates: limits that a report is held against, in a recipe or by `mmcompress check`; which figures have one, and how
it is written. `report/judging.py` judges them.

They are checked when the recipe is read, hours before the report is there: a misspelt metric is told at once.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from mmcompress.architecture import Config
from mmcompress.errors import suggestion

HIGHER_IS_BETTER = frozenset(
    {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    | {"top1", "top5", "cosine_mean", "cosine_p01", "cosine_worst", "text_cosine_mean", "text_cosine_p01"}
    | {"rank_correlation", "margin_mean", "mean_per_class_recall"}
)
METRICS = HIGHER_IS_BETTER | {"flip_rate", "flips_gained", "flips_lost", "mcnemar_p", "ece"}
SIZES = frozenset({"params", "macs", "bytes"})
SPEEDS = frozenset({"throughput_ips", "ceiling_share"})
LATENCY = SPEEDS | {
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "cv", "load_ms", "first_ms"),
    *("peak_bytes", "device_peak_bytes", "energy_mj"),
}
PARTS = {
    "unseen": METRICS,
    "old_index": frozenset(name for name in METRICS if "_r" in name[:5]),
    "int8_against_fp32": frozenset({"cosine_mean", "cosine_p01", "text_cosine_mean", "flip_rate", "r10_drop"}),
}
KNOWN = METRICS | SIZES | LATENCY | {f"{part}.{name}" for part, names in PARTS.items() for name in names}
FALLING = HIGHER_IS_BETTER | {f"{part}.{name}" for part, names in PARTS.items() for name in names & HIGHER_IS_BETTER}
"""What can drop: the metrics that are better when higher."""


class Gates(Config):
    """Limits on one row of a report; the last row, at batch 1, on its fastest backend, where nothing else is said."""

    max_drop: dict[str, float] = Field(default_factory=dict)
    """Largest loss of a metric, in its own unit: `i2t_r10 = 0.01` is one point of R@10 against the reference."""
    max: dict[str, float] = Field(default_factory=dict)
    """Upper limits: `p99_ms = 5`."""
    min: dict[str, float] = Field(default_factory=dict)
    """Lower limits: `top1 = 0.6`."""
    min_speedup: float | None = Field(default=None, gt=0)
    """Smallest ratio of median latencies: the reference's over the row's."""
    row: str | None = None
    """The row that is held against the limits; the last one if not given."""
    backend: str | None = None
    """The backend that latency gates are about; the fastest of the row if not given."""
    batch: int = Field(default=1, ge=1)
    """The batch size that latency gates are about."""
    strict: bool = False
    """Let a change past its limit fail even where its interval includes no change."""

    @field_validator("max_drop", "max", "min")
    @classmethod
    def _known(cls, limits: dict[str, float], info: Any) -> dict[str, float]:
        known = FALLING if info.field_name == "max_drop" else KNOWN
        for name in limits:
            if name not in KNOWN:
                raise ValueError(f"there is no metric {name!r}; {suggestion(name, known)}")
            if name not in known:
                raise ValueError(f"{name!r} does not drop, it is better when lower: give a limit with max")
        return limits

    @property
    def count(self) -> int:
        return len(self.max_drop) + len(self.max) + len(self.min) + (self.min_speedup is not None)
