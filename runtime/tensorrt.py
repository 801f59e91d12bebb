"""TensorRT and TensorRT-RTX engines: opened only with a passport that fits, run through one implementation.

`tensorrt` (10 and 11) and `tensorrt_rtx` have the same Python API as far as it is used here, so the module is an
argument. An engine is code for one kind of GPU and one version of the library, and deserializing a foreign one ends in
a crash or worse. Its passport is the manifest that it travels with: backend, library version and target are compared
with this machine first, and the error says what differs and how to rebuild.

This has been run up to the missing GPU only: the passport check and the errors are tested everywhere, execution by the
tests marked `gpu`. `refit`, stripped plans and CUDA graphs are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError, require
from mmcompress.manifest import Graph, Manifest, TensorSpec
from mmcompress.runtime.cuda import Cuda, open_cuda
from mmcompress.runtime.session import Session

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Machine:
    """What an engine's passport is compared with."""

    backend: Backend
    version: str
    target: str


def tensorrt_module(backend: Backend) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`, by the backend's name."""
    name = _MODULES[backend]
    try:
        return require(name, backend)
    except MissingRequirementError:
        raise
    except Exception as error:  # the meta package raises what it likes where no wheel fits
        raise MissingRequirementError(
            f"{name} cannot be imported: {error}", f"pip install 'mmcompress[{backend}]'"
        ) from error


def this_machine(backend: Backend) -> Machine:
    """Library version and GPU found here; MissingRequirementError where either is absent."""
    module = tensorrt_module(backend)
    major, minor = open_cuda().capability()
    return Machine(backend, str(module.__version__), f"sm{major}{minor}")


def passport_differences(manifest: Manifest, graph: Graph, machine: Machine) -> list[str]:
    """What keeps an engine from being opened on this machine, one phrase a difference."""
    compared = {
        "backend": (manifest.facts.get("backend"), machine.backend),
        "TensorRT version": (manifest.facts.get("tensorrt_version"), machine.version),
        "GPU": (graph.target, machine.target),
    }
    return [
        f"{what}: the engine is for {engine or 'an unknown one'}, here it is {here}"
        for what, (engine, here) in compared.items()
        if engine != here
    ]


def check_passport(artifact: Artifact, graph: Graph, machine: Machine) -> None:
    if differences := passport_differences(artifact.manifest, graph, machine):
        raise CorruptInputError(
            f"the engine {graph.file} of {artifact.path} does not fit this machine: {'; '.join(differences)}",
            _rebuild(machine.backend),
        )


def built_for_this_gpu(artifact: Artifact, graphs: Sequence[Graph], backend: Backend) -> list[Graph]:
    """Of the engines in an artifact, those for the GPU in this machine."""
    target = this_machine(backend).target
    fitting = [graph for graph in graphs if graph.target == target]
    if not fitting:
        targets = ", ".join(sorted({graph.target or "an unknown GPU" for graph in graphs}))
        raise CorruptInputError(
            f"the engines of {artifact.path} are for {targets}, and the GPU here is {target}", _rebuild(backend)
        )
    return fitting


def _rebuild(backend: Backend) -> str:
    return f"build it on this machine: mmcompress build ONNX_ARTIFACT --backend {backend} --target native"


def open_engine(artifact: Artifact, graph: Graph, backend: Backend) -> TensorRTSession:
    """Check the passport, then deserialize."""
    machine = this_machine(backend)
    check_passport(artifact, graph, machine)
    return open_plan(artifact.file(graph.file), graph, backend)


def open_plan(path: Path, graph: Graph, backend: Backend) -> TensorRTSession:
    """Deserialize an engine that this machine has built itself."""
    return TensorRTSession(tensorrt_module(backend), path.read_bytes(), graph, open_cuda())


class TensorRTSession(Session):
    """Owns the engine, a stream and one device buffer a tensor, which grow with the batch and are freed by `close`.

    Inputs are copied to the device before `run` returns; outputs are fresh host arrays.
    """

    def __init__(self, module: ModuleType, plan: bytes, graph: Graph, cuda: Cuda) -> None:
        self._cuda = cuda
        self._buffers: dict[str, tuple[int, int]] = {}
        self._runtime = module.Runtime(module.Logger(module.Logger.WARNING))
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise CorruptInputError(
                f"{module.__name__} {module.__version__} refuses to load {graph.file}",
                "its log above says why; build the engine again on this machine",
            )
        for spec in (*graph.inputs, *graph.outputs):
            dtype = np.dtype(module.nptype(self._engine.get_tensor_dtype(spec.name)))
            if dtype != np.dtype(spec.dtype):
                raise CorruptInputError(
                    f"{graph.file} has {spec.name!r} of {dtype}, and its manifest says {spec.dtype}",
                    "build the engine again",
                )
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise MissingRequirementError("the GPU has no memory left for this engine", "free some: nvidia-smi")
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self.device = cuda.name()
        _, _, largest = self._engine.get_tensor_profile_shape(self.inputs[0].name, 0)
        self.max_batch: int | None = int(largest[0])
        self._stream: Any = cuda.stream()

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, array.shape):
                smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
                raise UsageError(
                    f"the engine takes {name!r} of shape {tuple(smallest)} to {tuple(largest)}, not {array.shape}",
                    "use a smaller batch, or build it with other --batches",
                )
            self._cuda.to_device(self._buffer(name, array.nbytes), array, self._stream)
        results: dict[str, NDArray[Any]] = {}
        for spec in self.outputs:
            array = np.empty(tuple(self._context.get_tensor_shape(spec.name)), dtype=np.dtype(spec.dtype))
            self._buffer(spec.name, array.nbytes)
            results[spec.name] = array
        for name, (address, _) in self._buffers.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(self._cuda.stream_handle(self._stream)):
            raise MissingRequirementError("the GPU could not run the engine", "TensorRT's log above says why")
        for name, array in results.items():
            self._cuda.to_host(array, self._buffers[name][0], self._stream)
        self._cuda.synchronize(self._stream)
        return results

    def _buffer(self, name: str, size_bytes: int) -> int:
        address, capacity = self._buffers.get(name, (0, 0))
        if size_bytes > capacity:
            if address:
                self._cuda.free(address)
            address, capacity = self._cuda.malloc(size_bytes), size_bytes
            self._buffers[name] = (address, capacity)
        return address

    def close(self) -> None:
        if self._engine is None:
            return
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        self._cuda.close_stream(self._stream)
        self._context = self._engine = self._stream = None
