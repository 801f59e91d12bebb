"""Under which conditions a measurement was taken: clocks, power, heat, and what else the machine did meanwhile.

Two snapshots, before and after, of what Linux says in /proc and /sys and NVIDIA's library of its GPU. What a machine
does not tell is None. From the pair and from how much equal rounds differed follows whether the machine was noisy, and
what a reader has to be warned of. The root of the file system is an argument, so that trees recorded on other machines
can be read; cpufreq, thermal zones and the counters of a Jetson have been read from such trees only, never on the
hardware.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mmcompress.runtime.environment import ClocksMhz, Meanwhile, Noise, TemperatureC
from mmcompress.runtime.gpuclocks import GpuWatch, clock_warnings
from mmcompress.runtime.nvml import Gpu

ROOT = Path("/")
NOISY_SPREAD = 0.05
"""Rounds of one combination differ by this share in a noisy run."""
NOISY_FOREIGN = 0.10
"""Share of the processor's time that others took, above which a run without priority over them is noisy."""
NOISY_STEAL = 0.02
"""Share that the hypervisor gave to other machines; no priority helps against it."""
FALLEN_CLOCK = 0.9


@dataclass(frozen=True)
class Ticks:
    """Processor time since the start of the system, in clock ticks of /proc/stat."""

    total: int
    busy: int
    """Not idle: everybody's, and what the hypervisor took."""
    stolen: int


@dataclass(frozen=True)
class Snapshot:
    at_s: float
    own_s: float
    """Processor time of this process."""
    ticks: Ticks | None
    clocks_mhz: list[float]
    temperature_c: float | None
    load_average: float
    throttles: int | None


def snapshot(gpu: Gpu | None = None, root: Path = ROOT) -> Snapshot:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    heat = [value for value in (temperature_c(root), gpu.temperature_c() if gpu else None) if value is not None]
    return Snapshot(
        at_s=time.monotonic(),
        own_s=usage.ru_utime + usage.ru_stime,
        ticks=cpu_ticks(root),
        clocks_mhz=clocks_mhz(root),
        temperature_c=max(heat, default=None),
        load_average=psutil.getloadavg()[0],
        throttles=throttle_count(root),
    )


def cpu_ticks(root: Path = ROOT) -> Ticks | None:
    """The first line of /proc/stat: user nice system idle iowait irq softirq steal (proc(5)); guests are in user."""
    try:
        fields = [int(field) for field in (root / "proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    idle = sum(fields[3:5])
    return Ticks(sum(fields), sum(fields) - idle, fields[7] if len(fields) > 7 else 0)


def shares(before: Snapshot, after: Snapshot, cores: int) -> tuple[float | None, float | None]:
    """Of the processor's time between two snapshots: what other programs took, and what the hypervisor took."""
    if before.ticks is None or after.ticks is None or after.ticks.total <= before.ticks.total:
        return None, None
    total = after.ticks.total - before.ticks.total
    own = (after.own_s - before.own_s) / (cores * max(after.at_s - before.at_s, 1e-9))
    stolen = (after.ticks.stolen - before.ticks.stolen) / total
    return max(0.0, (after.ticks.busy - before.ticks.busy) / total - own - stolen), stolen


def clocks_mhz(root: Path = ROOT) -> list[float]:
    """Of each core, as cpufreq has it, else as /proc/cpuinfo has it; empty where neither does."""
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), key=str)
    if clocks_khz := [clock for file in files if (clock := _number(file)) is not None]:
        return [clock / 1000 for clock in clocks_khz]
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]


def governor(root: Path = ROOT) -> str | None:
    return _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def temperature_c(root: Path = ROOT) -> float | None:
    """The hottest sensor: thermal zones and hwmon give thousandths of a degree; zones that are off give nonsense."""
    files = [
        *(root / "sys/class/thermal").glob("thermal_zone*/temp"),
        *(root / "sys/class/hwmon").glob("*/temp*_input"),
    ]
    temperatures = [value / 1000 for file in files if (value := _number(file)) is not None]
    return max((value for value in temperatures if 0 < value < 150), default=None)


def power_mode(root: Path = ROOT) -> str | None:
    """A Jetson's nvpmodel by its name, or the platform profile of a PC."""
    status = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if status:
        named = re.search(rf"POWER_MODEL\s+ID={status[1]}\s+NAME=(\S+)", _text(root / "etc/nvpmodel.conf") or "")
        return f"nvpmodel {status[1]}" + (f" ({named[1]})" if named else "")
    return _text(root / "sys/firmware/acpi/platform_profile")


def throttle_count(root: Path = ROOT) -> int | None:
    """How often the machine slowed down for heat or power since its start; None where nothing counts it.

    Intel counts by core; a Jetson Orin counts over-current events of its rails (oc*_event_cnt).
    """
    files = [
        *(root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/corethrottle_count"),
        *(root / "sys/class/hwmon").glob("*/oc*_event_cnt"),
    ]
    counts = [count for file in files if (count := _number(file)) is not None]
    return int(sum(counts)) if counts else None


def throttled(before: Snapshot, after: Snapshot, gpu_reasons: Sequence[str]) -> bool | None:
    """Whether clocks were forced down meanwhile; None where nothing would tell."""
    if gpu_reasons:
        return True
    return None if before.throttles is None or after.throttles is None else after.throttles != before.throttles


def noise(spreads: Sequence[float], foreign: float | None, stolen: float | None, priority: bool) -> Noise:
    """The level is the median over combinations of how much their rounds differ."""
    level = sorted(spreads)[len(spreads) // 2] if spreads else 0.0
    reasons = []
    if level > NOISY_SPREAD:
        reasons.append(f"equal rounds differ by {level:.0%}")
    if foreign is not None and foreign > NOISY_FOREIGN and not priority:
        reasons.append(f"other programs took {foreign:.0%} of the processor")
    if stolen is not None and stolen > NOISY_STEAL:
        reasons.append(f"the hypervisor gave {stolen:.0%} of the processor to other machines")
    return Noise(level=level, noisy=bool(reasons), reason="; ".join(reasons) or None)


def warnings(
    before: Snapshot, after: Snapshot, heard: Noise, was_throttled: bool | None, gpu_reasons: Sequence[str]
) -> list[str]:
    """What a reader of the figures has to know, one sentence each."""
    sentences = []
    if heard.noisy:
        sentences.append(f"The machine was noisy: {heard.reason}. Ratios allow for that, single figures do not.")
    if was_throttled:
        why = ", ".join(gpu_reasons) or "heat or power"
        sentences.append(
            f"Clocks were forced down while this was measured ({why}): cool the device, or lower its clocks."
        )
    means = [sum(each) / len(each) for each in (before.clocks_mhz, after.clocks_mhz) if each]
    if len(means) == 2 and means[1] < FALLEN_CLOCK * means[0]:
        sentences.append(f"The clocks fell from {means[0]:.0f} to {means[1]:.0f} MHz while this was measured.")
    return sentences


@dataclass(frozen=True)
class Conditions:
    """What is recorded of a measurement beside its figures."""

    before: Snapshot
    after: Snapshot
    priority: bool
    """Whether the system let us run in the real-time class."""
    pinned_cores: tuple[int, ...] | None
    watch: GpuWatch = field(default_factory=GpuWatch)
    """What the GPU's clock did; apart from the cores, as among sixteen of them its fall would drown."""

    @property
    def slowdowns(self) -> list[str]:
        """Why the GPU held its clocks down."""
        return sorted(self.watch.slowdowns)

    @property
    def throttled(self) -> bool | None:
        return throttled(self.before, self.after, self.slowdowns)

    def meanwhile(self, spreads: Sequence[float], cores: int) -> Meanwhile:
        """What changes while one measures."""
        before, after = self.before, self.after
        foreign, stolen = shares(before, after, cores)
        heard = noise(spreads, foreign, stolen, self.priority)
        gpu = self.watch.seen()
        return Meanwhile(
            pinned_cores=self.pinned_cores,
            priority="real-time" if self.priority else "normal",
            clocks_mhz=ClocksMhz(before=tuple(before.clocks_mhz), after=tuple(after.clocks_mhz)),
            gpu_clocks_mhz=gpu,
            temperature_c=TemperatureC(before=before.temperature_c, after=after.temperature_c),
            load_average_before=before.load_average,
            load_average_after=after.load_average,
            others_share=foreign,
            stolen_share=stolen,
            noise=heard,
            warnings=(*warnings(before, after, heard, self.throttled, self.slowdowns), *clock_warnings(gpu)),
        )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
