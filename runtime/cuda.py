"""The few CUDA calls that TensorRT needs, behind one seam with two implementations.

`cuda-python` comes first: it is NVIDIA's own, imports without a driver, and answers with an error code where there is
no GPU. `pycuda` is what many Jetson images carry instead; it needs libcuda to be imported at all. Device addresses are
integers, streams and events opaque handles; who allocates frees.

This module has been run without a GPU only: the calls below `device_count` are checked by the tests marked `gpu`.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from numpy.typing import NDArray

from mmcompress.errors import MissingRequirementError


class Cuda(Protocol):
    """Memory, copies and order on one GPU. Copies are asynchronous: keep the array until `synchronize`."""

    def device_count(self) -> int: ...
    def capability(self) -> tuple[int, int]: ...
    def name(self) -> str: ...
    def malloc(self, size_bytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def to_device(self, address: int, array: NDArray[Any], stream: Any) -> None: ...
    def to_host(self, array: NDArray[Any], address: int, stream: Any) -> None: ...
    def stream(self) -> Any: ...
    def stream_handle(self, stream: Any) -> int: ...
    def synchronize(self, stream: Any) -> None: ...
    def close_stream(self, stream: Any) -> None: ...
    def event(self) -> Any: ...
    def record(self, event: Any, stream: Any) -> None: ...
    def elapsed_ms(self, start: Any, end: Any) -> float: ...


def open_cuda() -> Cuda:
    """The seam on the first GPU, or an error with what the CUDA runtime answered."""
    try:
        cuda: Cuda = _CudaPython(importlib.import_module("cuda.bindings.runtime"))
    except ImportError as no_cuda_python:
        try:
            driver = importlib.import_module("pycuda.driver")
        except ImportError as no_pycuda:
            raise MissingRequirementError(
                f"CUDA needs cuda-python or pycuda, and neither can be imported ({no_cuda_python}; {no_pycuda})",
                "pip install 'mmcompress[cuda]' (or 'mmcompress[pycuda]', where libcuda is there)",
            ) from no_pycuda
        cuda = _PyCuda(driver)
    if cuda.device_count() < 1:
        raise _no_gpu("cudaGetDeviceCount answers 0 devices")
    return cuda


def _no_gpu(answer: str) -> MissingRequirementError:
    return MissingRequirementError(
        f"there is no NVIDIA GPU to run on: {answer}",
        "run this on a machine with an NVIDIA GPU and its driver; openvino and onnxruntime need none",
    )


class _CudaPython:
    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def _checked(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime, which returns (error code, *results)."""
        code, *results = getattr(self._runtime, name)(*arguments)
        if code != self._runtime.cudaError_t.cudaSuccess:
            _, text = self._runtime.cudaGetErrorString(code)
            answer = f"{name} answers {code.name} ({int(code)}): {text.decode()}"
            if name == "cudaGetDeviceCount":
                raise _no_gpu(answer)
            raise MissingRequirementError(f"the GPU refused: {answer}", "see whether its memory is free: nvidia-smi")
        return results[0] if results else None

    def device_count(self) -> int:
        return int(self._checked("cudaGetDeviceCount"))

    def capability(self) -> tuple[int, int]:
        attributes = self._runtime.cudaDeviceAttr
        major = self._checked("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)
        minor = self._checked("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)
        return int(major), int(minor)

    def name(self) -> str:
        properties = self._checked("cudaGetDeviceProperties", 0)
        return str(properties.name.decode() if isinstance(properties.name, bytes) else properties.name)

    def malloc(self, size_bytes: int) -> int:
        return int(self._checked("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        self._checked("cudaFree", address)

    def to_device(self, address: int, array: NDArray[Any], stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: NDArray[Any], address: int, stream: Any) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def stream(self) -> Any:
        return self._checked("cudaStreamCreate")

    def stream_handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._checked("cudaStreamSynchronize", stream)

    def close_stream(self, stream: Any) -> None:
        self._checked("cudaStreamDestroy", stream)

    def event(self) -> Any:
        return self._checked("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        self._checked("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._checked("cudaEventSynchronize", end)
        return float(self._checked("cudaEventElapsedTime", start, end))


class _PyCuda:
    """The primary context of the first GPU is retained, so that TensorRT and pycuda share one."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._allocations: dict[int, Any] = {}
        try:
            driver.init()
        except driver.Error as error:
            raise _no_gpu(f"cuInit answers {error}") from error
        if driver.Device.count():
            self._context = driver.Device(0).retain_primary_context()
            self._context.push()

    def device_count(self) -> int:
        return int(self._driver.Device.count())

    def capability(self) -> tuple[int, int]:
        major, minor = self._driver.Device(0).compute_capability()
        return int(major), int(minor)

    def name(self) -> str:
        return str(self._driver.Device(0).name())

    def malloc(self, size_bytes: int) -> int:
        allocation = self._driver.mem_alloc(size_bytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._allocations.pop(address).free()

    def to_device(self, address: int, array: NDArray[Any], stream: Any) -> None:
        self._driver.memcpy_htod_async(address, array, stream)

    def to_host(self, array: NDArray[Any], address: int, stream: Any) -> None:
        self._driver.memcpy_dtoh_async(array, address, stream)

    def stream(self) -> Any:
        return self._driver.Stream()

    def stream_handle(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        stream.synchronize()

    def close_stream(self, stream: Any) -> None:
        stream.synchronize()  # pycuda destroys it with the object

    def event(self) -> Any:
        return self._driver.Event()

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.time_till(end))
