"""What `mmcompress compare --json` prints: how many times as fast B is as A."""

from __future__ import annotations

from typing import Literal

from mmcompress.document import Document, Part
from mmcompress.measure.document import Ceiling, Latency, RaceEnvironment, Speedup


class _OfRow(Part):
    row: str
    """Name of the artifact."""


class RowLatency(Latency, _OfRow):
    """What was measured of one side."""


class _Sides(Part):
    a: RowLatency
    """The one that is compared with."""
    b: RowLatency
    """The one that is faster if the ratio is above 1."""
    batch: int
    """Images of a call."""


class Comparison(Speedup, _Sides):
    """How many times as fast as A the B is."""


class ComparisonDocument(Document):
    """Two artifacts that were measured together, or what two reports have in common."""

    measured: Literal["here", "before"]
    """`here` of artifacts, which were interleaved; `before` of two reports, whose runs know nothing of each other."""
    a: str
    """Path of the first."""
    b: str
    """Path of the second."""
    comparisons: tuple[Comparison, ...]
    """One of artifacts; of reports, one for every measurement that both have."""
    ceiling: tuple[Ceiling, ...]
    """Of the backends that took part; empty of reports."""
    notes: tuple[str, ...]
    """What a reader of the ratios has to know."""
    environment: RaceEnvironment | None
    """What it was measured on; null of reports, which have their own."""
