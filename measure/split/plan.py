"""Where to cut: the block behind which the two devices and the line between them take least (Neurosurgeon).

Kang et al. 2017, "Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge", section 5: the latency
of a cut is what the first device takes up to it, what the line takes for the activation there, and what the second one
takes for the rest; all cuts are compared, and among them those that do not cut. There a regression predicts each layer;
here the halves themselves were measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.measure.split.document import DeviceTimes, SplitOption, Wire

_RATE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kMG])bps\s*$", re.IGNORECASE)
_TIMES = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Line:
    """Between the devices."""

    bits_per_s: float
    rtt_ms: float = 0.0
    request_ms: float = 0.0
    """What a request takes beside: two messages, and the process at each end that wakes up for one."""

    def ms(self, size: int) -> float:
        """For so many bytes there and back."""
        return self.rtt_ms + self.request_ms + 8e3 * size / self.bits_per_s


@dataclass(frozen=True)
class Payload:
    """What is sent for one image."""

    pixels: int
    """Bytes of the image that the model sees, where everything is on the second device."""
    activations: Mapping[int, int]
    """Bytes behind each number of blocks."""
    answer: int
    """Bytes of the embedding that comes back."""


def bits_per_s(said: str) -> float:
    """`20Mbps` -> 2e7. Raises UsageError for anything else."""
    match = _RATE.match(said)
    if match is None or not float(match[1]) > 0:
        raise UsageError(f"{said!r} is no bandwidth", "say bits a second: --bandwidth 20Mbps, 500kbps or 1Gbps")
    return float(match[1]) * _TIMES[match[2].lower()]


def options(first: DeviceTimes, second: DeviceTimes, payload: Payload, line: Line, wire: Wire) -> list[SplitOption]:
    """Every way, in the order of blocks."""
    check_together(first, second)
    found = []
    for place, behind in enumerate(first.behind):
        whole = behind in (first.behind[0], first.behind[-1])
        size = payload.pixels if behind == 0 else payload.activations.get(behind, 0)
        sent = 0 if behind == first.behind[-1] else size + payload.answer
        link = line.ms(sent) if sent else 0.0
        times = (first.first_ms[place], link, second.second_ms[place])
        found.append(
            SplitOption(
                behind=behind,
                wire=None if whole else wire,
                first_ms=times[0],
                sent_bytes=sent,
                link_ms=link,
                second_ms=times[2],
                total_ms=sum(times),
            )
        )
    return found


def best(ways: Sequence[SplitOption]) -> SplitOption:
    """The fastest; of equal ones that with fewer blocks on the first device."""
    return min(ways, key=lambda way: way.total_ms)


def best_cut(ways: Sequence[SplitOption]) -> SplitOption:
    """The fastest that splits."""
    return best([way for way in ways if way.wire is not None])


def check_together(first: DeviceTimes, second: DeviceTimes) -> None:
    """Raise CorruptInputError where the tables are not of one graph."""
    if first.graph != second.graph or first.behind != second.behind:
        raise CorruptInputError(
            f"the times of {first.device} are of the graph {first.graph[:12]}…, those of {second.device} of"
            f" {second.graph[:12]}…",
            "measure both on the same artifact: mmcompress split ARTIFACT --device NAME=here --out DIR",
        )
