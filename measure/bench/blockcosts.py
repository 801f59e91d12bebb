"""What a transformer block costs on this device, by heads and MLP units: a table, measured on the session that ships.

All graphs are timed in one interleaved run, as bench does it, and count as shares of the dense tower's time. Attention
and MLP are taken to cost separately and additively (as in ZipLM, Kurtic et al. 2023, section 3.3), so the table needs
one graph a level and not one a pair. A block's own cost is the difference that the depth makes. The last block has
queries and an MLP for one token only, so fewer heads or units save less there, whichever block is the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.measure.estimate import FEWEST_ROUNDS, paired_speedup
from mmcompress.measure.interleave import Record, add_round
from mmcompress.measure.subjects import Subject
from mmcompress.progress import track
from mmcompress.runtime.machine import usable_cores
from mmcompress.runtime.scheduling import realtime

ROUND_S = 0.3
"""Measured time of each graph in a round."""
QUIET_ROUNDS = 6
"""Rounds whose fastest visit counts."""


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
    last: tuple[float, float]
    """Shares of these savings, by heads and by MLP units, that the last block has."""

    @property
    def base(self) -> float:
        """Of everything that is no block, less what the last block is cheaper."""
        return 1 - self.depth * self.block

    def cost(self, heads: int, mlp: int, last: bool = False) -> float:
        """Of a block of this size; between measured sizes by interpolation."""
        by_heads, by_mlp = self.last if last else (1.0, 1.0)
        return max(0.0, self.block - by_heads * _at(self.heads, heads) - by_mlp * _at(self.mlp, mlp))


def _at(savings: Mapping[int, float], size: int) -> float:
    known = sorted(savings)
    return float(np.interp(size, known, [savings[key] for key in known]))


def table_from_shares(
    shares: Sequence[float],
    dense_ms: float,
    depths: tuple[int, int],
    full: tuple[int, int],
    heads: Sequence[int],
    mlp: Sequence[int],
) -> BlockCosts:
    """Shares of the first graph's time, in the order: dense at both depths, each level of heads, each of MLP units, and
    dense but for the last block, which has the fewest heads, and then the fewest MLP units.

    Dense blocks have `full` heads and MLP units; there are depths[0] of them, or depths[1], which is fewer.
    """
    rest = iter(shares[2:])
    by_heads = [(1 - next(rest)) / depths[0] for _ in heads]
    by_mlp = [(1 - next(rest)) / depths[0] for _ in mlp]
    costs = BlockCosts(
        dense_ms=dense_ms,
        depth=depths[0],
        block=(1 - shares[1]) / (depths[0] - depths[1]),
        heads=_falling([*heads, full[0]], [*by_heads, 0.0]),
        mlp=_falling([*mlp, full[1]], [*by_mlp, 0.0]),
        last=(1.0, 1.0),
    )
    by_last_heads, by_last_mlp = (_share_at_last(saved, 1 - next(rest)) for saved in (costs.heads, costs.mlp))
    return replace(costs, last=(by_last_heads, by_last_mlp))


def _share_at_last(savings: Mapping[int, float], saved: float) -> float:
    """What the last block saves with the fewest units, over the mean of all blocks, which it is one of."""
    most = max(savings.values())
    return min(1.0, max(0.0, saved / most)) if most > 0 else 1.0


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


def shares_of_first(
    artifact: Artifact, backend: Backend, threads: int, rounds: int = FEWEST_ROUNDS
) -> tuple[list[float], float]:
    """Time of each graph over that of the first, at batch 1, and the first one's in milliseconds."""
    records = _timed(artifact, backend, threads, rounds)
    first = records[0]
    shares = [1.0, *(1 / paired_speedup(record.rounds, first.rounds).speedup for record in records[1:])]
    return shares, float(np.median(first.calls))


def quietest_ms(artifact: Artifact, backend: Backend, threads: int, rounds: int = QUIET_ROUNDS) -> list[float]:
    """Milliseconds of each graph at batch 1: the median call of its fastest visit, the one that others slowed least."""
    records = _timed(artifact, backend, threads, rounds)
    return [min(float(np.median(times)) for passes in one.rounds for times in passes) for one in records]


def _timed(artifact: Artifact, backend: Backend, threads: int, rounds: int) -> list[Record]:
    """The graphs in turn, all of them in every round."""
    subjects = [Subject(artifact, graph, backend, threads) for graph in artifact.manifest.graphs]
    records = [Record() for _ in subjects]
    with realtime(threads <= usable_cores()):
        for number in track(range(rounds), "timing blocks", rounds):
            add_round(records, [(subject, 1) for subject in subjects], ROUND_S, number)
    return records
