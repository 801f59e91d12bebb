"""bench.json: how fast the delivered files are on one machine."""

from __future__ import annotations

from mmcompress.config import Backend, Precision
from mmcompress.document import Count, Document, Part, Rate
from mmcompress.measure.document import Ceiling, Latency, Speedup
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
    batch: Count
    """Images of a call."""


class RunRatio(Speedup, _Ends):
    """How many times as fast the numerator is as the denominator, with one call at a time."""


class BenchRow(Part):
    """An artifact."""

    row: str
    """Its name."""
    latency: tuple[Latency, ...]
    """Every backend, precision, batch, number of threads and of streams; empty where no backend runs it."""


class BenchEnvironment(Environment):
    """The machine, and how long it was measured."""

    gpu_power_limit: str | None
    """Watts that the GPU may take, with their unit; null without a GPU."""
    seconds: Rate
    """Time that each combination was measured, all rounds together."""
    rounds: Count
    """Into which that time was divided."""


class BenchDocument(Document):
    """How fast every gathered artifact is here."""

    rows: tuple[BenchRow, ...]
    """In the order of the recipe; the first is the teacher."""
    ratios: tuple[RunRatio, ...]
    """Pairs that a reader asks for: INT8 against FP32, each row against the one before it."""
    ceiling: tuple[Ceiling, ...]
    """Of each backend, precision and number of threads; empty where it was not asked for."""
    environment: BenchEnvironment
    """What it was measured on, and what the machine did meanwhile."""
