"""What an NVIDIA GPU says of itself, through its management library: clocks, heat, power, energy, memory.

The package `nvidia-ml-py` is optional; without it, or without a GPU, there is nothing to ask and the figures stay null.
Only one GPU is asked, the one that engines run on: the driver's first, which CUDA_VISIBLE_DEVICES may make any of those
that this library counts, so it is found by its UUID. Jetsons have no NVML that counts energy: `energy.py` reads
their sensors. This has run against a stand-in for the library only, never on a GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

from mmcompress.errors import MMCompressError
from mmcompress.runtime.gpu import open_cuda

HARMLESS = 0x1 | 0x2 | 0x10 | 0x100
"""Idle, clocks set by an application, synchronized GPUs, display clocks: nothing was forced down (nvml.h)."""
REASONS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "hardware heat", 0x80: "power brake"}


def open_gpu() -> Gpu | None:
    """The GPU that engines run on, or None where there is none that can be asked."""
    try:
        uuid = open_cuda().device.uuid
    except MMCompressError:
        return None
    try:
        return Gpu(importlib.import_module("pynvml"), uuid)
    except ImportError:
        return None
    except Exception as error:  # NVMLError is known once the module is there
        if type(error).__name__.startswith("NVMLError"):
            return None
        raise


class Gpu:
    """One handle; figures that this GPU does not give are None."""

    def __init__(self, library: Any, uuid: str | None = None) -> None:
        """By its UUID, or the first where that is not known. A part of a GPU (MIG) has a name of its own."""
        self._library = library
        library.nvmlInit()
        if uuid is None:
            self._handle = library.nvmlDeviceGetHandleByIndex(0)
            return
        try:
            self._handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except library.NVMLError:
            self._handle = library.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, function)(self._handle, *arguments)
        except (self._library.NVMLError, AttributeError):
            return None

    def clock_mhz(self) -> float | None:
        clock = self._ask("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_SM)
        return None if clock is None else float(clock)

    def highest_clock_mhz(self) -> float | None:
        clock = self._ask("nvmlDeviceGetMaxClockInfo", self._library.NVML_CLOCK_SM)
        return None if clock is None else float(clock)

    def temperature_c(self) -> float | None:
        celsius = self._ask("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU)
        return None if celsius is None else float(celsius)

    def power_limit(self) -> str | None:
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else f"{milliwatts / 1000:.0f} W"

    def used_bytes(self) -> int | None:
        """Of all programs: inside a container the library cannot tell them apart."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def energy_j(self) -> float | None:
        """Since the driver was loaded; from Volta on."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def slowdowns(self) -> list[str]:
        """Why the clocks are lower than asked for, in words; empty where they are not."""
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return [REASONS.get(1 << bit, f"reason {bit}") for bit in range(16) if bits & ~HARMLESS & 1 << bit]
