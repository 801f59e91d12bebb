"""A GPU's clock while it works: looked at once a round, right behind the calls, since an idle GPU lowers it.

So what a GPU says before a measurement tells nothing. What is kept of the looks is the lowest and the usual clock,
beside the highest that the GPU may have: a card whose clocks are locked at half, or a Jetson in a low power mode, is as
steady as any. NVML tells of cards, devfreq of Jetsons. Neither has been read on the hardware.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from mmcompress.runtime.environment import GpuClocksMhz
from mmcompress.runtime.nvml import Gpu, open_gpu

UNSTEADY = 0.9
"""Lowest over highest clock that was seen, below which single figures of one run are of two speeds."""
SLOW = 0.7
"""Usual clock over the highest possible, below which a reader has to know it. Cards under load are near that, unless
power caps them, which they tell (`nvml.REASONS`)."""


@dataclass
class GpuWatch:
    """What was seen of a GPU; without one and without a root nothing is looked at."""

    gpu: Gpu | None = None
    root: Path | None = None
    """Of the files of a Jetson."""
    clocks_mhz: list[float] = field(default_factory=list)
    slowdowns: set[str] = field(default_factory=set)
    """Why the GPU held its clocks down."""

    def look(self) -> None:
        """Note clock and slowdowns, while the GPU still has its clocks up."""
        clock = self.gpu.clock_mhz() if self.gpu else self._of_jetson("cur_freq")
        self.clocks_mhz += [] if clock is None else [clock]
        self.slowdowns.update(self.gpu.slowdowns() if self.gpu else ())

    def seen(self) -> GpuClocksMhz | None:
        """In a document's words; None where nothing tells."""
        if not self.clocks_mhz:
            return None
        possible = self.gpu.highest_clock_mhz() if self.gpu else self._of_jetson("max_freq")
        return GpuClocksMhz(
            lowest=min(self.clocks_mhz),
            usual=median(self.clocks_mhz),
            highest=max(self.clocks_mhz),
            possible=possible,
        )

    def _of_jetson(self, file: str) -> float | None:
        return None if self.root is None else jetson_mhz(self.root, file)


def watch_gpu(engines: bool) -> GpuWatch:
    """Of the GPU that engines run on; nothing is watched where only CPUs run."""
    return GpuWatch(open_gpu(), Path("/")) if engines else GpuWatch()


def clock_warnings(seen: GpuClocksMhz | None) -> list[str]:
    """What a reader of the figures has to know, one sentence each."""
    sentences = []
    if seen is not None and seen.lowest < UNSTEADY * seen.highest:
        sentences.append(
            f"The GPU's clock was between {seen.lowest:.0f} and {seen.highest:.0f} MHz while this was measured."
        )
    if seen is not None and seen.possible is not None and seen.usual < SLOW * seen.possible:
        sentences.append(
            f"The GPU ran at {seen.usual:.0f} of {seen.possible:.0f} MHz: locked clocks, a cap or a power mode hold it."
        )
    return sentences


def jetson_mhz(root: Path, file: str) -> float | None:
    """`cur_freq` or `max_freq` of a Jetson's GPU, as devfreq has them in Hz; the folder is called for it
    (`17000000.gpu`, `17000000.ga10b`)."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|ga10b|gv11b", folder.name):
            try:
                return float((folder / file).read_text()) / 1e6
            except (OSError, ValueError):
                continue
    return None
