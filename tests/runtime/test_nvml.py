"""What is asked of NVIDIA's library, with a stand-in for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mmcompress.runtime.nvml import Gpu, open_gpu


class NVMLError(Exception):
    pass


def library(**answers: Any) -> Any:
    """Functions that answer, or raise NVMLError as the library does for what a GPU does not have."""

    def answer(value: Any) -> Any:
        def ask(*_: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return ask

    functions = {name: answer(value) for name, value in answers.items()}
    always = {"NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_TEMPERATURE_GPU": 0, "nvmlInit": lambda: None}
    return SimpleNamespace(nvmlDeviceGetHandleByIndex=lambda _: "gpu", **always, **functions)


def test_figures_have_their_units() -> None:
    gpu = Gpu(
        library(
            nvmlDeviceGetClockInfo=1410,
            nvmlDeviceGetTemperature=55,
            nvmlDeviceGetEnforcedPowerLimit=300_000,
            nvmlDeviceGetTotalEnergyConsumption=2500,
            nvmlDeviceGetMemoryInfo=SimpleNamespace(used=1 << 30),
            nvmlDeviceGetCurrentClocksEventReasons=0x1 | 0x4 | 0x40,
        )
    )
    assert (gpu.clock_mhz(), gpu.temperature_c(), gpu.power_limit()) == (1410, 55, "300 W")
    assert (gpu.energy_j(), gpu.used_bytes()) == (2.5, 1 << 30)
    assert gpu.slowdowns() == ["power cap", "hardware heat"]


def test_what_a_gpu_does_not_tell_is_none() -> None:
    gpu = Gpu(library(nvmlDeviceGetTotalEnergyConsumption=NVMLError(), nvmlDeviceGetCurrentClocksThrottleReasons=0x20))
    assert gpu.energy_j() is None and gpu.used_bytes() is None and gpu.power_limit() is None
    assert gpu.slowdowns() == ["heat"]


def test_without_the_package_or_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu() is None
    broken = library()
    error = type("NVMLError_LibraryNotFound", (NVMLError,), {})

    def no_driver() -> None:
        raise error

    broken.nvmlInit = no_driver
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert open_gpu() is None
