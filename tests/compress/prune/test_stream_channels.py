"""Channels between blocks: streams are told apart, dead channels cost nothing, and what is lost is made up for."""

from __future__ import annotations

import pytest
import torch
from tiny_conv import IMAGE, conv_model, conv_pixels, uib
from torch import Tensor

from mmcompress.compress.early import fits_prune
from mmcompress.compress.prune.hidden import stream_widths, streams_of, with_streams
from mmcompress.compress.prune.prune import pruned_model
from mmcompress.compress.prune.streams import narrowed_streams
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.config import PruneConfig
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import BatchNorm, ConvTower
from mmcompress.errors import UsageError
from mmcompress.model import DualEncoder

STAGES = [
    IMAGE["stages"][0],  # type: ignore[index]
    [
        {"kind": "fused", "channels": 16, "hidden": 24, "kernel": 3, "stride": 2},
        {"kind": "fused", "channels": 16, "hidden": 24, "kernel": 3},
    ],
    [uib(24, 32, 3, 5, 2), uib(24, 32, 0, 3), uib(24, 32, 5, 0), uib(24, 32, 0, 0)],
    [{"kind": "conv", "channels": 32, "kernel": 1}],
]
BATCHES, NEW = list(conv_pixels(64).split(20)), conv_pixels(16, 1)


def model_of(**changes: object) -> tuple[DualEncoder, ConvTower, ConvConfig]:
    model = conv_model(stages=STAGES, stem=16, **changes)
    assert isinstance(model.image, ConvTower) and isinstance(model.config.image, ConvConfig)
    return model, model.image, model.config.image


@torch.no_grad()
def last_map(model: DualEncoder) -> Tensor:
    assert isinstance(model.image, ConvTower)
    x: Tensor = model.image.stem(NEW)
    for block in model.image.blocks:
        x = block(x)
    return x


@torch.no_grad()
def embedded(model: DualEncoder) -> Tensor:
    return model.encode_image(NEW)


def test_residual_blocks_stay_in_their_stream() -> None:
    _, _, config = model_of()
    assert streams_of(config) == [(0, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 3), (3, 3), (3, 4)]
    assert stream_widths(config, 1.0, 8) == [16, 8, 16, 24, 32]
    assert stream_widths(config, 0.5, 8) == [8, 8, 8, 8, 16] or stream_widths(config, 0.5, 8) == [8, 8, 8, 16, 16]
    assert with_streams(config, stream_widths(config, 1.0, 8)) == config


def test_rounding_makes_no_residual_block_of_one_that_is_none() -> None:
    stages = [[uib(16, 32, 0, 3, 2)], [uib(24, 32, 0, 3), uib(24, 32, 0, 3)]]
    config = ConvConfig.model_validate({**IMAGE, "stages": stages})
    smaller = with_streams(config, stream_widths(config, 0.5, 16))
    was, now = ([b.residual(i) for _, b, i, _ in tower.placed()] for tower in (config, smaller))
    assert was == now == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 0.001}, "width: 0.001 of the 32 channels of the image tower is nearer to none than to 8"),
        ({"width": 0.5, "width_multiple": 4096}, "nearer to none than to 4096, and they are kept in multiples of 4096"),
        ({"width": 0.001, "towers": ["text"]}, "channels of the text tower is nearer to none"),
        ({"channel_multiple": 64}, "channel_multiple 64 is more than the 32 hidden channels of the largest bottleneck"),
        (
            {"mlp_multiple": 4096},
            "mlp_multiple 4096 is more than the .* units of the largest MLP of the text",
        ),
    ],
)
def test_what_keeps_no_channels_or_all_is_refused(changes: dict[str, object], said: str) -> None:
    config = PruneConfig.model_validate({"data": {}, **changes})
    with pytest.raises(UsageError, match=said):
        fits_prune(config, model_of()[0].config, {})
    possible = PruneConfig.model_validate({"data": {}, "width": 0.5, "channel_multiple": 32})
    fits_prune(possible, model_of()[0].config, {})


def ids(count: int) -> Tensor:
    return torch.ones(count, model_of()[0].config.text.context, dtype=torch.int64)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_share_that_rounds_to_all_channels_is_said(tower: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, _ = model_of()
    samples = [TrainingBatch([], x, ids(len(x)), torch.arange(len(x)), None) for x in BATCHES]
    config = PruneConfig.model_validate({"data": {}, "width": 0.99, "mlp": 1, "heads": 1, "towers": [tower]})
    pruned, _ = pruned_model(model, samples, (torch.ones(2, 16), torch.ones(2, 16)), config)
    assert pruned.config == model.config
    assert "width 0.99 rounds to all channels: none goes" in capsys.readouterr().err


def test_all_channels_give_the_model_itself() -> None:
    model, _, config = model_of()
    assert narrowed_streams(model, stream_widths(config, 1.0, 8), BATCHES, True) is model


@pytest.mark.parametrize("refitted", [True, False])
def test_channels_that_carry_nothing_go_and_nothing_changes(refitted: bool) -> None:
    """The first half of the third stream is zero behind every block that writes it."""
    model, tower, _ = model_of()
    with torch.no_grad():
        for norm in (*(tower.blocks[index].project.norm for index in (3, 4, 5, 6)), tower.blocks[5].start.norm):
            norm.weight[:8] = 0
            norm.bias[:8] = 0
    narrow = narrowed_streams(model, [16, 8, 16, 16, 32], BATCHES, refitted)
    assert [block.channels for block in narrow.config.image.blocks[3:7]] == [16] * 4
    atol = 2e-2 if refitted else 1e-5  # the ridge
    torch.testing.assert_close(embedded(narrow), embedded(model), atol=atol, rtol=0)


def test_a_refit_mends_most_of_what_was_lost() -> None:
    model, _, _ = model_of()
    wanted, widths = last_map(model), [16, 8, 16, 16, 32]

    def missed(refitted: bool) -> float:
        found = last_map(narrowed_streams(model, widths, BATCHES, refitted))
        return float((found - wanted).square().mean() / wanted.var())

    assert missed(True) < 0.7 * missed(False)


def test_batch_norms_state_what_is_given() -> None:
    pixels = torch.cat(BATCHES)
    model, _, _ = model_of()
    narrow = narrowed_streams(model, [8, 8, 8, 16, 24], [pixels], True)
    for name, norm in narrow.image.named_modules():
        if isinstance(norm, BatchNorm) and "stem" not in name and "start" not in name and "middle" not in name:
            seen: list[Tensor] = []
            handle = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            with torch.no_grad():
                narrow.encode_image(pixels)
            handle.remove()
            torch.testing.assert_close(norm.mean, seen[0].mean((0, 2, 3)), atol=2e-3, rtol=1e-2, msg=name)
