"""The measuring of a verdict: graphs that are not yet delivered, raced in one interleaved run and embedded with.

What is raced are files of a work folder, on a CPU runtime or as an engine that was built here, through the same
sessions that run the delivered ones. All of them are in one run (`interleave.py`), so every ratio is of paired visits,
and the run ends early once the ratio that decides is known well enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.config import Backend, Precision
from mmcompress.manifest import Graph
from mmcompress.measure.agreement import best, cosines, flipped, lost_matches
from mmcompress.measure.estimate import Ratio, paired_speedup, round_medians, summary
from mmcompress.measure.interleave import Record, add_rounds, no_look
from mmcompress.measure.retrieval import Floats, Ints
from mmcompress.measure.verdict.document import HeldOutDrift, TowerLatency
from mmcompress.runtime.backends import CPU_BACKENDS, open_file
from mmcompress.runtime.session import Feeds, Session, Tower

TOWERS: tuple[Tower, ...] = ("image", "text")
ROUND_S = 0.2
"""Measured time of each graph in a round."""
SCREENING_ROUNDS = 5
ROUNDS = 10
"""Fewest of the final race."""
NARROW = 0.03
"""Width of the interval at which the race ends, of which 0.02 are there in any case."""
EMBED_BATCH = 32
Embedded = tuple[Floats, Floats]
"""Images (N, D) and texts (M, D)."""


@dataclass(frozen=True, eq=False)
class Entrant:
    """One graph, as a file, on one backend."""

    path: Path
    graph: Graph
    backend: Backend
    threads: int | None
    """None on a GPU."""

    def open(self) -> Session:
        if self.backend in CPU_BACKENDS:
            return open_file(self.path, self.graph, self.backend, threads=self.threads)
        from mmcompress.runtime.tensorrt import open_plan

        return open_plan(self.path, self.graph, self.backend)

    @property
    def file_bytes(self) -> int:
        """Of the graph, and of the weights that lie beside it in a file of their own."""
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))

    @property
    def memory_bytes(self) -> int:
        return 3 * self.file_bytes


@dataclass(frozen=True, eq=False)
class Contestant:
    """Both towers of a model in one precision on one backend."""

    name: str
    """The candidate of INT8 graphs, else the precision."""
    precision: Precision
    towers: Mapping[Tower, Entrant]

    @property
    def backend(self) -> Backend:
        return self.towers["image"].backend


Records = Mapping[tuple[Contestant, Tower], Record]
"""What was measured of each tower's graph."""


def timed_contestants(
    contestants: Sequence[Contestant],
    towers: Sequence[Tower],
    batch: int,
    rounds: tuple[int, int],
    seed: int,
    decided: Callable[[Records], bool] = lambda _: False,
    look: Callable[[], None] = no_look,
) -> Records:
    """Of every contestant's towers: between the fewest and the most rounds, until it is `decided`."""
    records = {(contestant, tower): Record() for contestant in contestants for tower in towers}
    combinations = [(contestant.towers[tower], batch) for contestant, tower in records]
    add_rounds(list(records.values()), combinations, ROUND_S, rounds, seed, "race", lambda: decided(records), look)
    return records


def speedup(records: Records, fast: Contestant, slow: Contestant, tower: Tower = "image", seed: int = 0) -> Ratio:
    """How many times as fast the first is as the second."""
    return paired_speedup(records[fast, tower].rounds, records[slow, tower].rounds, seed)


def tower_latency(record: Record, batch: int, ratio: Ratio | None) -> TowerLatency:
    """Figures of one graph, without its histogram; `ratio` is to the fastest float graph."""
    times = summary(record.calls, batch)
    return TowerLatency(
        samples=times.samples,
        p50_ms=times.p50_ms,
        p90_ms=times.p90_ms,
        p99_ms=times.p99_ms,
        throughput_ips=times.throughput_ips,
        rounds_ms=tuple(round_medians(record.rounds)),
        against_fastest_float=ratio.document() if ratio else None,
    )


def outputs(entrant: Entrant, inputs: NDArray[Any], feeds: Callable[[Session, NDArray[Any]], Feeds]) -> Floats:
    """(N, …) inputs as they are stored, each batch made into feeds -> (N, D), exactly as the graph gives them."""
    with entrant.open() as session:
        step = min(EMBED_BATCH, session.max_batch or EMBED_BATCH)
        output = session.outputs[0].name
        parts = [
            session.run(feeds(session, inputs[start : start + step]))[output] for start in range(0, len(inputs), step)
        ]
    return np.concatenate(parts)


def drift_between(reference: Embedded, other: Embedded, image_group: Ints) -> HeldOutDrift:
    """How far a model moved from FP32 on pairs; image_group (N,) is the text that belongs to each image."""
    texts = np.arange(len(reference[1]))
    back, other_back = reference[::-1], other[::-1]
    images, text = (cosines(a, b) for a, b in zip(reference, other, strict=True))
    return HeldOutDrift(
        flip_rate=float(flipped(*reference, best(*reference), best(*other)).mean()),
        text_flip_rate=float(flipped(*back, best(*back), best(*other_back)).mean()),
        cosine_mean=float(images.mean()),
        cosine_p01=float(np.quantile(images, 0.01)),
        text_cosine_mean=float(text.mean()),
        text_cosine_p01=float(np.quantile(text, 0.01)),
        r10_lost=lost_matches(reference, other, image_group, texts),
    )
