"""A session runs one delivered graph: named arrays in, named arrays out, whatever the backend.

There is one implementation a backend and no base class; what they share is this Protocol and three functions. Which
file of an artifact a backend gets is decided here, in `graph_for`, because it is a property of the backend: x86 CPUs
are fastest with unsigned INT8 activations, TensorRT refuses anything but signed ones, and an engine fits one kind of
GPU. Buffers: a session never keeps an array that it was fed after `run` returns, and every array that it returns
belongs to the caller.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mmcompress.artifact import Artifact, Graph, Kind, TensorSpec
from mmcompress.config import Backend, Precision
from mmcompress.errors import MissingRequirementError, MMCompressError, UsageError, suggestion
from mmcompress.runtime.machine import usable_cores

Tower = Literal["image", "text"]
Feeds = Mapping[str, NDArray[Any]]

CPU_BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")
"""In order of preference."""
GPU_BACKENDS: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx")


class Session(Protocol):
    """A graph that is loaded and can be run, until it is closed."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    max_batch: int | None
    """Largest batch that one call takes; None where the graph sets no limit."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_session(artifact: Artifact, graph: Graph, backend: Backend, *, threads: int | None = None) -> Session:
    """Load one graph of a verified artifact on one backend; the caller closes the session."""
    check_runnable(artifact, backend)
    if backend in CPU_BACKENDS:
        return open_file(artifact.file(graph.file), graph, backend, threads=threads)
    from mmcompress.runtime.tensorrt import open_engine

    return open_engine(artifact, graph, backend)


def open_file(path: Path, graph: Graph, backend: Backend, *, threads: int | None = None) -> Session:
    """Load an ONNX file with the interface of `graph` on a CPU backend; the caller closes the session."""
    threads = threads or usable_cores()
    if backend == "openvino":
        from mmcompress.runtime.openvino import OpenVINOSession

        return OpenVINOSession(path, graph, threads)
    from mmcompress.runtime.onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(path, graph, threads)


def check_runnable(artifact: Artifact, backend: Backend) -> None:
    """Engines run on TensorRT, ONNX graphs on the CPU runtimes; anything else is the user's mistake."""
    if backend not in get_args(Backend):
        raise UsageError(f"there is no backend {backend!r}", suggestion(backend, get_args(Backend)))
    expected = Kind.ENGINE if backend in GPU_BACKENDS else Kind.ONNX
    if artifact.manifest.kind is not expected:
        hint = (
            f"build an engine of it first: mmcompress build {artifact.path}"
            if artifact.manifest.kind is Kind.ONNX
            else f"give an artifact of kind {expected.value!r}"
        )
        raise UsageError(f"{backend} runs no artifact of kind {artifact.manifest.kind.value!r} ({artifact.path})", hint)


def graph_for(artifact: Artifact, tower: Tower, backend: Backend, precision: Precision | None = None) -> Graph:
    """The graph of a tower that suits a backend; without a precision, the smallest that the artifact holds."""
    check_runnable(artifact, backend)
    graphs = [graph for graph in artifact.manifest.graphs if graph.tower == tower]
    if not graphs:
        raise UsageError(
            f"{artifact.path} has no {tower} graph",
            f"its graphs: {', '.join(graph.file for graph in artifact.manifest.graphs) or 'none'}",
        )
    if backend in GPU_BACKENDS:
        from mmcompress.runtime.tensorrt import built_for_this_gpu

        graphs = built_for_this_gpu(artifact, graphs, backend)
        order: tuple[tuple[str, str], ...] = (("int8", "signed"), ("fp16", "float"), ("fp32", "float"))
    else:
        order = (("int8", "unsigned"), ("int8", "signed"), ("fp32", "float"), ("fp16", "float"))
    fitting = {(graph.precision, graph.activations): graph for graph in reversed(graphs)}
    for kind in order:
        if kind in fitting and precision in (None, kind[0]):
            return fitting[kind]
    held = ", ".join(sorted({f"{graph.precision} ({graph.activations})" for graph in graphs}))
    raise UsageError(
        f"{artifact.path} has no {tower} graph in {precision or 'a precision'} that {backend} runs; it holds: {held}",
        "export it in that precision, or ask for another",
    )


def available_backends() -> dict[str, str | None]:
    """Each backend with None if it can run here, else the reason that it cannot."""
    return {backend: _missing(_PROBES[backend]) for backend in (*CPU_BACKENDS, *GPU_BACKENDS)}


def default_backend() -> Backend:
    """The first CPU runtime that works here."""
    reasons = available_backends()
    for backend in CPU_BACKENDS:
        if reasons[backend] is None:
            return backend
    raise MissingRequirementError(
        "no runtime for ONNX graphs works here: " + "; ".join(f"{name}: {reasons[name]}" for name in CPU_BACKENDS),
        "pip install 'mmcompress[openvino]' or 'mmcompress[onnxruntime]'",
    )


def _missing(probe: Callable[[], object]) -> str | None:
    try:
        probe()
    except MMCompressError as error:
        return error.what
    return None


def _probe(module: str, function: str, *arguments: object) -> Callable[[], object]:
    def probe() -> object:
        return getattr(importlib.import_module(f"mmcompress.runtime.{module}"), function)(*arguments)

    return probe


_PROBES: Mapping[Backend, Callable[[], object]] = {
    "onnxruntime": _probe("onnxruntime", "onnxruntime_module"),
    "openvino": _probe("openvino", "openvino_module"),
    "tensorrt": _probe("tensorrt", "this_machine", "tensorrt"),
    "tensorrt-rtx": _probe("tensorrt", "this_machine", "tensorrt-rtx"),
}


def check_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The arrays in the order of the inputs, contiguous; a wrong name, dtype or shape is named."""
    unknown = sorted(set(feeds) - {spec.name for spec in inputs})
    if unknown:
        raise UsageError(f"the graph has no input {unknown[0]!r}", suggestion(unknown[0], [s.name for s in inputs]))
    checked: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        if spec.name not in feeds:
            raise UsageError(f"the input {spec.name!r} was not given", f"it is {spec.dtype} of shape {shape_of(spec)}")
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            expected in (None, actual) for expected, actual in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(spec.dtype):
            raise UsageError(
                f"the input {spec.name!r} is {array.dtype} of shape {array.shape}",
                f"expected {spec.dtype} of shape {shape_of(spec)}",
            )
        checked[spec.name] = np.ascontiguousarray(array)
    return checked


def shape_of(spec: TensorSpec) -> str:
    return "(" + ", ".join("N" if size is None else str(size) for size in spec.shape) + ")"
