"""Energy of an inference, where the machine can tell it: joules before and after a stretch of calls.

There are counters of joules (NVML's, and RAPL's of Intel and AMD processors) and sensors of power, which are sampled by
a thread and integrated over time (INA3221 and INA238 of a Jetson's board in sysfs; else NVIDIA's `tegrastats`). All
count a whole package or board and not a process, idle power included, so a figure is of the device while it infers, and
is meaningful on a machine that does nothing else. Counters are updated every few milliseconds, which is why energy has
its own stretch of calls and is not read inside the interleaved visits. Where there is no source the energy is None.

The tests read trees in the layout of such machines; none of this has run on a Jetson, on a GPU, or on a processor that
shows RAPL.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmcompress.runtime.nvml import Gpu

SAMPLE_S = 0.02
_RAIL_MW = re.compile(r"(?:^|\s)(?P<rail>[A-Z][A-Z0-9_]+) (?P<now>\d+)(?:mW)?/(?P<mean>\d+)(?:mW)?(?=\s|$)")
_WHOLE_BOARD = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed all the others, by board; where none is there, the rails are added up."""


class Meter(Protocol):
    """Something that tells how many joules a piece of work took."""

    @property
    def source(self) -> str: ...
    def joules(self, work: Callable[[], None]) -> float | None: ...


def energy_mj(meter: Meter | None, call: Callable[[], object], batch: int, seconds: float) -> float | None:
    """Millijoules an input of a batch, over `seconds` of calls; None without a meter."""
    if meter is None:
        return None
    calls = 0

    def work() -> None:
        nonlocal calls
        end = time.monotonic() + seconds
        while not calls or time.monotonic() < end:
            call()
            calls += 1

    spent = meter.joules(work)
    return None if spent is None or spent <= 0 else 1000 * spent / (calls * batch)


def find_meter(gpu: Gpu | None, on_gpu: bool, root: Path = Path("/")) -> Meter | None:
    """The best source for what runs on the GPU, or on the processor; a Jetson's board is both."""
    if on_gpu and gpu is not None and gpu.energy_j() is not None:
        return Counter("nvml", gpu.energy_j)
    if rails := ina_rails(root):
        return Sampler("ina", lambda: ina_watts(rails))
    if shutil.which("tegrastats", path=str(root / "usr/bin")):
        return Tegrastats(str(root / "usr/bin/tegrastats"))
    zones = rapl_zones(root)
    return Rapl(zones) if zones and not on_gpu else None


@dataclass(frozen=True)
class Counter:
    """A counter of joules that never falls."""

    source: str
    read: Callable[[], float | None]

    def joules(self, work: Callable[[], None]) -> float | None:
        before = self.read()
        work()
        after = self.read()
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class Rapl:
    """The packages' counters of microjoules, each of which starts again at 0 beyond its range."""

    zones: Sequence[Path]
    source: str = "rapl"

    def joules(self, work: Callable[[], None]) -> float | None:
        before = self._read()
        work()
        after = self._read()
        if before is None or after is None:
            return None
        return sum(wrapped(*pair) for pair in zip(before, after, self._ranges(), strict=True)) / 1e6

    def _read(self) -> list[int] | None:
        try:
            return [int((zone / "energy_uj").read_text()) for zone in self.zones]
        except (OSError, ValueError):
            return None

    def _ranges(self) -> list[int]:
        return [int((zone / "max_energy_range_uj").read_text()) for zone in self.zones]


def wrapped(before: int, after: int, largest: int) -> int:
    """The difference of a counter that goes from `largest` to 0; once at most, which takes minutes under full load."""
    return after - before if after >= before else after - before + largest + 1


def rapl_zones(root: Path = Path("/")) -> list[Path]:
    """The packages whose counters may be read; often only root may."""
    zones = []
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        try:
            package = (zone / "name").read_text().startswith("package")
            int((zone / "energy_uj").read_text())
            int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if package:
            zones.append(zone)
    return zones


@dataclass(frozen=True)
class Sampler:
    """Power that is read again and again while the work runs, and integrated by trapezoids."""

    source: str
    watts: Callable[[], float | None]

    def joules(self, work: Callable[[], None]) -> float | None:
        samples: list[tuple[float, float]] = []
        done = threading.Event()

        def sample() -> None:
            while True:
                if (power := self.watts()) is not None:
                    samples.append((time.monotonic(), power))
                if done.wait(SAMPLE_S):
                    return

        thread = threading.Thread(target=sample, daemon=True)
        start = time.monotonic()
        thread.start()
        work()
        end = time.monotonic()
        done.set()
        thread.join()
        return integrated(samples, start, end)


def integrated(samples: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float | None:
    """(seconds, watts) -> joules from start to end; the first and the last sample hold up to the ends."""
    if not samples:
        return None
    points = [(start_s, samples[0][1]), *samples, (end_s, samples[-1][1])]
    points = [(min(max(at, start_s), end_s), power) for at, power in points]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


Rail = tuple[Path, Path]
"""Files of a rail's millivolts and milliamperes."""


def ina_rails(root: Path = Path("/")) -> list[Rail]:
    """The rails of the monitors on a Jetson's board: the one that feeds all others, or else all of them.

    An INA3221 has three channels (in1 to in3); what it calls in4 to in7 are shunts and their sum. An INA238, which a
    Thor has in front of module and carrier, has one (in1; in0 is its shunt) and no label.
    """
    rails: dict[str, Rail] = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for channel in (1, 2, 3):
            try:
                chip = (monitor / "name").read_text().strip()
                if chip not in ("ina3221", "ina238") or (chip == "ina238" and channel > 1):
                    break
                label = "VIN" if chip == "ina238" else (monitor / f"in{channel}_label").read_text().strip()
                files = (monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
                for file in files:
                    float(file.read_text())
            except (OSError, ValueError):
                continue
            if label != "NC":
                rails[label] = files
    whole = [rails[label] for label in _WHOLE_BOARD if label in rails]
    return whole[:1] or list(rails.values())


def ina_watts(rails: Sequence[Rail]) -> float | None:
    try:
        return sum(float(mv.read_text()) * float(ma.read_text()) for mv, ma in rails) / 1e6
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Tegrastats:
    """NVIDIA's own reader of the board's sensors, where they are not readable in sysfs."""

    command: str
    source: str = "tegrastats"

    def joules(self, work: Callable[[], None]) -> float | None:
        process = subprocess.Popen([self.command, "--interval", "50"], stdout=subprocess.PIPE, text=True)
        start = time.monotonic()
        try:
            work()
            seconds = time.monotonic() - start
        finally:
            process.terminate()
            lines = process.communicate()[0].splitlines()
        watts = [power for line in lines if (power := tegrastats_watts(line)) is not None]
        return seconds * sum(watts) / len(watts) if watts else None


def tegrastats_watts(line: str) -> float | None:
    """Of `… VDD_IN 4884mW/4884mW VDD_CPU_GPU_CV 1040mW/1040mW …`: the present power of the board."""
    rails = {match["rail"]: int(match["now"]) / 1000 for match in _RAIL_MW.finditer(line)}
    whole = [rails[rail] for rail in _WHOLE_BOARD if rail in rails]
    return whole[0] if whole else sum(rails.values()) if rails else None
