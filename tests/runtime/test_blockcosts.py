"""The table of block costs, from times that were made up to follow it, and from real graphs."""

from __future__ import annotations

import numpy as np
import pytest

from mmcompress.runtime.blockcosts import table_from_times


def times(noise: float = 0.0) -> np.ndarray:
    """A tower of 6 blocks: 1 ms of base, 1 ms for four heads and 2 ms for 512 units of each block, both linear."""

    def tower(depth: int, heads: int, mlp: int) -> float:
        return 1 + depth * (heads / 4 + 2 * mlp / 512)

    graphs = [(6, 4, 512), (3, 4, 512), (6, 1, 512), (6, 2, 512), (6, 4, 128), (6, 4, 256)]
    load = np.array([1.0, 3.0, 1.5, 1.0, 2.0])[:, None]  # the machine is busy in some turns
    shaken = 1 + noise * np.random.default_rng(0).standard_normal((5, len(graphs)))
    return load * np.array([[tower(*graph) for graph in graphs]]) * shaken


def test_costs_that_add_up_are_found_whatever_the_load() -> None:
    table = table_from_times(times(), (6, 3), (4, 512), (1, 2), (128, 256))
    assert table.base == pytest.approx(1 / 19)
    assert table.cost(4, 512) == pytest.approx(3 / 19)
    assert table.cost(2, 128) == pytest.approx(1 / 19)
    assert table.cost(3, 384) == pytest.approx((0.75 + 1.5) / 19)  # between measured sizes
    assert table.dense_ms == pytest.approx(19)


def test_a_smaller_size_never_costs_more() -> None:
    table = table_from_times(times(noise=0.2), (6, 3), (4, 512), (1, 2), (128, 256))
    costs = [table.cost(heads, 512) for heads in (1, 2, 3, 4)]
    assert costs == sorted(costs)
    costs = [table.cost(4, mlp) for mlp in range(128, 513, 32)]
    assert costs == sorted(costs)
