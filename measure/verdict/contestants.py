"""Who takes part in a verdict: the float graphs and the INT8 candidates, written and opened on the backend.

Each contestant's graphs lie in a folder of its own, under the names that it is delivered with. A graph that the backend
does not load is left out with the reason, unless it is FP32, without which there is nothing to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmcompress.config import Backend, VerdictConfig
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.export.export import Variant
from mmcompress.export.graph import Numerics
from mmcompress.manifest import Graph
from mmcompress.measure.verdict.candidates import Candidate
from mmcompress.measure.verdict.contest import EMBED_BATCH, TOWERS, Contestant, Entrant
from mmcompress.measure.verdict.origins import Origin
from mmcompress.runtime.backends import GPU_BACKENDS, available_backends
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.session import Tower

Write = Callable[[str, Variant, Backend], Contestant]
"""(name, variant, backend) -> both towers' graphs of it."""


@dataclass(frozen=True)
class Tried:
    """A candidate: its graphs, or why the backend does not take them."""

    candidate: Candidate
    numerics: Numerics
    contestant: Contestant | None
    failed: str | None = None


def written(
    origin: Origin, folder: Path, config: VerdictConfig, name: str, variant: Variant, backend: Backend
) -> Contestant:
    """Both towers as `variant`, in a folder of their own; on a GPU as engines that are built from them here.

    A tower of which nothing is integers in that variant is what it is, a float graph, and is called so.
    """
    entrants: dict[Tower, Entrant] = {}
    threads = None if backend in GPU_BACKENDS else config.threads or usable_cores()
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for tower in TOWERS:
        own = variant
        if variant.numerics.activations != "float" and variant.numerics.kept.issuperset(origin.products(tower)):
            dtype = variant.numerics.dtype
            own = Variant("fp16" if dtype == np.float16 else "fp32", Numerics(dtype))
        path = place / own.file(tower)
        graph = origin.write(path, tower, name, own)
        if backend in GPU_BACKENDS:
            path = _engine(path, graph, backend, config.batch)
        entrants[tower] = Entrant(path, graph, backend, threads)
    return Contestant(name, variant.precision, entrants)


def _engine(path: Path, graph: Graph, backend: Backend, batch: int) -> Path:
    from mmcompress.export.audit import check_audit
    from mmcompress.export.engine import NATIVE, engine_from_onnx
    from mmcompress.export.tuning import Tuning, timing_cache_of
    from mmcompress.runtime.tensorrt import tensorrt_module, this_machine

    batches = (1, batch, max(batch, EMBED_BATCH))
    tuning = Tuning(timings=timing_cache_of(this_machine(backend))) if backend == "tensorrt" else None
    module = tensorrt_module(backend)
    engine = engine_from_onnx(module, path, graph.inputs, target=NATIVE, batches=batches, tuning=tuning)
    place = path.with_suffix(".engine")
    check_audit(engine.audit, place.name, allow_fallback=not engine.audit.quantized)
    place.write_bytes(engine.plan)
    return place


def float_contestants(write: Write, backend: Backend) -> tuple[list[Contestant], dict[str, str]]:
    """FP32 on the backend, on CPUs also on ONNX Runtime, on GPUs FP16 too; and of those that do not run, why.

    CPU runtimes compute FP16 graphs in FP32, so to race them is to race FP32 against itself.
    """
    floats = [write("fp32", Variant("fp32", Numerics()), backend)]
    missing: dict[str, str] = {}
    if backend in GPU_BACKENDS:
        half, reason = _opened(write, "fp16", Variant("fp16", Numerics(np.float16)), backend)
        if half is not None:
            floats.append(half)
        else:
            missing[f"fp16 on {backend}"] = str(reason)
    elif backend != "onnxruntime":
        reason = available_backends()["onnxruntime"]
        if reason is None:
            reference: Backend = "onnxruntime"
            towers = {tower: replace(entrant, backend=reference) for tower, entrant in floats[0].towers.items()}
            floats.append(Contestant("fp32", "fp32", towers))
        else:
            missing["fp32 on onnxruntime"] = reason
    return floats, missing


def tried_candidates(write: Write, backend: Backend, candidates: Iterable[tuple[Candidate, Numerics]]) -> list[Tried]:
    """Each candidate as graphs that the backend runs, or the reason that it does not; one has to run."""
    tried = []
    for candidate, numerics in candidates:
        contestant, reason = _opened(write, candidate.name, Variant(candidate.precision, numerics), backend)
        tried.append(Tried(candidate, numerics, contestant, reason))
    failed = [attempt.failed for attempt in tried if attempt.failed]
    if len(failed) == len(tried):
        raise UsageError(
            f"{backend} runs none of the INT8 graphs: {failed[0]}"
            if failed
            else "everything in this artifact stays in float, so there is no INT8 to judge",
            "quantize it again with a larger --max-drop, or ship FP16: mmcompress export --precision fp16",
        )
    return tried


def _opened(write: Write, name: str, variant: Variant, backend: Backend) -> tuple[Contestant | None, str | None]:
    """The contestant if the backend loads both of its graphs, else why not."""
    try:
        contestant = write(name, variant, backend)
        for tower in TOWERS:
            with contestant.towers[tower].open():
                pass
    except MMCompressError as error:  # one that is not built, fell back, or has no memory ends no verdict
        return None, error.what
    return contestant, None
