"""split.json: where an image tower was cut, why there, and times.json: what its halves cost on one device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator
from typing_extensions import Self

from mmcompress.document import Amount, CallMilliseconds, Count, Document, Milliseconds, Part, Rate, Share, each_once

Wire = Literal["fp16", "int8"]
"""What activations are between the devices."""


class DeviceTimes(Document):
    """Of one device: each half of one image graph at batch 1, behind each block that may be the last of the first."""

    graph: str
    """SHA-256 of the whole graph's file."""
    device: str
    """The processor."""
    backend: str
    """The runtime."""
    threads: Amount
    """Of the runtime."""
    behind: Annotated[tuple[Count, ...], each_once()]
    """Blocks of the first half, from 0, where everything is in the second, to all of them."""
    first_ms: tuple[Milliseconds, ...]
    """Median of the first half."""
    second_ms: tuple[Milliseconds, ...]
    """Median of the second half."""

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not len(self.behind) == len(self.first_ms) == len(self.second_ms):
            counts = f"{len(self.behind)}, {len(self.first_ms)} and {len(self.second_ms)}"
            raise ValueError(f"expected as many first_ms and second_ms as behind, got {counts}")
        return self


class SplitOption(Part):
    """One way to share the work, as it is predicted."""

    behind: Count
    """Blocks on the first device: 0 sends pixels, all of them sends nothing."""
    wire: Wire | None
    """What is sent of activations; null where there are none."""
    first_ms: Milliseconds
    """On the first device."""
    sent_bytes: Count
    """There and back."""
    link_ms: Milliseconds
    """On the line, with its round trip and what a request takes beside."""
    second_ms: Milliseconds
    """On the second device."""
    total_ms: Milliseconds
    """The sum, of one image at a time."""


class SplitDocument(Document):
    """What was chosen."""

    devices: dict[str, str]
    """Name and processor of the first and of the second."""
    bandwidth_mbps: Rate
    """Of the line, in both directions."""
    rtt_ms: Milliseconds
    """Of its round trip, beside what the bytes take."""
    request_ms: Milliseconds
    """What a request takes beside both, measured between two processes on this machine: messages and waking up."""
    best: SplitOption
    """The fastest of all."""
    cut: SplitOption
    """What the two graphs are: the best, or, where it is best not to split, the fastest that does."""
    splits: bool
    """Whether splitting is best."""
    options: Annotated[tuple[SplitOption, ...], each_once("behind", "wire")]
    """All of them, in the order of blocks."""
    int8_flips: Share | None
    """Share of images with another best caption where INT8 is sent; null where it was not tried."""
    measured_ms: CallMilliseconds | None
    """Median of the cut over two processes on this machine and a line of that bandwidth; null where it was not run."""
