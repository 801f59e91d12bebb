"""The CUDA calls that TensorRT's sessions need: one seam, which `libcuda.py` and `pycuda.py` implement.

Both use the primary context of the device, as torch and the CUDA runtime inside TensorRT do. It is current inside
`with cuda.current():` only and is popped behind it, so any thread may call, and no caller finds another context than
it left.

Addresses and handles are integers, and who makes one closes it. Work on a stream is asynchronous: until `synchronize`
returns, its memory belongs to the GPU. No GPU has run this; tests run both on a stand-in for the driver.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mmcompress.errors import MissingRequirementError
from mmcompress.runtime.board import driver_version

OLDEST = (12, 0)
"""CUDA of the oldest driver that runs TensorRT 10.3 for CUDA 12, by the compatibility within a major version."""
DRIVERS = {12: 525, 13: 580}
"""First driver of each CUDA (CUDA Toolkit release notes, "CUDA Toolkit and Corresponding Driver Versions", Linux)."""
OUT_OF_MEMORY, NO_DEVICE, DRIVER_MISMATCH = 2, 100, 803
"""Of CUresult, cuda.h."""


@dataclass(frozen=True)
class Device:
    """What the driver says of the GPU."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    integrated: bool
    """Shares its memory with the processor, as on a Jetson; pinned memory is mapped there, and nothing is copied."""
    cuda: tuple[int, int]
    """Newest CUDA that the driver runs."""
    uuid: str | None = None
    """As NVML writes it, without the `GPU-`; None where the implementation cannot ask, or the driver does not say."""

    @property
    def target(self) -> str:
        return f"sm{self.capability[0]}{self.capability[1]}"


class Graphs(Protocol):
    """Work that is enqueued once and launched many times."""

    def begin_capture(self, stream: int) -> None:
        """What this thread enqueues from here on is kept and not run."""

    def end_capture(self, stream: int) -> int:
        """The graph of what was enqueued. MissingRequirementError where it cannot be one; the stream is as before."""

    def launch(self, graph: int, stream: int) -> None: ...
    def close_graph(self, graph: int) -> None: ...


class Cuda(Protocol):
    """One GPU. All but `device` and `current` are called inside `current()`."""

    device: Device

    @property
    def graphs(self) -> Graphs | None:
        """None where this implementation cannot capture."""

    def current(self) -> AbstractContextManager[None]: ...
    def malloc(self, size_bytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def malloc_host(self, size_bytes: int) -> int:
        """Pinned, and mapped where the GPU is integrated."""

    def free_host(self, host: int) -> None: ...
    def mapped(self, host: int) -> int:
        """The GPU's address of mapped memory."""

    def copy_in(self, address: int, host: int, size_bytes: int, stream: int) -> None: ...
    def copy_out(self, host: int, address: int, size_bytes: int, stream: int) -> None: ...
    def open_stream(self) -> int: ...
    def close_stream(self, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...
    def open_event(self) -> int: ...
    def close_event(self, event: int) -> None: ...
    def record(self, event: int, stream: int) -> None: ...
    def elapsed_ms(self, start: int, end: int) -> float:
        """Between two events that the GPU has passed."""


def no_gpu(answer: str, code: int | None = None) -> MissingRequirementError:
    """That there is none, with the driver's answer and what mends it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code == DRIVER_MISMATCH:
        hint = "the driver's library and its kernel module differ, as after an update: restart the machine"
    elif code in (None, NO_DEVICE) and visible is not None:
        hint = f"CUDA_VISIBLE_DEVICES is {visible!r}; unset it, or name a GPU that `nvidia-smi -L` lists"
    else:
        hint = (
            "run this on a machine with an NVIDIA GPU and its driver (in a container: `docker run --gpus all`, on a "
            "Jetson `--runtime nvidia`); openvino and onnxruntime need none"
        )
    return MissingRequirementError(f"there is no NVIDIA GPU to run on: {answer}", hint)


def refused(answer: str, code: int) -> MissingRequirementError:
    """That a call on the GPU failed."""
    if code == OUT_OF_MEMORY:
        return MissingRequirementError(
            f"the GPU has no memory left: {answer}", "free some, or use a smaller batch; `nvidia-smi` shows who has it"
        )
    return MissingRequirementError(
        f"the GPU refused: {answer}", "start the program again; `dmesg` says what the driver met"
    )


def check_driver(cuda: tuple[int, int], needed: tuple[int, int], by: str, instead: str = "") -> None:
    """Raise where the driver is for an older CUDA than what `by` was made with. Within a major version any does."""
    if cuda < needed:
        major = max(known for known in DRIVERS if known <= needed[0])
        driver = f"driver {found}" if (found := driver_version()) else "this driver"
        raise MissingRequirementError(
            f"{by} needs a driver for CUDA {needed[0]}.{needed[1]}, and {driver} is for CUDA {cuda[0]}.{cuda[1]}",
            f"install NVIDIA driver {DRIVERS[major]} or later"
            + (f", or what was made for CUDA {cuda[0]}: {instead}" if instead and cuda >= OLDEST else ""),
        )
