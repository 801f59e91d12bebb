"""What the halves of an image graph cost on this device, each measured, all in one interleaved run as `bench` does it.

Of a deep tower every second or third block is tried: a half is a file, and all of them together would be as large as
the tower times its depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.config import Backend
from mmcompress.errors import require
from mmcompress.export.export import specs
from mmcompress.manifest import Graph
from mmcompress.measure.interleave import Record, add_rounds
from mmcompress.measure.split.document import DeviceTimes
from mmcompress.measure.split.halves import Cuts, halves, stream_of
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.machine import cpu_model, usable_cores
from mmcompress.runtime.scheduling import realtime
from mmcompress.runtime.session import Session

ROUNDS, ROUND_S = (5, 5), 0.2
"""Rounds, and the measured time of each half in one."""
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
    records = [Record() for _ in contenders]
    with realtime(threads <= usable_cores()):
        add_rounds(records, [(one, 1) for one in contenders], ROUND_S, ROUNDS, 0, "timing halves")
    full, *parts = (float(np.median(record.calls)) for record in records)
    return DeviceTimes(
        graph=sha256,
        device=cpu_model(),
        backend=backend,
        threads=threads,
        behind=(0, *cuts, depth),
        first_ms=(0.0, *parts[0::2], full),
        second_ms=(full, *parts[1::2], 0.0),
    )
