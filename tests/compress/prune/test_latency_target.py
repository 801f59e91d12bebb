"""Solving for a latency: the budget follows what is measured, the table is measured once, the floor is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from small_model import small_model

from mmcompress.compress.prune import latency_target
from mmcompress.compress.prune.latency_target import block_costs, measured_speedup, sizes_at_latency
from mmcompress.compress.prune.sizes import BlockErrors
from mmcompress.config import DataConfig, Precision, PruneConfig
from mmcompress.errors import UsageError
from mmcompress.measure.bench import blockcosts
from mmcompress.measure.bench.blockcosts import BlockCosts
from mmcompress.measure.estimate import Ratio

MODEL = small_model(4).config
ERRORS: list[BlockErrors] = [({1: 0.3, 4: 0.0}, {8: 0.4, 128: 0.0}, 0.9 + i) for i in range(4)]
TABLE = BlockCosts(1.0, 4, 0.24, {1: 0.06, 4: 0.0}, {8: 0.15, 128: 0.0}, (0.5, 0.1))


def config(share: float) -> PruneConfig:
    return PruneConfig(data=DataConfig(), target_latency=share, mlp_multiple=8, threads=1)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which everything takes 1.2 times what the table says, and 0.02 more."""

    def speedup(_: object, sizes: Sequence[tuple[int, int] | None], *__: object) -> Ratio:
        costs = [TABLE.cost(*size, last=index == 3) for index, size in enumerate(sizes) if size is not None]
        found = 1 / (1.2 * (TABLE.base + sum(costs)) + 0.02)
        return Ratio(found, 0.99 * found, 1.01 * found)

    monkeypatch.setattr(latency_target, "block_costs", lambda *_: TABLE)
    monkeypatch.setattr(latency_target, "measured_speedup", speedup)


@pytest.mark.parametrize("asked", [0.7, 0.5, 0.4])
def test_a_table_that_is_off_is_made_up_for(simulated: None, asked: float) -> None:
    sizes, facts = sizes_at_latency(MODEL, ERRORS, asked, config(asked))
    assert len(sizes) == 4
    assert abs(facts["measured"] / asked - 1) <= 0.05
    assert facts["ci95"][0] < facts["measured"] < facts["ci95"][1]
    assert abs(facts["attempts"][0] / asked - 1) > 0.1


def test_a_latency_below_the_floor_says_the_floor(simulated: None) -> None:
    with pytest.raises(UsageError) as caught:
        sizes_at_latency(MODEL, ERRORS, 0.03, config(0.03))
    assert caught.value.what == "the latency of the image tower cannot be pruned to 0.03x: the floor is 0.235x"
    assert "ask for 0.236x or more" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_table_is_measured_once_and_read_from_the_cache_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(blockcosts, "ROUND_S", 0.02)
    measured = block_costs(MODEL, 64, "onnxruntime", precision, 1)
    assert measured.depth == 4 and set(measured.heads) == {1, 2, 3, 4} and set(measured.mlp) == {64, 128}
    monkeypatch.setattr(latency_target, "shares_of_first", None)
    assert block_costs(MODEL, 64, "onnxruntime", precision, 1) == measured


def test_a_smaller_tower_is_timed_against_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_target, "RACE_S", 1.0)
    assert measured_speedup(MODEL, [(1, 8), None, None, None], "onnxruntime", "fp32", 1).low > 1
