"""The seam on NVIDIA's driver library, `libcuda.so.1`, by ctypes alone.

Names and signatures are those of cuda.h, with the suffix that the header adds for the reader: `cuMemAlloc` is
`cuMemAlloc_v2` in the library. All of them are in every driver from CUDA 12.0 on. A test holds names, signatures and
constants against a cuda.h where there is one.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from mmcompress.errors import MissingRequirementError
from mmcompress.runtime.cuda import OLDEST, Device, Graphs, check_driver, no_gpu, refused

LIBRARY = "libcuda.so.1"
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetUuid_v2": (c_void_p, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostGetDevicePointer_v2": (POINTER(c_uint64), c_void_p, c_uint),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
}
"""Arguments of each; all return a CUresult."""
CONSTANTS = {
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 16,
    "CU_DEVICE_ATTRIBUTE_INTEGRATED": 18,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
    "CU_MEMHOSTALLOC_PORTABLE": 1,
    "CU_MEMHOSTALLOC_DEVICEMAP": 2,
    "CU_STREAM_NON_BLOCKING": 1,
    "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1,
    "CU_EVENT_DEFAULT": 0,
}


class LibCuda:
    """The first device; its primary context is retained when it is first needed, for as long as the process lives."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._context: c_void_p | None = None
        version = self._int("cuDriverGetVersion")
        cuda = (version // 1000, version % 1000 // 10)
        check_driver(cuda, OLDEST, "TensorRT 10.3")
        self._calls = {name: _declared(library, name) for name in SIGNATURES}
        if code := self._calls["cuInit"](0):
            raise no_gpu(self._answer("cuInit", code), code)
        if self._int("cuDeviceGetCount") < 1:
            raise no_gpu("cuDeviceGetCount answers 0 devices")
        self._ordinal = self._int("cuDeviceGet", 0)
        self.device = self._described(cuda)

    @staticmethod
    def open() -> LibCuda:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise no_gpu(f"the driver's library cannot be loaded ({error})") from error
        return LibCuda(library)

    def _described(self, cuda: tuple[int, int]) -> Device:
        def attribute(name: str) -> int:
            return self._int("cuDeviceGetAttribute", CONSTANTS[f"CU_DEVICE_ATTRIBUTE_{name}"], self._ordinal)

        name, uuid, memory = (c_char * 256)(), (c_char * 16)(), c_size_t()
        self._call("cuDeviceGetName", name, len(name), self._ordinal)
        unnamed = self._calls["cuDeviceGetUuid_v2"](uuid, self._ordinal)
        self._call("cuDeviceTotalMem_v2", byref(memory), self._ordinal)
        digits = uuid.raw.hex()
        return Device(
            name=name.value.decode(errors="replace"),
            capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            memory_bytes=memory.value,
            integrated=bool(attribute("INTEGRATED")),
            cuda=cuda,
            uuid=None if unnamed else "-".join((digits[:8], *(digits[at : at + 4] for at in (8, 12, 16)), digits[20:])),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        if code := self._calls[name](*arguments):
            raise refused(self._answer(name, code), code)

    def _int(self, name: str, *arguments: Any) -> int:
        """Of a function that writes one int."""
        value = c_int()
        if code := _declared(self._library, name)(byref(value), *arguments):
            raise refused(self._answer(name, code), code)
        return value.value

    def _handle(self, name: str, *arguments: Any) -> int:
        """Of a function that writes one handle or host address."""
        handle = c_void_p()
        self._call(name, byref(handle), *arguments)
        return int(handle.value or 0)

    def _address(self, name: str, *arguments: Any) -> int:
        address = c_uint64()
        self._call(name, byref(address), *arguments)
        return address.value

    def _answer(self, name: str, code: int) -> str:
        called, said = c_char_p(), c_char_p()
        _declared(self._library, "cuGetErrorName")(code, byref(called))
        _declared(self._library, "cuGetErrorString")(code, byref(said))
        known = [text.value.decode() for text in (called, said) if text.value]
        return f"{name} answers {known[0] if known else 'an unknown error'} ({code}){': ' + known[1] if known else ''}"

    @property
    def graphs(self) -> Graphs:
        return self

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._lock:
            if self._context is None:
                self._context = c_void_p(self._handle("cuDevicePrimaryCtxRetain", self._ordinal))
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            popped = c_void_p()
            self._calls["cuCtxPopCurrent_v2"](byref(popped))  # what it answers is an earlier failure of the GPU

    def malloc(self, size_bytes: int) -> int:
        return self._address("cuMemAlloc_v2", size_bytes)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def malloc_host(self, size_bytes: int) -> int:
        flags = CONSTANTS["CU_MEMHOSTALLOC_PORTABLE"]
        if self.device.integrated:
            flags |= CONSTANTS["CU_MEMHOSTALLOC_DEVICEMAP"]
        return self._handle("cuMemHostAlloc", size_bytes, flags)

    def free_host(self, host: int) -> None:
        self._call("cuMemFreeHost", host)

    def mapped(self, host: int) -> int:
        return self._address("cuMemHostGetDevicePointer_v2", host, 0)

    def copy_in(self, address: int, host: int, size_bytes: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", address, host, size_bytes, stream)

    def copy_out(self, host: int, address: int, size_bytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", host, address, size_bytes, stream)

    def open_stream(self) -> int:
        """That does not wait for the null stream, nor lets it wait."""
        return self._handle("cuStreamCreate", CONSTANTS["CU_STREAM_NON_BLOCKING"])

    def close_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def open_event(self) -> int:
        return self._handle("cuEventCreate", CONSTANTS["CU_EVENT_DEFAULT"])

    def close_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        milliseconds = c_float()
        self._call("cuEventElapsedTime", byref(milliseconds), start, end)
        return milliseconds.value

    def begin_capture(self, stream: int) -> None:
        """Of this thread only, so that others may allocate meanwhile."""
        self._call("cuStreamBeginCapture_v2", stream, CONSTANTS["CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"])

    def end_capture(self, stream: int) -> int:
        captured = c_void_p()
        self._call("cuStreamEndCapture", stream, byref(captured))
        try:
            return self._handle("cuGraphInstantiateWithFlags", captured, 0)
        finally:
            self._calls["cuGraphDestroy"](captured)  # as above: an error here would lose the graph that was made

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def close_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)


def _declared(library: ctypes.CDLL, name: str) -> Any:
    """A function with its arguments' types, or what an old driver lacks."""
    try:
        function = library[name]
    except AttributeError as error:
        raise MissingRequirementError(
            f"the driver's library has no {name}", "install an NVIDIA driver of CUDA 12.0 or later, 525 say"
        ) from error
    function.argtypes, function.restype = SIGNATURES[name], c_int
    return function
