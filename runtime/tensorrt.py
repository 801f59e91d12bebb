"""TensorRT and TensorRT-RTX: which is here, on which machine, and how an engine is opened.

`tensorrt` (10 and 11) and `tensorrt_rtx` have the same Python API as far as it is used here, so the module is an
argument. `passport.py` says whether an engine fits, `enginesession.py` runs it. This has been run up to the missing GPU
only: the rest is held by stand-ins for the driver and for TensorRT, and by the tests marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import CorruptInputError, MissingRequirementError, require
from mmcompress.manifest import Graph
from mmcompress.runtime.board import board, driver_version, jetpack, on_jetson
from mmcompress.runtime.conditions import power_mode
from mmcompress.runtime.cuda import check_driver
from mmcompress.runtime.enginesession import TensorRTSession
from mmcompress.runtime.gpu import open_cuda
from mmcompress.runtime.passport import Machine, check_passport, differences, rebuild, stated_passport, trusted

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_MADE_FOR: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "tensorrt": {12: ("tensorrt-cu12", "tensorrt-cu12-bindings"), 13: ("tensorrt-cu13", "tensorrt-cu13-bindings")},
    "tensorrt-rtx": {12: ("tensorrt-rtx-cu12",), 13: ("tensorrt-rtx-cu13",)},
}
"""The packages of each library by the major version of the CUDA that they bring or expect."""


def tensorrt_module(backend: Backend) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`, by the backend's name."""
    name = _MODULES[backend]
    hint = f"pip install 'mmcompress[{backend}]'"
    if on_jetson():
        hint = (
            "JetPack brings TensorRT: sudo apt install python3-libnvinfer, and a virtual environment made with "
            "python3 -m venv --system-site-packages"
            if backend == "tensorrt"
            else "there is no TensorRT-RTX for a Jetson: use --backend tensorrt"
        )
    try:
        return require(name, backend)
    except MissingRequirementError as error:
        raise MissingRequirementError(error.what, hint) from error
    except Exception as error:  # the meta package raises what it likes where no wheel fits
        raise MissingRequirementError(f"{name} cannot be imported: {error}", hint) from error


def this_machine(backend: Backend) -> Machine:
    """Library, GPU and driver found here; MissingRequirementError where one is absent or the driver is too old."""
    module = tensorrt_module(backend)
    device = open_cuda().device
    for major, packages in _MADE_FOR[backend].items():
        if found := [f"{name} {release}" for name in packages if (release := _installed(name)) is not None]:
            check_driver(device.cuda, (major, 0), found[0], f"pip install {packages[0].replace(str(major), '12')}")
            break
    return Machine(
        backend=backend,
        tensorrt=str(module.__version__),
        target=device.target,
        gpu=device.name,
        multiprocessors=device.multiprocessors,
        memory_bytes=device.memory_bytes,
        board=board() if device.integrated else None,
        jetpack=jetpack(),
        power_mode=power_mode(),
        driver=driver_version(),
        cuda="{}.{}".format(*device.cuda),
    )


def machine_for(backend: Backend, target: str | None) -> Machine:
    """What an engine is built for: this machine, or with a target a GPU of that architecture, of which no more is
    known."""
    if target is None:
        return this_machine(backend)
    return Machine(backend=backend, tensorrt=str(tensorrt_module(backend).__version__), target=target)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def built_for_this_gpu(artifact: Artifact, graphs: Sequence[Graph], backend: Backend) -> list[Graph]:
    """Of the engines in an artifact, those that fit this machine; else those of its architecture, whose other
    differences are said when one is opened. With `--trust` all that are left."""
    here = this_machine(backend)
    found = {graph.file: differences(stated_passport(artifact.manifest, graph), here) for graph in graphs}
    fitting = [graph for graph in graphs if not found[graph.file]] or [g for g in graphs if g.target == here.target]
    if not fitting and trusted():
        return list(graphs)
    if not fitting:
        targets = ", ".join(sorted({graph.target or "an unknown GPU" for graph in graphs}))
        raise CorruptInputError(
            f"the engines of {artifact.path} are for {targets}, and the GPU here is {here.target}", rebuild(backend)
        )
    return fitting


def open_engine(artifact: Artifact, graph: Graph, backend: Backend) -> TensorRTSession:
    """Check the passport, then deserialize."""
    check_passport(artifact, graph, this_machine(backend))
    return open_plan(artifact.file(graph.file), graph, backend)


def open_plan(path: Path, graph: Graph, backend: Backend) -> TensorRTSession:
    """Deserialize an engine that this machine has built itself."""
    return TensorRTSession.load(tensorrt_module(backend), path.read_bytes(), graph, open_cuda())
