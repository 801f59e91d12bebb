"""costs.json and sizing.json: what work costs on a machine, and the student that was sized by it."""

from __future__ import annotations

from typing import Annotated

from mmcompress.compress.sizing.work import Family
from mmcompress.config import Backend, Precision
from mmcompress.document import Amount, CallMilliseconds, Count, Document, Milliseconds, Part, Rate, each_once
from mmcompress.runtime.environment import Machine

COSTS = "costs.json"
SIZING = "sizing.json"


class TimedTower(Part):
    """An image tower of random weights that was timed as a whole."""

    tower: str
    """Preset, side of the image, and shares of width and depth."""
    measured_ms: CallMilliseconds
    """Of one image."""
    predicted_ms: Milliseconds
    """Composed of what the other towers' work costs, this one left out."""


class FamilyCosts(Part):
    """One family of towers."""

    ns_of: dict[str, Milliseconds]
    """Nanoseconds of a unit of each kind of work: of a multiply-accumulate, a number written, a call."""
    towers: Annotated[tuple[TimedTower, ...], each_once("tower")]
    """What they come from."""


class CostsDocument(Document):
    """What the work of image towers costs on one machine."""

    backend: Backend
    """The runtime."""
    precision: Precision
    """Of the graphs."""
    threads: Amount
    """Of that runtime."""
    image_size: Amount
    """Side of the largest images of the towers, in pixels."""
    environment: Machine
    """What it was measured on."""
    families: dict[Family, FamilyCosts]
    """Transformers and convolutional towers apart."""


class SizedRow(Part):
    """A student that was weighed."""

    student: str
    """Preset, side of the image, and shares of width and depth."""
    family: Family
    """Of its image tower."""
    macs: Count
    """Multiply-accumulates of one image."""
    params: Count
    """Of the image tower."""
    capacity: Rate
    """What students are ranked by."""
    predicted_ms: Milliseconds
    """Composed of what its work costs."""
    measured_ms: CallMilliseconds | None
    """Of its whole graph with random weights; null where the costs are another machine's."""
    fits: bool
    """Whether it is within what was asked for, measured where it was measured."""


class SizingDocument(Document):
    """Which student a latency has room for, and what else was weighed."""

    asked_ms: CallMilliseconds
    """The longest time of one image."""
    backend: Backend
    """The runtime."""
    precision: Precision
    """Of the graphs."""
    threads: Amount
    """Of that runtime."""
    environment: Machine
    """The machine of the costs."""
    why: str
    """The choice in a sentence."""
    rows: Annotated[tuple[SizedRow, ...], each_once("student")]
    """The choice, and its runners-up by falling capacity."""
