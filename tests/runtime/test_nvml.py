"""What is asked of NVIDIA's library, with a stand-in for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mmcompress.errors import MissingRequirementError
from mmcompress.runtime import nvml
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
            nvmlDeviceGetMaxClockInfo=1980,
            nvmlDeviceGetTemperature=55,
            nvmlDeviceGetEnforcedPowerLimit=300_000,
            nvmlDeviceGetTotalEnergyConsumption=2500,
            nvmlDeviceGetMemoryInfo=SimpleNamespace(used=1 << 30),
            nvmlDeviceGetCurrentClocksEventReasons=0x1 | 0x4 | 0x40,
        )
    )
    assert (gpu.clock_mhz(), gpu.temperature_c(), gpu.power_limit()) == (1410, 55, "300 W")
    assert (gpu.energy_j(), gpu.used_bytes()) == (2.5, 1 << 30)
    assert gpu.slowdowns() == ["power cap", "hardware heat"] and gpu.highest_clock_mhz() == 1980


def test_what_a_gpu_does_not_tell_is_none() -> None:
    gpu = Gpu(library(nvmlDeviceGetTotalEnergyConsumption=NVMLError(), nvmlDeviceGetCurrentClocksThrottleReasons=0x20))
    assert gpu.energy_j() is None and gpu.used_bytes() is None and gpu.power_limit() is None
    assert gpu.slowdowns() == ["heat"]


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, uuid: str | None) -> None:
    monkeypatch.setattr(nvml, "open_cuda", lambda: SimpleNamespace(device=SimpleNamespace(uuid=uuid)))


def by_name(asked: list[str], parts: bool = False) -> Any:
    """A library that finds GPUs by their UUIDs, or parts of them only."""
    found = library(nvmlDeviceGetClockInfo=1410)

    def by_uuid(uuid: str) -> str:
        asked.append(uuid)
        if parts and uuid.startswith("GPU-"):
            raise NVMLError
        return uuid

    found.nvmlDeviceGetHandleByUUID = by_uuid
    return found


@pytest.mark.parametrize("parts", [False, True])
def test_the_gpu_is_the_one_that_engines_run_on(monkeypatch: pytest.MonkeyPatch, parts: bool) -> None:
    asked: list[str] = []
    on_a_gpu(monkeypatch, "0011-22")
    monkeypatch.setitem(sys.modules, "pynvml", by_name(asked, parts))
    gpu = open_gpu()
    assert gpu is not None and gpu.clock_mhz() == 1410
    assert asked == (["GPU-0011-22", "MIG-0011-22"] if parts else ["GPU-0011-22"])
    on_a_gpu(monkeypatch, None)  # pycuda does not tell
    assert open_gpu() is not None and len(asked) == (2 if parts else 1)


def test_without_the_package_or_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, "0011-22")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu() is None
    broken = by_name([])
    error = type("NVMLError_LibraryNotFound", (NVMLError,), {})

    def no_driver() -> None:
        raise error

    broken.nvmlInit = no_driver
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert open_gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", by_name([]))
    assert open_gpu() is not None

    def no_gpu() -> None:
        raise MissingRequirementError("there is none")

    monkeypatch.setattr(nvml, "open_cuda", no_gpu)
    assert open_gpu() is None
