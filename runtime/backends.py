"""Backends: which there are, which file of an artifact each one runs, and how it is opened.

Which file a backend gets is a property of the backend: x86 CPUs are fastest with unsigned INT8 activations, TensorRT
refuses anything but signed ones, and an engine fits one kind of GPU. To add a backend, write its session beside the
others and give it a row of `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from mmcompress.artifact import Artifact
from mmcompress.config import EIGHT_BITS, Backend, Precision
from mmcompress.errors import MissingRequirementError, MMCompressError, UsageError, of_choices
from mmcompress.manifest import Graph, Kind
from mmcompress.runtime import onnxruntime, openvino, tensorrt
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.session import Session, Tower

Order = tuple[tuple[Precision, str], ...]
"""Precision and activations of a graph, the ones to take first."""
FOR_CPUS: Order = (("int8", "unsigned"), ("int8", "signed"), ("fp32", "float"), ("fp16", "float"))
FOR_TENSORRT: Order = (("int8", "signed"), ("fp8", "float"), ("fp16", "float"), ("fp32", "float"))


@dataclass(frozen=True)
class Runner:
    """What is to know about one backend."""

    runs: Kind
    order: Order
    check: Callable[[], object]
    """Raises MMCompressError where the backend cannot run."""
    open: Callable[[Path, Graph, int], Session] | None = None
    """Of a backend that runs ONNX: file, interface, threads; None where an engine has to be opened."""


BACKENDS: Mapping[Backend, Runner] = {
    "openvino": Runner(Kind.ONNX, FOR_CPUS, openvino.openvino_module, openvino.OpenVINOSession),
    "onnxruntime": Runner(Kind.ONNX, FOR_CPUS, onnxruntime.onnxruntime_module, onnxruntime.OnnxRuntimeSession),
    "tensorrt": Runner(Kind.ENGINE, FOR_TENSORRT, partial(tensorrt.this_machine, "tensorrt")),
    "tensorrt-rtx": Runner(Kind.ENGINE, FOR_TENSORRT, partial(tensorrt.this_machine, "tensorrt-rtx")),
}
"""In order of preference."""
CPU_BACKENDS: tuple[Backend, ...] = tuple(name for name, row in BACKENDS.items() if row.runs is Kind.ONNX)
GPU_BACKENDS: tuple[Backend, ...] = tuple(name for name, row in BACKENDS.items() if row.runs is Kind.ENGINE)


def open_session(artifact: Artifact, graph: Graph, backend: Backend, *, threads: int | None = None) -> Session:
    """Load one graph of a verified artifact on one backend; the caller closes the session."""
    check_runnable(artifact, backend)
    if backend in CPU_BACKENDS:
        return open_file(artifact.file(graph.file), graph, backend, threads=threads)
    return tensorrt.open_engine(artifact, graph, backend)


def open_file(path: Path, graph: Graph, backend: Backend, *, threads: int | None = None) -> Session:
    """Load an ONNX file with the interface of `graph` on a CPU backend; the caller closes the session."""
    opening = BACKENDS[backend].open
    assert opening is not None, backend
    return opening(path, graph, threads or usable_cores())


def check_runs_graphs(backend: str) -> None:
    """Raise where a backend takes no ONNX graphs, or does not run here: for before a model becomes graphs for it."""
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}", of_choices(backend, BACKENDS))
    row = BACKENDS[cast(Backend, backend)]
    if row.runs is not Kind.ONNX:
        raise UsageError(f"{backend} runs engines, which this is none of yet", "make one first: mmcompress build")
    row.check()


def check_runnable(artifact: Artifact, backend: Backend) -> None:
    """Engines run on TensorRT, ONNX graphs on the CPU runtimes; anything else is the user's mistake."""
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}", of_choices(backend, BACKENDS))
    expected = BACKENDS[backend].runs
    if artifact.manifest.kind is not expected:
        hint = (
            f"build an engine of it first: mmcompress build {artifact.path}"
            if artifact.manifest.kind is Kind.ONNX
            else f"give an artifact of kind {expected.value!r}"
        )
        raise UsageError(f"{backend} runs no artifact of kind {artifact.manifest.kind.value!r} ({artifact.path})", hint)


def graph_for(artifact: Artifact, tower: Tower, backend: Backend, precision: Precision | None = None) -> Graph:
    """The graph of a tower that suits a backend; without a precision, the smallest that the artifact holds.

    In 8 bits a tower of which nothing is an integer is its float graph, beside the other tower's integers.
    """
    check_runnable(artifact, backend)
    towers = {graph.tower for graph in artifact.manifest.graphs if graph.precision == precision}
    if precision in EIGHT_BITS and towers and tower not in towers:
        precision = None
    graphs = [graph for graph in artifact.manifest.graphs if graph.tower == tower]
    if not graphs:
        raise UsageError(
            f"{artifact.path} has no {tower} graph",
            f"its graphs: {', '.join(graph.file for graph in artifact.manifest.graphs) or 'none'}",
        )
    if backend in GPU_BACKENDS:
        graphs = tensorrt.built_for_this_gpu(artifact, graphs, backend)
    fitting = {(graph.precision, graph.activations): graph for graph in reversed(graphs)}
    for kind in BACKENDS[backend].order:
        if kind in fitting and precision in (None, kind[0]):
            return fitting[kind]
    held = ", ".join(sorted({f"{graph.precision} ({graph.activations})" for graph in graphs}))
    raise UsageError(
        f"{artifact.path} has no {tower} graph in {precision or 'a precision'} that {backend} runs; it holds: {held}",
        "export it in that precision, or ask for another",
    )


def available_backends() -> dict[str, str | None]:
    """Each backend with None if it can run here, else the reason that it cannot."""
    return {name: _missing(row.check) for name, row in BACKENDS.items()}


def own_backend(artifact: Artifact) -> Backend:
    """The library that an engine was built with; of graphs the first CPU runtime that works here."""
    if artifact.manifest.kind is Kind.ENGINE:
        return cast(Backend, artifact.manifest.facts.get("backend", "tensorrt"))
    return default_backend()


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


def _missing(check: Callable[[], object]) -> str | None:
    try:
        check()
    except MMCompressError as error:
        return error.what
    return None
