"""Peak memory of one graph on one backend, from a process that does nothing else.

In a process that runs many graphs the peaks cannot be told apart, so each graph gets a child. The child reads VmHWM:
Linux' ru_maxrss starts at the peak of whoever started it, and would report the benchmark's own memory. Of a GPU it
reads by how much the used memory grew, which is right while nothing else starts there; that part has not run on one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.errors import MMCompressError, UsageError
from mmcompress.progress import say
from mmcompress.runtime.backends import GPU_BACKENDS, open_session
from mmcompress.runtime.nvml import open_gpu
from mmcompress.runtime.session import Feeds, Session
from mmcompress.strictjson import json_from_text, text_from_json

TIMEOUT_S = 600
FRAME = (480, 640)
"""Height and width of images that a graph takes of any size."""


@dataclass(frozen=True)
class Peak:
    """Most memory that was held at a time, in bytes; None where it is not known."""

    process: int | None = None
    device: int | None = None


def peaks(artifact: Path, file: str, backend: Backend, threads: int, batches: Sequence[int]) -> dict[int, Peak]:
    """By batch, of a process that does nothing but open a graph and run it; empty if unknown."""
    command = [sys.executable, "-m", "mmcompress.measure.peak"]
    command += [str(artifact), file, backend, str(threads)]
    command += [str(batch) for batch in sorted(batches)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode == 0:
            return {int(batch): Peak(*peak) for batch, peak in json_from_text(done.stdout.splitlines()[-1]).items()}
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        reason = str(error)
    say("bench", artifact.name, f"peak memory on {backend} is unknown: {reason}")
    return {}


def _own_peaks(
    path: str, file: str, backend: Backend, threads: int, batches: Sequence[int]
) -> dict[int, tuple[int | None, int | None]]:
    """What the child measures, (process, device) by batch: batches ascend, since a peak never falls."""
    artifact = Artifact.open(path)
    graph = next(graph for graph in artifact.manifest.graphs if graph.file == file)
    gpu = open_gpu() if backend in GPU_BACKENDS else None
    used_before = gpu.used_bytes() if gpu else None
    by_batch: dict[int, tuple[int | None, int | None]] = {}
    with open_session(artifact, graph, backend, threads=threads) as session:
        for batch in sorted(batches):
            call = random_call(session, batch)
            call()
            call()
            used = gpu.used_bytes() if gpu else None
            device = None if used is None or used_before is None else max(0, used - used_before)
            by_batch[batch] = (high_water_bytes(), device)
    return by_batch


def high_water_bytes() -> int | None:
    """Of this program only: Linux' ru_maxrss is inherited from the process that started it, VmHWM is not."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform != "darwin":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def random_call(session: Session, batch: int, seed: int = 0) -> Callable[[], object]:
    """A call of a session with random inputs of its shape."""
    feeds = random_feeds(session, batch, seed)
    return lambda: session.run(feeds)


def random_feeds(session: Session, batch: int, seed: int = 0) -> Feeds:
    """Random inputs of a session's shape; free axes beside the batch are those of images, and become a `FRAME`."""
    spec = session.inputs[0]
    if session.max_batch is not None and batch > session.max_batch:
        raise UsageError(f"the engine takes batches up to {session.max_batch}, not {batch}", "give other --batches")
    rng = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        frame = [side or usual for side, usual in zip(spec.shape[1:], (*FRAME, 3), strict=True)]
        return {spec.name: rng.integers(0, 256, (batch, *frame), dtype=np.uint8)}
    sizes = [size for size in spec.shape[1:] if size is not None]
    if len(sizes) != len(spec.shape) - 1:
        raise UsageError(f"the input {spec.name!r} has free axes beside the batch: {spec.shape}", "export it again")
    return {spec.name: rng.standard_normal((batch, *sizes), dtype=np.float32).astype(spec.dtype)}


if __name__ == "__main__":
    path, file, backend, threads, *batches = sys.argv[1:]
    try:
        by_batch = _own_peaks(path, file, cast(Backend, backend), int(threads), [int(b) for b in batches])
        print(text_from_json(by_batch))
    except MMCompressError as error:
        raise SystemExit(f"error: {error.what}") from error
