"""bench.json: how fast the delivered files are on one machine."""

from __future__ import annotations

from typing import Annotated

from mmcompress.config import Backend, Precision
from mmcompress.document import Amount, Document, Part, Rate, each_once
from mmcompress.measure.document import RUN, Ceilings, Latency, Speedup
from mmcompress.runtime.environment import Environment


class Run(Part):
    """Which graph on which backend an end of a ratio is."""

    row: str
    """Name of the artifact."""
    backend: Backend
    """The runtime."""
    precision: Precision
    """Of the graph."""


class _Ends(Part):
    numerator: Run
    """What is faster if the ratio is above 1."""
    denominator: Run
    """What it is compared with."""
    batch: Amount
    """Images of a call."""


class RunRatio(Speedup, _Ends):
    """How many times as fast the numerator is as the denominator, with one call at a time."""


class BenchRow(Part):
    """An artifact."""

    row: str
    """Its name."""
    latency: Annotated[tuple[Latency, ...], each_once(*RUN)]
    """Every backend, precision, batch, number of threads and of streams; empty where no backend runs it."""


class BenchEnvironment(Environment):
    """The machine, and how long it was measured."""

    gpu_power_limit: str | None
    """Watts that the GPU may take, with their unit; null without a GPU."""
    seconds: Rate
    """Time that each combination was measured, all rounds together."""
    rounds: Amount
    """Into which that time was divided."""


class BenchDocument(Document):
    """How fast every gathered artifact is here."""

    rows: Annotated[tuple[BenchRow, ...], each_once("row")]
    """In the order of the recipe; the first is the teacher."""
    ratios: Annotated[tuple[RunRatio, ...], each_once("numerator", "denominator", "batch")]
    """Pairs that a reader asks for: INT8 against FP32, each row against the one before it."""
    ceiling: Ceilings
    """Of each backend, precision and number of threads; empty where it was not asked for."""
    environment: BenchEnvironment
    """What it was measured on, and what the machine did meanwhile."""
