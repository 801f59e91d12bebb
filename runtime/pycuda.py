"""The seam through pycuda, for programs that have chosen it: on the primary context, never on one that pycuda made.

Its objects free themselves when nothing refers to them, so each is kept under its address or handle until it is closed.
pycuda has no stream capture, so engines run without CUDA graphs. Tests use a stand-in for pycuda; pycuda 2026.1 itself
has run this on the stand-in for the driver, from several threads, and no GPU has.
"""

from __future__ import annotations

import atexit
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np

from mmcompress.errors import MissingRequirementError
from mmcompress.runtime.cuda import NO_DEVICE, OLDEST, OUT_OF_MEMORY, Device, check_driver, no_gpu, refused

T = TypeVar("T")
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING of cuda.h; pycuda has no name for it."""


class PyCuda:
    graphs = None

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        try:
            driver.init()
            if driver.Device.count() < 1:
                raise no_gpu("cuDeviceGetCount answers 0 devices")
            gpu = driver.Device(0)
            version = driver.get_driver_version()
            major, minor = gpu.compute_capability()
            attributes = driver.device_attribute
            self.device = Device(
                name=str(gpu.name()),
                capability=(int(major), int(minor)),
                multiprocessors=int(gpu.get_attribute(attributes.MULTIPROCESSOR_COUNT)),
                memory_bytes=int(gpu.total_memory()),
                integrated=bool(gpu.get_attribute(attributes.INTEGRATED)),
                cuda=(version // 1000, version % 1000 // 10),
            )
        except driver.Error as error:
            raise no_gpu(
                f"pycuda says: {error}", NO_DEVICE if "no CUDA-capable device" in str(error) else -1
            ) from error
        check_driver(self.device.cuda, OLDEST, "TensorRT 10.3")
        self._gpu: Any = gpu
        self._context: Any = None
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()

    @staticmethod
    def open() -> PyCuda:
        try:
            return PyCuda(importlib.import_module("pycuda.driver"))
        except ImportError as error:
            raise MissingRequirementError(
                f"MMCOMPRESS_CUDA asks for pycuda, which cannot be imported ({error})",
                "pip install 'mmcompress[pycuda]', or unset MMCOMPRESS_CUDA: the driver alone suffices",
            ) from error

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._lock:
            if self._context is None:
                self._context = self._call(self._gpu.retain_primary_context)
                atexit.register(self.release)
        self._call(self._context.push)
        try:
            yield
        finally:
            with suppress(self._driver.Error):  # what it answers is an earlier failure of the GPU
                self._driver.Context.pop()

    def release(self) -> None:
        """Let go of the primary context. Left to its destructor, pycuda detaches it as if it were one of its own, and
        ends the process with a warning."""
        context, self._context = self._context, None
        if context is not None:
            with suppress(self._driver.Error):
                context.push()
                context.detach()

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            memory = getattr(self._driver, "MemoryError", ())
            raise refused(f"pycuda says: {error}", OUT_OF_MEMORY if isinstance(error, memory) else -1) from error

    def _keep(self, key: int, made: Any) -> int:
        self._kept[key] = made
        return key

    def malloc(self, size_bytes: int) -> int:
        made = self._call(self._driver.mem_alloc, size_bytes)
        return self._keep(int(made), made)

    def free(self, address: int) -> None:
        self._call(self._kept.pop(address).free)

    def malloc_host(self, size_bytes: int) -> int:
        flags = self._driver.host_alloc_flags
        wanted = flags.PORTABLE | (flags.DEVICEMAP if self.device.integrated else 0)
        made = self._call(self._driver.pagelocked_empty, size_bytes, np.uint8, "C", wanted)
        return self._keep(made.ctypes.data, made)

    def free_host(self, host: int) -> None:
        self._call(self._kept.pop(host).base.free)

    def mapped(self, host: int) -> int:
        return int(self._call(self._kept[host].base.get_device_pointer))

    def copy_in(self, address: int, host: int, size_bytes: int, stream: int) -> None:
        pinned = self._kept[host][:size_bytes]
        self._call(self._driver.memcpy_htod_async, address, pinned, self._kept[stream])

    def copy_out(self, host: int, address: int, size_bytes: int, stream: int) -> None:
        pinned = self._kept[host][:size_bytes]
        self._call(self._driver.memcpy_dtoh_async, pinned, address, self._kept[stream])

    def open_stream(self) -> int:
        made = self._call(self._driver.Stream, NON_BLOCKING)
        return self._keep(int(made.handle), made)

    def close_stream(self, stream: int) -> None:
        self._kept.pop(stream)

    def synchronize(self, stream: int) -> None:
        self._call(self._kept[stream].synchronize)

    def open_event(self) -> int:
        made = self._call(self._driver.Event)
        return self._keep(id(made), made)

    def close_event(self, event: int) -> None:
        self._kept.pop(event)

    def record(self, event: int, stream: int) -> None:
        self._call(self._kept[event].record, self._kept[stream])

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._call(self._kept[start].time_till, self._kept[end]))
