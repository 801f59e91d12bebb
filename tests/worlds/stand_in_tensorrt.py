"""A stand-in for TensorRT's runtime on the stand-in driver: an engine that computes, and notes what it is done to.

Its one kernel reads the inputs at the addresses that were set when it was enqueued, fills its scratch memory, and
writes the outputs. What TensorRT forbids is noted as a fault: memory that is not there, an address that was not set, a
context that was changed after its work was captured.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stand_in_driver import KERNEL, Driver

from mmcompress.manifest import Graph, TensorSpec

SIDE, DIM = 4, 5
SCRATCH_BYTES_PER_IMAGE = 512
GRAPH = Graph(
    file="image-int8-sm89.engine",
    tower="image",
    precision="int8",
    activations="signed",
    target="sm89",
    inputs=(TensorSpec(name="pixels", shape=(None, 3, SIDE, SIDE), dtype="float32"),),
    outputs=(TensorSpec(name="embedding", shape=(None, DIM), dtype="float32"),),
)


def answers(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 3, SIDE, SIDE) -> (B, DIM), what the engine computes."""
    rows: NDArray[np.float32] = 3 * pixels.reshape(len(pixels), -1)[:, :DIM] + 1
    return rows


class Type(IntEnum):
    FLOAT = 0


class TensorRT:
    """Passes for the module `tensorrt`."""

    __name__ = "tensorrt"
    __version__ = "10.3.0"

    def __init__(self, driver: Driver, profiles: tuple[tuple[int, int, int], ...] = ((1, 8, 32),)) -> None:
        self.driver, self.profiles = driver, profiles
        self.faults: list[str] = []
        self.contexts = 0
        self.capturable = True
        self.engines = 0
        """How many are alive, of each."""
        self.refuse: str | None = None
        """Name of a method that answers as one that failed."""
        self.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, severity: None})
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        self.nptype = lambda dtype: np.float32
        self._numbers = itertools.count()
        self._work: dict[int, Any] = {}
        self._kernel = KERNEL(lambda number: self._work[number]())
        outer = self

        class Context:
            def __init__(self) -> None:
                outer.contexts += 1
                self.version, self.batch, self.profile = 0, 0, -1
                self.scratch = (0, 0)
                self.addresses: dict[str, int] = {}

            def __del__(self) -> None:
                outer.contexts -= 1

            def set_optimization_profile_async(self, number: int, stream: int) -> bool:
                self.profile, self.version = number, self.version + 1
                if outer.refuse == "set_optimization_profile_async":  # as the bindings of TensorRT 10 do
                    raise RuntimeError("Error in set optimization profile async.")
                return True

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                smallest, _, largest = outer.profiles[self.profile]
                self.batch, self.version = shape[0], self.version + 1
                return smallest <= shape[0] <= largest and outer.refuse != "set_input_shape"

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (self.batch, 3, SIDE, SIDE) if name == "pixels" else (self.batch, DIM)

            def set_device_memory(self, address: int, size_bytes: int) -> None:
                self.scratch, self.version = (address, size_bytes), self.version + 1

            def set_tensor_address(self, name: str, address: int) -> bool:
                self.addresses[name], self.version = address, self.version + 1
                return outer.refuse != "set_tensor_address"

            def is_stream_capturable(self, stream: int) -> bool:
                return outer.capturable

            def execute_async_v3(self, stream: int) -> bool:
                if outer.refuse == "execute_async_v3":
                    return False
                version, batch, addresses, scratch = self.version, self.batch, dict(self.addresses), self.scratch
                captured = weakref.ref(self)

                def work() -> None:
                    context = captured()
                    if context is None or version != context.version:
                        outer.faults.append("the context is gone, or was changed after its work was captured")
                    outer._compute(batch, addresses, scratch)

                number = next(outer._numbers)
                outer._work[number] = work
                return int(driver.library.standin_launch(stream, outer._kernel, number)) == 0

        class Engine:
            num_optimization_profiles = len(profiles)

            def __init__(self) -> None:
                outer.engines += 1

            def __del__(self) -> None:
                outer.engines -= 1

            def get_tensor_dtype(self, name: str) -> Type:
                return Type.FLOAT

            def get_tensor_profile_shape(self, name: str, number: int) -> list[tuple[int, ...]]:
                return [(batch, 3, SIDE, SIDE) for batch in profiles[number]]

            def get_device_memory_size_for_profile_v2(self, number: int) -> int:
                return SCRATCH_BYTES_PER_IMAGE * profiles[number][2]

            def create_runtime_config(self) -> Any:
                return outer.configured()

            def create_execution_context(self, strategy: Any) -> Context | None:
                assert getattr(strategy, "strategy", strategy) == "user managed"
                outer.compile()
                return None if outer.refuse == "create_execution_context" else Context()

        class Runtime:
            def __init__(self, logger: Any) -> None:
                pass

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                return Engine() if plan == b"plan" else None

        self.Runtime = Runtime

    def configured(self) -> Any:
        raise AssertionError("TensorRT-RTX alone is asked for a runtime config here")

    def compile(self) -> None:
        """What making a context compiles."""

    def _compute(self, batch: int, addresses: dict[str, int], scratch: tuple[int, int]) -> None:
        sizes = {"pixels": batch * 3 * SIDE * SIDE * 4, "embedding": batch * DIM * 4}
        for name, size in sizes.items():
            if not self.driver.library.standin_reachable(addresses.get(name), size):
                self.faults.append(f"{name} of {size} bytes is not in memory")
                return
        if scratch[1] < SCRATCH_BYTES_PER_IMAGE * batch or not self.driver.library.standin_reachable(*scratch):
            self.faults.append(f"{scratch[1]} bytes of scratch are not in memory")
            return
        ctypes.memset(scratch[0], 0x55, scratch[1])
        pixels = np.ctypeslib.as_array((ctypes.c_float * (sizes["pixels"] // 4)).from_address(addresses["pixels"]))
        rows = np.ctypeslib.as_array((ctypes.c_float * (sizes["embedding"] // 4)).from_address(addresses["embedding"]))
        rows[:] = answers(pixels.reshape(batch, 3, SIDE, SIDE)).ravel()


class TensorRTRTX(TensorRT):
    """Passes for `tensorrt_rtx`: it compiles a kernel for each context unless its cache holds it."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1.116"

    def __init__(self, driver: Driver, **arguments: Any) -> None:
        super().__init__(driver, **arguments)
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        self.caches: list[Any] = []
        """Those that a context was made with."""
        self.compiled = 0

    def configured(self) -> Any:
        outer = self

        class Cache:
            kernels = b""

            def deserialize(self, blob: bytes) -> bool:
                if not blob.startswith(b"kernels"):
                    return False
                self.kernels = blob
                return True

            def serialize(self) -> bytes:
                return self.kernels

        class Config:
            strategy = dynamic_shapes_kernel_specialization_strategy = None

            def set_execution_context_allocation_strategy(self, strategy: str) -> None:
                self.strategy = strategy

            def create_runtime_cache(self) -> Cache:
                return Cache()

            def set_runtime_cache(self, cache: Cache) -> bool:
                assert self.dynamic_shapes_kernel_specialization_strategy == "eager"
                outer.caches.append(cache)
                return True

        return Config()

    def compile(self) -> None:
        if not self.caches[-1].kernels:
            self.caches[-1].kernels = b"kernels of 2 layers"
            self.compiled += 1
