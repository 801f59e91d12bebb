"""The table of block costs, from shares that were made up to follow it, and from real graphs."""

from __future__ import annotations

import numpy as np
import pytest

from mmcompress.measure.bench.blockcosts import BlockCosts, table_from_shares

HEADS, MLP = (1, 2), (128, 256)


def tower(sizes: list[tuple[int, int]]) -> float:
    """1 ms of base; of each block 1 ms for four heads and 2 ms for 512 units, of which the last block saves parts."""
    dense = 1 + 3 * len(sizes)
    saved = [((4 - heads) / 4, 2 * (512 - mlp) / 512) for heads, mlp in sizes]
    parts = [(1.0, 1.0)] * (len(sizes) - 1) + [(0.5, 0.1)]
    return dense - sum(a * x + b * y for (a, b), (x, y) in zip(saved, parts, strict=True))


def table(noise: float = 0.0) -> BlockCosts:
    full = (4, 512)
    graphs = [[full] * 6, [full] * 3]
    graphs += [[(heads, 512)] * 6 for heads in HEADS] + [[(4, mlp)] * 6 for mlp in MLP]
    graphs += [[full] * 5 + [(1, 512)], [full] * 5 + [(4, 128)]]
    times = np.array([tower(graph) for graph in graphs])
    times[1:] *= 1 + noise * np.random.default_rng(0).standard_normal(len(times) - 1)
    return table_from_shares((times / times[0]).tolist(), times[0], (6, 3), full, HEADS, MLP)


def test_costs_that_add_up_are_found() -> None:
    found = table()
    assert found.base == pytest.approx(1 / 19)
    assert found.cost(4, 512) == pytest.approx(3 / 19) == pytest.approx(found.cost(4, 512, last=True))
    # the levels were all blocks', so that the last one's smaller savings are in their mean
    by_heads, by_mlp = (5 + 0.5) / 6, (5 + 0.1) / 6
    assert found.cost(2, 128) == pytest.approx((3 - by_heads * 0.5 - by_mlp * 1.5) / 19)
    assert found.cost(3, 384) == pytest.approx((3 - by_heads * 0.25 - by_mlp * 0.5) / 19)  # between measured sizes
    assert found.dense_ms == pytest.approx(19)


def test_the_last_block_saves_what_was_measured_there() -> None:
    found = table()
    assert found.cost(1, 512, last=True) == pytest.approx((3 - 0.5 * 0.75) / 19)
    assert found.cost(4, 128, last=True) == pytest.approx((3 - 0.1 * 1.5) / 19)


def test_a_smaller_size_never_costs_more() -> None:
    found = table(noise=0.2)
    costs = [found.cost(heads, 512) for heads in (1, 2, 3, 4)]
    assert costs == sorted(costs)
    costs = [found.cost(4, mlp) for mlp in range(128, 513, 32)]
    assert costs == sorted(costs)
