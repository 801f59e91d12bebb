"""The part of a document that says what a measurement was taken on, and what the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mmcompress.document import Count, Part, Rate, Share

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numpy")
"""Fields with the version of a package; what is not installed is not written."""


class ClocksMhz(Part):
    """Of each core; empty where nothing tells."""

    before: tuple[Rate, ...]
    """MHz of each, before the first measurement."""
    after: tuple[Rate, ...]
    """MHz of each, after the last measurement."""


class GpuClocksMhz(Part):
    """Of the GPU that ran engines, looked at once a round, right behind the calls."""

    lowest: Rate
    """MHz that were seen."""
    usual: Rate
    """Their median, MHz."""
    highest: Rate
    """MHz that were seen."""
    possible: Rate | None
    """MHz that the GPU may have at most; null where nothing tells."""


class TemperatureC(Part):
    """Of the hottest sensor."""

    before: float | None
    """Degrees Celsius before the first measurement; null where no sensor can be read."""
    after: float | None
    """Degrees Celsius after the last measurement; null where no sensor can be read."""


class Noise(Part):
    """How far equal rounds differed, and what disturbed them."""

    level: Rate
    """Median over all combinations of the spread of their rounds, a share of the median, from 0."""
    noisy: bool
    """Whether single figures are not to be trusted."""
    reason: str | None
    """Why, in words; null where it was quiet."""


class Machine(Part):
    """What figures were taken on."""

    python: str
    """Version of Python."""
    platform: str
    """System, kernel, architecture and C library."""
    mmcompress: str
    """Version of mmcompress."""
    torch: str | None = None
    """Version of the package; left out where it is not installed."""
    transformers: str | None = None
    """Version of the package; left out where it is not installed."""
    onnx: str | None = None
    """Version of the package; left out where it is not installed."""
    onnxruntime: str | None = None
    """Version of the package; left out where it is not installed."""
    openvino: str | None = None
    """Version of the package; left out where it is not installed."""
    tensorrt: str | None = None
    """Version of the package; left out where it is not installed."""
    tensorrt_rtx: str | None = Field(default=None, alias="tensorrt-rtx-cu12")
    """Version of the package; left out where it is not installed."""
    numpy: str | None = None
    """Version of the package; left out where it is not installed."""
    cpu: str
    """Model of the processor."""
    cores: Count
    """Cores that the process may use, by its affinity and its container's quota; from 1."""
    governor: str | None
    """Clock policy of the first core, `performance` say; null where there is no cpufreq."""
    power_mode: str | None
    """A Jetson's nvpmodel or a PC's platform profile; null where neither is."""
    load_average: Rate
    """Of the last minute when the machine was described, processes, from 0."""
    memory_bytes: Count
    """Memory of the machine, or as much of it as the container may use."""

    @model_serializer(mode="wrap")
    def _without_absent_packages(self, serialize: SerializerFunctionWrapHandler) -> Mapping[str, Any]:
        aliases = {name: Machine.model_fields[name].alias or name for name in PACKAGES}
        absent = {key for name, alias in aliases.items() if getattr(self, name) is None for key in (name, alias)}
        return {key: value for key, value in serialize(self).items() if key not in absent}


class Meanwhile(Part):
    """What the machine did while it was measured."""

    pinned_cores: tuple[Count, ...] | None
    """Cores that the process was bound to; null where it was not."""
    priority: str
    """`real-time` where the system permitted that class, else `normal`."""
    clocks_mhz: ClocksMhz
    """Clocks of the cores, before and after."""
    gpu_clocks_mhz: GpuClocksMhz | None = None
    """Clock of the GPU while it worked; null where nothing tells."""
    temperature_c: TemperatureC
    """Heat before and after."""
    load_average_before: Rate
    """Of the minute before the first measurement, processes, from 0."""
    load_average_after: Rate
    """Of the minute before the end, processes, from 0; the measurement itself counts."""
    others_share: Share | None
    """Share of the processor's time that other programs took, 0 to 1; null where /proc does not tell."""
    stolen_share: Share | None
    """Share of the processor's time that the hypervisor gave to other machines, 0 to 1; null where /proc does not
    tell."""
    noise: Noise
    """Whether the machine was quiet enough."""
    warnings: tuple[str, ...]
    """What a reader of the figures has to know, one sentence each."""


class Environment(Meanwhile, Machine):
    """A machine, and what it did while it was measured."""


E = TypeVar("E", bound=Environment)


def environment_of(kind: type[E], machine: Machine, meanwhile: Meanwhile, **figures: object) -> E:
    """Both together, with the figures that a kind of measurement adds or replaces."""
    return kind.model_validate({**dict(machine), **dict(meanwhile), **figures})
