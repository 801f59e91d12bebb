"""What several documents of measurements are made of: ratios, latencies, ceilings.

Where a class has two bases, the fields of the last one come first in the file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator
from typing_extensions import Self

from mmcompress.config import Backend, Precision
from mmcompress.document import (
    Amount,
    CallMilliseconds,
    Count,
    Interval,
    Milliseconds,
    Part,
    Rate,
    Ratio,
    check_bins,
    each_once,
)
from mmcompress.runtime.environment import Environment

Activations = Literal["float", "signed", "unsigned"]


class Speedup(Part):
    """How many times as fast one thing is as another, from rounds that were measured together."""

    speedup: Ratio
    """Time of what is compared with over time of this, above 0; below 1 this is slower."""
    ci95: Interval
    """95% interval of the ratio."""
    significant: bool
    """Whether the interval leaves out 1."""


class TimeHistogram(Part):
    """Calls by the time that they took."""

    edges_ms: tuple[Milliseconds, ...]
    """Edges of the bins in ms, one more than counts; the last bin counts slower calls too."""
    counts: tuple[Count, ...]
    """Calls of each bin."""

    @model_validator(mode="after")
    def _bins(self) -> Self:
        check_bins(self.edges_ms, self.counts)
        return self


class Pipeline(Part):
    """Making a batch out of photos, alone and with the inference after it, in one thread."""

    input_ms: CallMilliseconds
    """Median ms of decoding, resizing and normalizing a batch."""
    together_ms: CallMilliseconds
    """Median ms of the same and of the inference."""
    throughput_ips: Rate
    """Images a second of both together."""


class Measurement(Part):
    """What is measured: an image graph on a backend, and how it is called."""

    backend: Backend
    """The runtime."""
    device: str
    """What it ran on: the processor's or the GPU's name."""
    precision: Precision
    """Of the graph."""
    activations: Activations
    """Integers of the graph's quantized activations; `float` where it has none."""
    batch: Amount
    """Images of a call."""
    threads: Amount | None
    """Of the runtime, all streams together; null on a GPU."""
    streams: Amount
    """Calls at the same time, each of a session of its own."""


RUN = tuple(Measurement.model_fields)
"""What tells latencies of one artifact apart."""


class CallTimes(Part):
    """How long the calls took."""

    samples: Amount
    """Calls that were counted."""
    p50_ms: CallMilliseconds
    """Median time of a call in ms."""
    p90_ms: CallMilliseconds
    """90th percentile of the time of a call in ms."""
    p95_ms: CallMilliseconds
    """95th percentile of the time of a call in ms."""
    p99_ms: CallMilliseconds
    """99th percentile of the time of a call in ms."""
    mean_ms: CallMilliseconds
    """Mean time of a call in ms."""
    cv: Rate
    """Standard deviation of the time of a call over its mean, from 0."""
    throughput_ips: Rate
    """Images a second, at the mean time or, with several streams, over the whole time."""
    histogram: TimeHistogram
    """Calls by their time."""


class CallPhases(Part):
    """Where calls on a GPU spend their time, medians by events, comparable with `trtexec`."""

    enqueue_ms: Milliseconds
    """Ms that the host takes to enqueue the engine, or to launch its graph: Enqueue Time."""
    copy_in_ms: Milliseconds
    """Ms of copying inputs to the GPU: H2D Latency."""
    gpu_ms: Milliseconds
    """Ms of the engine: GPU Compute Time."""
    copy_out_ms: Milliseconds
    """Ms of copying outputs back: D2H Latency."""


class Latency(CallTimes, Measurement):
    """One image graph on one backend, with one batch size, number of threads and number of streams."""

    load_ms: CallMilliseconds | None
    """Median ms of opening a session; null with several streams."""
    first_ms: CallMilliseconds | None
    """Median ms of the first call of a session; null with several streams."""
    rounds_ms: tuple[CallMilliseconds, ...]
    """Median ms of the calls of each round: what intervals are taken over."""
    peak_bytes: Count | None
    """Most memory of a process that only runs this graph; null with several streams and where it cannot be read."""
    device_peak_bytes: Count | None
    """The same of the GPU's memory; null on a CPU, with several streams and where it cannot be read."""
    energy_mj: Rate | None
    """Millijoules an image, of the whole package or board; null where no sensor can be read."""
    energy_source: str | None
    """`nvml`, `ina`, `tegrastats` or `rapl`; null where no sensor can be read."""
    ceiling_share: Rate | None
    """Multiply-accumulates a second over those of the ceiling, from 0; null where there is no ceiling."""
    pipeline: Pipeline | None
    """With the making of the input; null with several streams, or where it was not asked for."""
    phases: CallPhases | None = None
    """Of calls on a GPU, one at a time; null on a CPU and with several streams."""
    noisy: bool
    """Whether the machine, or this measurement's own rounds, were too noisy for single figures."""
    throttled: bool | None
    """Whether clocks were forced down meanwhile; null where nothing tells."""


class Ceiling(Part):
    """Multiply-accumulates a second of one large matrix product on one backend."""

    backend: Backend
    """The runtime."""
    device: str
    """The processor's name."""
    precision: Precision
    """Of the product."""
    threads: Amount
    """Of the runtime."""
    gmacs_per_s: Rate
    """Billions of multiply-accumulates a second, of the fastest call of the fastest shape."""
    shape: tuple[Amount, Amount, Amount]
    """Rows, depth and columns of that product."""


Ceilings = Annotated[tuple[Ceiling, ...], each_once("backend", "device", "precision", "threads")]


class SanityCheck(Part):
    """One check of the FP32 baseline's embeddings."""

    check: str
    """Its name."""
    passed: bool
    """Whether the value is within the limit."""
    value: float
    """What was found."""
    limit: float
    """What it is held against."""
    says: str
    """What the value is."""


class RaceEnvironment(Environment):
    """Of a measurement that ends when a ratio is known well enough."""

    rounds: Amount
    """Rounds that were measured."""
