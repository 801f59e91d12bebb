"""What `mmcompress compare` says of two calibrations. Apart from what finds it, which needs the weights' reader."""

from __future__ import annotations

from mmcompress.document import Document, Part
from mmcompress.int8 import Range

Drifts = dict[str, dict[str, float]]
"""Mean of 1 - cosine by kind of activations and tower."""


class RangePair(Part):
    """The ranges of one tensor in two calibrations."""

    module: str
    """The Linear or the operand of attention that reads it."""
    a: Range | None
    """In the first; null where it has none."""
    b: Range | None
    """In the second; null where it has none."""
    methods: tuple[str | None, str | None]
    """How each was found; null where the run does not say."""
    ratio: float | None
    """How many times as long the second's step is where activations are unsigned; null where one has no range."""


class CalibrationComparison(Document):
    """What `mmcompress compare --json` prints of two quantized checkpoints."""

    a: str
    """Path of the first."""
    b: str
    """Path of the second."""
    ranges: tuple[RangePair, ...]
    """Those that differ most first."""
    drift: tuple[Drifts | None, Drifts | None]
    """Of each calibration; null where the run does not say."""
