"""The stand-in for libcuda.so.1, compiled with the system's compiler, and a stand-in for pycuda on top of it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmcompress.runtime.cuda import Cuda

SOURCE = Path(__file__).with_name("stand_in_libcuda.c")
KINDS = ("memory", "host", "stream", "event", "graph", "exec")
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Driver:
    """What tests tell the stand-in and ask it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.standin_log.restype = ctypes.c_char_p
        self.library.standin_reachable.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self.library.standin_launch.argtypes = (ctypes.c_void_p, KERNEL, ctypes.c_int)
        self.reset()

    def reset(
        self,
        cuda: int = 12060,
        devices: int = 1,
        init: int = 0,
        integrated: bool = False,
        multiprocessors: int = 46,
        capability: int = 89,
        name: str = "NVIDIA Stand-in 89",
    ) -> None:
        self.library.standin_reset(cuda, devices, init, integrated, multiprocessors, capability, name.encode())

    def fail(self, function: str, nth: int = 1, code: int = 2) -> None:
        """The nth call of a function from here on answers `code`."""
        self.library.standin_fail(function.encode(), nth, code)

    def calls(self) -> list[str]:
        """Each call with its plain arguments, since the last `clear`."""
        return [str(line) for line in self.library.standin_log().decode().splitlines()]

    def clear(self) -> None:
        self.library.standin_clear_log()

    def live(self) -> dict[str, int]:
        """How many of each kind are not closed."""
        counts = {kind: self.library.standin_live(number) for number, kind in enumerate(KINDS, 1)}
        return {kind: count for kind, count in counts.items() if count}

    def depth(self) -> int:
        """Contexts on this thread's stack."""
        return int(self.library.standin_depth())

    def break_gpu(self, code: int = 700) -> None:
        """From here on every call that needs the GPU answers `code`, as after a fault in a kernel."""
        self.library.standin_break(code)


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the stand-in driver needs a C compiler")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    flags = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    subprocess.run([compiler, *flags, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def driver(driver_library: Path) -> Driver:
    return Driver(driver_library)


def round_trip(seam: Cuda, given: NDArray[Any]) -> NDArray[Any]:
    """An array through the GPU's memory and back."""
    with seam.current():
        stream = seam.open_stream()
        host, back, address = seam.malloc_host(given.nbytes), seam.malloc_host(given.nbytes), seam.malloc(given.nbytes)
        ctypes.memmove(host, given.ctypes.data, given.nbytes)
        events = [seam.open_event() for _ in range(2)]
        seam.record(events[0], stream)
        seam.copy_in(address, host, given.nbytes, stream)
        seam.copy_out(back, address, given.nbytes, stream)
        seam.record(events[1], stream)
        seam.synchronize(stream)
        result = np.frombuffer(ctypes.string_at(back, given.nbytes), dtype=given.dtype).reshape(given.shape)
        assert seam.elapsed_ms(*events) > 0
        for event in events:
            seam.close_event(event)
        seam.free(address)
        seam.free_host(host)
        seam.free_host(back)
        seam.close_stream(stream)
    return result


def pycuda_on(driver: Driver) -> ModuleType:
    """As much of `pycuda.driver` as the seam calls, with pycuda's own names, on the stand-in."""

    class Error(Exception):
        pass

    class NoMemoryError(Error):
        pass

    library = driver.library

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(library, name)(*arguments):
            said = ctypes.c_char_p()
            library.cuGetErrorString(code, ctypes.byref(said))
            text = said.value.decode() if said.value else "unknown"
            raise (NoMemoryError if code == 2 else Error)(f"{name} failed: {text}")

    def number(name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        call(name, ctypes.byref(value), *arguments)
        return value.value

    def pointer(name: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        call(name, ctypes.byref(value), *arguments)
        return int(value.value or 0)

    class Context:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        def push(self) -> None:
            call("cuCtxPushCurrent_v2", ctypes.c_void_p(self.handle))

        @staticmethod
        def pop() -> None:
            pointer("cuCtxPopCurrent_v2")

        def detach(self) -> None:
            """Of the context that is current."""
            call("cuDevicePrimaryCtxRelease_v2", 0)
            self.pop()

    class Device:
        def __init__(self, ordinal: int) -> None:
            self.ordinal = number("cuDeviceGet", ordinal)

        @staticmethod
        def count() -> int:
            return number("cuDeviceGetCount")

        def name(self) -> str:
            text = ctypes.create_string_buffer(256)
            call("cuDeviceGetName", text, 256, self.ordinal)
            return text.value.decode()

        def get_attribute(self, attribute: int) -> int:
            return number("cuDeviceGetAttribute", attribute, self.ordinal)

        def compute_capability(self) -> tuple[int, int]:
            return self.get_attribute(75), self.get_attribute(76)

        def total_memory(self) -> int:
            size = ctypes.c_size_t()
            call("cuDeviceTotalMem_v2", ctypes.byref(size), self.ordinal)
            return size.value

        def retain_primary_context(self) -> Context:
            return Context(pointer("cuDevicePrimaryCtxRetain", self.ordinal))

    class Owned:
        """An object that closes itself when nothing refers to it, as pycuda's do."""

        def __init__(self, handle: int, close: str) -> None:
            self.handle: int | None = handle
            self.close = close

        def __int__(self) -> int:
            assert self.handle is not None
            return self.handle

        def free(self) -> None:
            handle, self.handle = self.handle, None
            call(self.close, ctypes.c_void_p(handle))

        def get_device_pointer(self) -> int:
            return pointer("cuMemHostGetDevicePointer_v2", ctypes.c_void_p(self.handle), 0)

        def __del__(self) -> None:
            if getattr(self, "handle", None) is not None:
                with suppress(Error):  # pycuda prints it
                    self.free()

    class Stream(Owned):
        def __init__(self, flags: int = 0) -> None:
            super().__init__(pointer("cuStreamCreate", flags), "cuStreamDestroy_v2")

        def synchronize(self) -> None:
            call("cuStreamSynchronize", ctypes.c_void_p(self.handle))

    class Event(Owned):
        def __init__(self, flags: int = 0) -> None:
            super().__init__(pointer("cuEventCreate", flags), "cuEventDestroy_v2")

        def record(self, stream: Stream) -> None:
            call("cuEventRecord", ctypes.c_void_p(self.handle), ctypes.c_void_p(stream.handle))

        def time_till(self, end: Event) -> float:
            took = ctypes.c_float()
            events = (ctypes.c_void_p(self.handle), ctypes.c_void_p(end.handle))
            call("cuEventElapsedTime", ctypes.byref(took), *events)
            return took.value

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        host = pointer("cuMemHostAlloc", ctypes.c_size_t(shape), mem_flags)
        owned = Owned(host, "cuMemFreeHost")
        array = np.frombuffer((ctypes.c_char * shape).from_address(host), dtype=dtype)
        return Pinned(array, owned)

    class Pinned:
        """numpy lets no base be set, so this passes for an array where the seam takes one."""

        def __init__(self, array: Any, base: Owned) -> None:
            self.array, self.base, self.ctypes = array, base, SimpleNamespace(data=array.ctypes.data)

        def __getitem__(self, part: slice) -> Any:
            return self.array[part]

    def copied(name: str) -> Callable[..., None]:
        def copy(to: Any, source: Any, stream: Stream) -> None:
            ends = [end.ctypes.data if isinstance(end, np.ndarray) else int(end) for end in (to, source)]
            array = to if isinstance(to, np.ndarray) else source
            call(name, *map(ctypes.c_void_p, ends), ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream.handle))

        return copy

    module: Any = ModuleType("pycuda.driver")
    module.Error, module.MemoryError = Error, NoMemoryError
    module.Context, module.Device, module.Stream, module.Event = Context, Device, Stream, Event
    module.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=16, INTEGRATED=18)
    module.host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2)
    module.init = lambda: call("cuInit", 0)
    module.get_driver_version = lambda: number("cuDriverGetVersion")
    module.mem_alloc = lambda size: Owned(pointer("cuMemAlloc_v2", ctypes.c_size_t(size)), "cuMemFree_v2")
    module.pagelocked_empty = pagelocked_empty
    module.memcpy_htod_async, module.memcpy_dtoh_async = copied("cuMemcpyHtoDAsync_v2"), copied("cuMemcpyDtoHAsync_v2")
    typed: ModuleType = module
    return typed
