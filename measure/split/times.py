"""What the halves of an image graph cost on this device, each measured in turn, all in one run.

Each call comes after a pause, unlike in `bench`: a half waits for the other device and for the line, and meanwhile its
weights leave the caches and its threads fall asleep. Of the demo's teacher, each half took 0.3 to 0.5 ms longer so.

Of a deep tower every second or third block is tried: a half is a file, and all of them together would be as large as
the tower times its depth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.config import Backend
from mmcompress.errors import require
from mmcompress.export.export import specs
from mmcompress.manifest import Graph
from mmcompress.measure.interleave import SessionPool, time_ms
from mmcompress.measure.split.document import DeviceTimes
from mmcompress.measure.split.halves import Cuts, halves, stream_of
from mmcompress.progress import track
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.machine import cpu_model, memory_budget_bytes, usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.runtime.session import Session

ROUNDS, CALLS = 5, 8
"""Rounds, in each of which sessions are opened anew, and the measured calls of each half in one."""
PAUSE_S = 0.01
"""Before each call."""
CUTS = 12
"""Largest number of cuts that are tried."""


@dataclass(frozen=True, eq=False)
class Half:
    """A file that is half of a graph, or the whole; `graph` says what it is fed and gives."""

    path: Path
    graph: Graph
    backend: Backend
    threads: int

    @property
    def memory_bytes(self) -> int:
        return 3 * self.path.stat().st_size

    def open(self) -> Session:
        return open_file(self.path, self.graph, self.backend, threads=self.threads)


def written(model: Any, path: Path, whole: Graph, backend: Backend, threads: int) -> Half:
    """A graph as a file."""
    require("onnx", "compress").save_model(model, str(path))
    ends = {"inputs": specs(model.graph.input), "outputs": specs(model.graph.output)}
    return Half(path, whole.model_copy(update={"file": path.name, **ends}), backend, threads)


def tried_cuts(model: Any, where: str) -> Cuts:
    """As `stream_of`, of a deep tower fewer."""
    every = stream_of(model, where)
    step = -(-len(every) // CUTS)
    return {behind: tensor for behind, tensor in every.items() if behind % step == 0 or len(every) < CUTS}


def measured_times(
    model: Any, cuts: Cuts, sha256: str, whole: Graph, backend: Backend, threads: int, folder: Path
) -> DeviceTimes:
    """A table of one graph, cut in these ways, on this device; the halves are written into a folder."""
    depth = max(stream_of(model, whole.file)) + 1
    contenders = [written(model, folder / "whole.onnx", whole, backend, threads)]
    for behind, (tensor, _, _) in cuts.items():
        for name, half in zip(("first", "second"), halves(model, tensor, "fp16"), strict=True):
            contenders.append(written(half, folder / f"{name}-{behind}.onnx", whole, backend, threads))
    full, *parts = _timed_ms(contenders, threads)
    return DeviceTimes(
        graph=sha256,
        device=cpu_model(),
        backend=backend,
        threads=threads,
        behind=(0, *cuts, depth),
        first_ms=(0.0, *parts[0::2], full),
        second_ms=(full, *parts[1::2], 0.0),
    )


def _timed_ms(contenders: Sequence[Half], threads: int) -> list[float]:
    """Median milliseconds of each at batch 1."""
    times: list[list[float]] = [[] for _ in contenders]
    rng = np.random.default_rng(0)
    with realtime(threads <= usable_cores()):
        for seed in track(range(ROUNDS), "timing halves", total=ROUNDS):
            with SessionPool(memory_budget_bytes()) as pool:
                for number in rng.permutation(len(contenders)):
                    times[number] += paused_ms(pool.call(contenders[number], 1, seed))
    return [float(np.median(some)) for some in times]


def paused_ms(call: Callable[[], object]) -> list[float]:
    """Milliseconds of some calls, each after a pause."""
    times = []
    for _ in range(CALLS):
        time.sleep(PAUSE_S)
        times.append(time_ms(call))
    return times
