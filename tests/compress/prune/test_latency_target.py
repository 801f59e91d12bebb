"""Solving for a latency: the budget follows what is measured, the table is measured once, the floor is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import small_model
from tiny_conv import conv_config

from mmcompress.architecture import AnyImageConfig, ImageConfig
from mmcompress.compress.prune import latency_target, narrowing
from mmcompress.compress.prune.hidden import HiddenErrors, hidden_blocks, hidden_of_blocks
from mmcompress.compress.prune.latency_target import (
    Timing,
    block_costs,
    check_latency,
    measured_speedup,
    sizes_at_latency,
    stage_rates,
)
from mmcompress.compress.prune.narrowing import by_latency, hidden_at_latency
from mmcompress.compress.prune.shrink import resized
from mmcompress.compress.prune.sizes import BlockErrors
from mmcompress.config import DataConfig, Precision, PruneConfig
from mmcompress.convnet import ConvConfig
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

    def speedup(_: object, smaller: ImageConfig, __: object) -> Ratio:
        sizes = list(zip(smaller.heads, smaller.mlp, strict=True))
        costs = [TABLE.cost(*size, last=index == len(sizes) - 1) for index, size in enumerate(sizes)]
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


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_a_latency_that_the_smallest_tower_is_above_is_refused_by_the_better_of_two_races(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    model, asked = (MODEL, config) if kind == "vit" else (conv_config(), conv_share)
    timed: list[AnyImageConfig] = []

    def speedup(_: object, smaller: AnyImageConfig, *__: object) -> Ratio:
        timed.append(smaller)
        return Ratio(1.0, 0.9, 1.1) if len(timed) == 1 else Ratio(2.0, 1.9, 2.1)  # a noise beside the first

    monkeypatch.setattr(latency_target, "measured_speedup", speedup)
    check_latency(model, asked(0.47))  # within the interval of the race
    for _ in range(2):
        with pytest.raises(UsageError, match=r"cannot be pruned to 0\.4x: the floor is 0\.500x") as caught:
            check_latency(model, asked(0.4))
        assert "ask for 0.501x or more" in caught.value.hint
    least, again = timed
    assert least == again
    assert least.macs(model.embed_dim) < model.image.macs(model.embed_dim)
    assert not isinstance(least, ImageConfig) or (least.heads, least.mlp) == ((1,), (8,))


def conv_share(share: float) -> PruneConfig:
    return PruneConfig(data=DataConfig(), target_latency=share, channel_multiple=8, threads=1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_table_is_measured_once_and_read_from_the_cache_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(blockcosts, "ROUND_S", 0.02)
    measured = block_costs(MODEL, 64, Timing("onnxruntime", precision, 1))
    assert measured.depth == 4 and set(measured.heads) == {1, 2, 3, 4} and set(measured.mlp) == {64, 128}
    monkeypatch.setattr(latency_target, "shares_of_first", None)
    assert block_costs(MODEL, 64, Timing("onnxruntime", precision, 1)) == measured


def test_a_smaller_tower_is_timed_against_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_target, "RACE_S", 1.0)
    assert (
        measured_speedup(MODEL, resized(MODEL.image, [(1, 8), None, None, None]), Timing("onnxruntime", "fp32", 1)).low
        > 1
    )


def test_hidden_channels_go_until_the_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device where a multiply-accumulate of the third stage costs six times another one."""
    model, tower = conv_config(), conv_tower()
    rates = [1.0, 1.0, 6.0, 1.0, 1.0, 1.0]
    whole = _work(tower, rates)

    def speedup(_: object, smaller: AnyImageConfig, __: object) -> Ratio:
        assert isinstance(smaller, ConvConfig)
        found = whole / _work(smaller, rates)
        return Ratio(found, 0.99 * found, 1.01 * found)

    monkeypatch.setattr(narrowing, "stage_rates", lambda *_: [rate / whole for rate in rates])
    monkeypatch.setattr(latency_target, "measured_speedup", speedup)
    errors = {
        index: HiddenErrors({8: 0.1, channels: 0.0}, 0.3 if goes else None)
        for (index, goes), channels in zip(hidden_blocks(tower).items(), hidden_of_blocks(tower).values(), strict=True)
    }
    asked = PruneConfig(data=DataConfig(), target_latency=0.7, channel_multiple=8, threads=1)
    (whole_width,) = by_latency(model, asked)  # mobile attention reads channels between blocks
    found, facts = hidden_at_latency(model, whole_width, errors, 0.7, asked)
    sizes = dict(found)
    assert abs(facts["measured"] / 0.7 - 1) <= 0.05
    assert len(facts["attempts"]) < latency_target.ATTEMPTS
    third = [size for index, size in sizes.items() if index in (3, 4, 5)]
    assert None in third or 8 in third


def test_rates_are_measured_once_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(blockcosts, "ROUND_S", 0.02)
    model, tower, timing = conv_config(), conv_tower(), Timing("onnxruntime", "int8", 1)
    measured = stage_rates(model, tower, 8, timing)
    mean = 1 / tower.macs(model.embed_dim)
    assert measured[0] == measured[5] == mean  # no hidden channels there
    assert all(mean / latency_target.UNLIKELY <= rate <= mean * latency_target.UNLIKELY for rate in measured)
    monkeypatch.setattr(latency_target, "shares_of_first", None)
    assert stage_rates(model, tower, 8, timing) == measured


def conv_tower() -> ConvConfig:
    tower = conv_config().image
    assert isinstance(tower, ConvConfig)
    return tower


def _work(tower: ConvConfig, rates: list[float]) -> float:
    """Multiply-accumulates of the blocks, each as often as its stage says."""
    stages = [number for number, stage in enumerate(tower.stages) for _ in stage]
    places = zip(stages, tower.placed(), strict=True)
    return sum(
        rates[stage] * product.macs
        for stage, (name, block, inputs, side) in places
        for product in block.products(name, inputs, side)
    )
