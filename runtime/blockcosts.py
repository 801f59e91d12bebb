"""What a transformer block costs on this device, by heads and MLP units: a table, measured on the session that ships.

All graphs are timed in turns in one run, so that what else the machine does falls on all alike. Other programs only
ever add time, so a graph's time is the lower quartile over its turns; it counts as a share of the dense tower's.
Attention and MLP are taken to cost separately and additively (as in ZipLM, Kurtic et al. 2023, section 3.3), so the
table needs one graph a level and not one a pair. A block's own cost is the difference that the depth makes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.progress import track
from mmcompress.runtime.peak import random_call
from mmcompress.runtime.session import open_session

TURNS = 15
QUARTILE = 0.25
CALLS = 3
"""Calls that count in a turn; one before them brings the weights back into the caches."""


@dataclass(frozen=True)
class BlockCosts:
    """Shares of the dense tower's latency."""

    dense_ms: float
    depth: int
    block: float
    """Of one whole block."""
    heads: Mapping[int, float]
    """Heads -> what a block saves with only so many of them."""
    mlp: Mapping[int, float]
    """MLP units -> what a block saves with only so many of them."""

    @property
    def base(self) -> float:
        """Of everything that is no block."""
        return 1 - self.depth * self.block

    def cost(self, heads: int, mlp: int) -> float:
        """Of a block of this size; between measured sizes by interpolation."""
        return max(0.0, self.block - _at(self.heads, heads) - _at(self.mlp, mlp))


def _at(savings: Mapping[int, float], size: int) -> float:
    known = sorted(savings)
    return float(np.interp(size, known, [savings[key] for key in known]))


def table_from_times(
    times_ms: NDArray[np.float64],
    depths: tuple[int, int],
    full: tuple[int, int],
    heads: Sequence[int],
    mlp: Sequence[int],
) -> BlockCosts:
    """Times (turns, graphs) in the order: dense at both depths, each level of heads, each level of MLP units.

    Dense blocks have `full` heads and MLP units; there are depths[0] of them, or depths[1], which is fewer.
    """
    shares = shares_of_first(times_ms)
    block = float(1 - shares[1]) / (depths[0] - depths[1])
    saved = [float(share) for share in (1 - shares[2:]) / depths[0]]
    return BlockCosts(
        dense_ms=float(np.quantile(times_ms[:, 0], QUARTILE)),
        depth=depths[0],
        block=block,
        heads=_falling([*heads, full[0]], [*saved[: len(heads)], 0.0]),
        mlp=_falling([*mlp, full[1]], [*saved[len(heads) :], 0.0]),
    )


def shares_of_first(times_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """(turns, graphs) -> (graphs,): each one's time over that of the first."""
    quartiles = np.quantile(times_ms, QUARTILE, axis=0)
    shares: NDArray[np.float64] = quartiles / quartiles[0]
    return shares


def _falling(sizes: Sequence[int], saved: Sequence[float]) -> dict[int, float]:
    """The nearest savings that never grow with the size, by pooling neighbours that do (Barlow et al. 1972)."""
    pools: list[list[float]] = []
    for value in saved:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-1]) > np.mean(pools[-2]):
            last = pools.pop()
            pools[-1] += last
    mended = [float(np.mean(pool)) for pool in pools for _ in pool]
    return {size: value - mended[-1] for size, value in zip(sizes, mended, strict=True)}


def times_in_turns(
    artifact: Artifact, backend: Backend, threads: int | None, turns: int = TURNS, calls: int = CALLS
) -> NDArray[np.float64]:
    """(turns, graphs) milliseconds of the fastest call at batch 1, every graph visited in each turn."""
    sessions = [open_session(artifact, graph, backend, threads=threads) for graph in artifact.manifest.graphs]
    try:
        runs = [random_call(session, 1) for session in sessions]
        for run in runs:
            run()
        found = np.empty((turns, len(runs)))
        rng = np.random.default_rng(0)
        for turn in track(range(turns), "timing", turns):
            for index in rng.permutation(len(runs)):
                runs[index]()
                marks = [time.perf_counter_ns()]
                for _ in range(calls):
                    runs[index]()
                    marks.append(time.perf_counter_ns())
                found[turn, index] = np.diff(marks).min() / 1e6
        return found
    finally:
        for session in sessions:
            session.close()
