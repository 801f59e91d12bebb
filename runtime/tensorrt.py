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

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError, MissingRequirementError, require
from mmcompress.manifest import Graph, Manifest
from mmcompress.runtime.enginesession import TensorRTSession
from mmcompress.runtime.gpu import open_cuda

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
    return Machine(backend, str(module.__version__), open_cuda().device.target)


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
