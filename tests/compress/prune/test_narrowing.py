"""A limit over channels between blocks and hidden ones: what carries nothing goes, and what both leave is the limit."""

from __future__ import annotations

import pytest
import torch
from test_stream_channels import STAGES
from tiny_conv import conv_config, conv_model, conv_pixels

from mmcompress.architecture import AnyImageConfig
from mmcompress.compress.prune import latency_target, narrowing
from mmcompress.compress.prune.hidden import hidden_floor, hidden_of_blocks, narrower
from mmcompress.compress.prune.narrowing import apart, by_latency, by_size, pruned_to_target
from mmcompress.config import DataConfig, PruneConfig
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import Bottleneck, ConvTower
from mmcompress.errors import UsageError
from mmcompress.measure.estimate import Ratio
from mmcompress.model import DualEncoder

WIDE = [
    [{"kind": "conv", "channels": 32, "kernel": 3, "stride": 2}],
    *([{**block, "channels": 32, "hidden": 32} for block in stage] for stage in STAGES[1:3]),
    [{"kind": "conv", "channels": 32, "kernel": 1}],
]
INPUTS = list((conv_pixels(48) + 3 * conv_pixels(48, 1, 1)).split(24))
"""Of colours so different that embeddings are too."""


def model_of() -> DualEncoder:
    return conv_model(stages=WIDE, stem=32)


def tower_of(model: DualEncoder) -> ConvConfig:
    assert isinstance(model.config.image, ConvConfig)
    return model.config.image


def asked(**target: float) -> PruneConfig:
    return PruneConfig.model_validate({"data": DataConfig(), "channel_multiple": 8, **target})


def bottlenecks(model: DualEncoder) -> list[Bottleneck]:
    assert isinstance(model.image, ConvTower)
    return [block for block in model.image.blocks if isinstance(block, Bottleneck) and "project" in block._modules]


def hidden_alone(model: DualEncoder) -> float:
    """The share of MACs below which channels between blocks have to go."""
    return by_size(model.config, asked(target_macs=0.5), "macs")[0].floor()


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_limit_that_hidden_channels_alone_do_not_reach_is_kept(kind: str) -> None:
    model = model_of()
    share = 0.9 * by_size(model.config, asked(), kind)[0].floor()
    pruned, facts = pruned_to_target(model, INPUTS, {}, asked(**{f"target_{kind}": share}))
    before, after = tower_of(model), tower_of(pruned)
    counts = (after.macs(16) / before.macs(16), after.params(16) / before.params(16))
    assert counts[("macs", "params").index(kind)] <= share
    assert facts["channels_between_blocks"] < 1 and after.stem < before.stem
    assert "1" not in facts["moved"]
    assert torch.isfinite(pruned.encode_image(INPUTS[0])).all()


def test_where_hidden_channels_carry_nothing_they_alone_go() -> None:
    model = model_of()
    with torch.no_grad():
        for block in bottlenecks(model):
            block.project.weight[:, :24] = 0
    whole = by_size(model.config, asked(), "macs")[0]
    share = 1.001 * (whole.base + sum(whole.cost(index, 8) for index in hidden_of_blocks(whole.tower)))
    pruned, facts = pruned_to_target(model, INPUTS, {}, asked(target_macs=share))
    assert facts["channels_between_blocks"] == 1.0
    assert len(facts["moved"]) == 2  # the next one is worse, and ends it
    assert tower_of(pruned).stem == 32
    assert set(hidden_of_blocks(tower_of(pruned)).values()) == {8}


def test_where_channels_between_blocks_carry_nothing_they_go_first() -> None:
    """Every block reads and writes the last eight channels alone, and hidden channels all carry something."""
    model = model_of()
    with torch.no_grad():
        assert isinstance(model.image, ConvTower)
        for name, module in model.image.named_modules():
            if name.endswith(("project", "conv", "stem", "start")):
                module.norm.weight[:16] = 0  # type: ignore[union-attr]
                module.norm.bias[:16] = 0  # type: ignore[union-attr]
    share = 1.1 * hidden_alone(model)
    _, facts = pruned_to_target(model, INPUTS, {}, asked(target_macs=share))
    assert facts["channels_between_blocks"] < 1
    assert facts["moved"][f"{facts['channels_between_blocks']:g}"] < 0.5 * facts["moved"]["1"]


def test_what_is_fitted_does_not_judge() -> None:
    """A head that reads more channels than there are images gives those that it was fitted on exactly."""
    fitted, judging = apart(INPUTS)
    assert [len(x) for x in (*fitted, *judging)] == [18, 18, 6, 6]
    assert all(torch.equal(torch.cat(pair), x) for *pair, x in zip(fitted, judging, INPUTS, strict=True))
    few = [INPUTS[0][:12]]
    _, facts = pruned_to_target(model_of(), few, {}, asked(target_macs=1.1 * hidden_alone(model_of())))
    assert set(facts["moved"]) > {"1"} and min(facts["moved"].values()) > 1e-3


def test_a_latency_that_hidden_channels_alone_do_not_reach_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose time is that of multiply-accumulates, a tenth more than is composed."""
    model = model_of()
    full = tower_of(model).macs(16)

    def speedup(_: object, smaller: AnyImageConfig, __: object) -> Ratio:
        found = full / (1.1 * smaller.macs(16))
        return Ratio(found, 0.99 * found, 1.01 * found)

    monkeypatch.setattr(narrowing, "stage_rates", lambda *_: [1 / full] * len(WIDE))
    monkeypatch.setattr(narrowing, "narrow_latencies", lambda _, towers, __: [one.macs(16) / full for one in towers])
    monkeypatch.setattr(latency_target, "measured_speedup", speedup)
    share = 0.9 * by_latency(model.config, asked(target_latency=0.5))[0].floor()
    pruned, facts = pruned_to_target(model, INPUTS, {}, asked(target_latency=share))
    assert abs(facts["measured"] / share - 1) <= 0.05
    assert 1.1 * tower_of(pruned).macs(16) / full == pytest.approx(facts["measured"])
    assert facts["channels_between_blocks"] < 1


def test_the_time_of_narrower_towers_is_measured_once(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(latency_target, "shares_of_first", lambda *_: ([1.0, 0.8, 0.6], 2.0))
    model, timing = model_of().config, latency_target.Timing("onnxruntime", "fp32", 1)
    towers = list(narrower(tower_of(model_of())).values())[1:3]
    assert latency_target.narrow_latencies(model, towers, timing) == [0.8, 0.6]
    monkeypatch.setattr(latency_target, "shares_of_first", None)
    assert latency_target.narrow_latencies(model, towers, timing) == [0.8, 0.6]


def test_what_even_the_narrowest_tower_is_above_is_refused() -> None:
    model = model_of()
    floor = hidden_floor(model.config, tower_of(model), "macs", 8)
    assert floor < 0.7 * hidden_alone(model)
    with pytest.raises(UsageError, match=rf"the macs of the image tower cannot be .* the floor is {floor:.3f}x"):
        pruned_to_target(model, INPUTS, {}, asked(target_macs=0.9 * floor))


def test_beside_mobile_attention_channels_between_blocks_stay() -> None:
    attending = conv_config().image
    assert isinstance(attending, ConvConfig) and list(narrower(attending)) == [1.0]
    shares = narrower(tower_of(model_of()))
    assert list(shares) == [1.0, 0.75, 0.625]  # of 32 channels, in multiples of 8
    assert [tower.stem for tower in shares.values()] == [32, 24, 16]
