"""The ceiling: how many multiply-accumulates a second this machine reaches in one large matrix product.

A latency says little without what was possible. The product is computed by the backend that the model runs on, in FP32
and in INT8 with our own Q/DQ (unsigned activations, as CPUs get them), on the same threads; the fastest call of the
fastest shape counts, as a ceiling should. A model stays below it for what is no matrix product, for products that are
small, and where the memory is slower than the arithmetic.

The graph is written when it is needed, with `export.graph`, which needs the package `onnx`; without it there is no
ceiling, and the result says so. TensorRT's is left out: it would need an engine to be built first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, Precision
from mmcompress.errors import MissingRequirementError, MMCompressError
from mmcompress.manifest import Graph, Kind, TensorSpec
from mmcompress.measure.document import Ceiling
from mmcompress.measure.interleave import burst, warm_up
from mmcompress.measure.peak import random_call
from mmcompress.runtime.backends import GPU_BACKENDS, open_session
from mmcompress.runtime.machine import cpu_model

SHAPES = ((512, 1024, 1024), (1024, 512, 512))
"""Rows, depth and columns of the products: up to half a billion multiply-accumulates, on 3 to 8 MiB."""
ROWS = 64
"""Of an input, as a tower's tokens are: ONNX Runtime turns a product of two matrices into a float Gemm, Q/DQ or not."""
SECONDS = 0.25
Kernel = tuple[Backend, Precision, int | None]
"""A backend, a precision and the threads."""


def ceilings(kernels: Iterable[Kernel]) -> tuple[list[Ceiling], list[str]]:
    """The ceiling of each kernel, and a sentence for each that has none."""
    measured, missing = [], []
    for backend, precision, threads in dict.fromkeys(kernels):
        if backend in GPU_BACKENDS or threads is None:
            missing.append(f"No ceiling is measured on {backend}.")
            continue
        try:
            measured.append(ceiling(backend, precision, threads))
        except MMCompressError as error:
            missing.append(f"The ceiling of {precision} on {backend} is unknown: {error.what}.")
    return measured, list(dict.fromkeys(missing))


def ceiling(backend: Backend, precision: Precision, threads: int) -> Ceiling:
    """Billions of multiply-accumulates a second of the fastest product."""
    reached = []
    for shape in SHAPES:
        rows, depth, columns = shape
        with _product(precision, depth, columns) as artifact:
            graph = artifact.manifest.graphs[0]
            with open_session(artifact, graph, backend, threads=threads) as session:
                call = random_call(session, rows // ROWS)
                warm_up(call)
                fastest_ms = float(burst(call, SECONDS).min())
        reached.append((rows * depth * columns / fastest_ms / 1e6, shape))
    gmacs_per_s, shape = max(reached)
    return Ceiling(
        backend=backend,
        device=cpu_model(),
        precision=precision,
        threads=threads,
        gmacs_per_s=gmacs_per_s,
        shape=shape,
    )


def share(measured: Iterable[Ceiling], kernel: Kernel, macs: int | None, inputs_per_s: float | None) -> float | None:
    """Which share of its ceiling a model reaches, at so many inputs a second; None where either is not known."""
    known: dict[Kernel, float] = {(c.backend, c.precision, c.threads): c.gmacs_per_s for c in measured}
    return None if kernel not in known or not macs or not inputs_per_s else macs * inputs_per_s / 1e9 / known[kernel]


@contextmanager
def _product(precision: Precision, depth: int, columns: int) -> Iterator[Artifact]:
    """An artifact that lives as long as the context: (N, ROWS, depth) @ (depth, columns), normal weights."""
    try:
        from mmcompress.export.graph import GraphWriter, Numerics
    except ImportError as error:
        raise MissingRequirementError(f"the product cannot be written ({error})") from error

    int8 = precision == "int8"
    ranges = {"product": {"low": -4.0, "high": 4.0, "absmax": 4.0}}
    writer = GraphWriter(18, Numerics(activations="unsigned", ranges=ranges) if int8 else Numerics())
    weight = np.random.default_rng(0).standard_normal((depth, columns), dtype=np.float32)
    product = writer.linear("product", "values", weight, np.zeros(columns, np.float32))
    writer.reshape("embedding", product, (-1, columns))
    model = writer.model("ceiling", ("values", np.float32, (ROWS, depth)), columns)
    graph = Graph(
        file="product.onnx",
        tower="image",
        precision=precision,
        activations="unsigned" if int8 else "float",
        inputs=(TensorSpec(name="values", shape=(None, ROWS, depth), dtype="float32"),),
        outputs=(TensorSpec(name="embedding", shape=(None, columns), dtype="float32"),),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ceiling"
        with Artifact.create(path, kind=Kind.ONNX, stage="ceiling", key="ceiling") as draft:
            (draft.path / graph.file).write_bytes(model.SerializeToString())
            draft.graphs.append(graph)
        yield Artifact.open(path)
