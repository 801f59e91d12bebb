"""Bottlenecks made smaller: what is spare costs nothing, what is not is made up for, and BatchNorms tell the truth."""

from __future__ import annotations

import pytest
import torch
from tiny_conv import conv_config, conv_model, conv_pixels
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.prune.bottlenecks import hidden_errors, shrunk_bottlenecks
from mmcompress.compress.prune.hidden import (
    HiddenSizes,
    check_hidden_latency,
    check_hidden_share,
    hidden_blocks,
    hidden_choices,
    hidden_cost,
    hidden_floor,
    hidden_of_blocks,
    hidden_within,
    resized_hidden,
    uniform_hidden,
)
from mmcompress.compress.prune.importance import magnitudes, taylor
from mmcompress.compress.train.objective import distillation_loss
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import BatchNorm, Bottleneck, ConvTower
from mmcompress.errors import UsageError
from mmcompress.model import DualEncoder

BATCHES = list(conv_pixels(48).split(20))
NEW = conv_pixels(16, 1)
HALF: dict[int, int | None] = {1: 8, 2: 16, 3: 8, 4: 16, 5: 8, 8: 16, 9: 16}


def tower_of(model: DualEncoder) -> tuple[ConvTower, ConvConfig]:
    assert isinstance(model.image, ConvTower) and isinstance(model.config.image, ConvConfig)
    return model.image, model.config.image


def bottleneck(model: DualEncoder, index: int) -> Bottleneck:
    block = tower_of(model)[0].blocks[index]
    assert isinstance(block, Bottleneck)
    return block


def projection_norm(model: DualEncoder, index: int) -> BatchNorm:
    norm = bottleneck(model, index).project.norm
    assert norm is not None
    return norm


@torch.no_grad()
def embedded(model: DualEncoder, pixels: Tensor = NEW) -> Tensor:
    return model.encode_image(pixels)


@torch.no_grad()
def missed(model: DualEncoder, pruned: DualEncoder) -> float:
    """Mean square error of the last map, as a share of its variance."""
    wanted, found = (_last_map(tower_of(each)[0]) for each in (model, pruned))
    return float((found - wanted).square().mean() / wanted.var())


def _last_map(tower: ConvTower) -> Tensor:
    x: Tensor = tower.stem(NEW)
    for block in tower.blocks:
        x = block(x)
    return x


def pruned_to(model: DualEncoder, sizes: HiddenSizes, refitted: bool = True) -> DualEncoder:
    return shrunk_bottlenecks(model, sizes, BATCHES, {}, refitted)


def test_the_bottlenecks_of_a_tower_and_which_may_go() -> None:
    tower = tower_of(conv_model())[1]
    assert hidden_blocks(tower) == {1: False, 2: True, 3: False, 4: True, 5: True, 8: True, 9: False}
    assert hidden_of_blocks(tower) == {1: 16, 2: 24, 3: 16, 4: 32, 5: 16, 8: 32, 9: 32}


def test_a_smaller_config_names_its_channels_and_a_block_that_goes_is_not_in_it() -> None:
    tower = tower_of(conv_model())[1]
    smaller = resized_hidden(tower, {2: None, 4: 8})
    assert [len(stage) for stage in smaller.stages] == [1, 1, 3, 3, 1, 1]
    assert hidden_of_blocks(smaller) == {1: 16, 2: 16, 3: 8, 4: 16, 7: 32, 8: 32}
    assert resized_hidden(tower, {}) == tower


def test_full_sizes_give_the_model_itself() -> None:
    model = conv_model()
    assert pruned_to(model, dict(hidden_of_blocks(tower_of(model)[1]))) is model


def test_dead_channels_go_and_nothing_changes() -> None:
    model = conv_model()
    with torch.no_grad():
        for index, size in HALF.items():
            bottleneck(model, index).project.weight[:, : hidden_of_blocks(tower_of(model)[1])[index] - (size or 0)] = 0
    pruned = shrunk_bottlenecks(model, HALF, BATCHES, magnitudes(model), False)
    assert hidden_of_blocks(tower_of(pruned)[1]) == HALF
    torch.testing.assert_close(embedded(pruned), embedded(model), atol=1e-5, rtol=0)


def test_a_bottleneck_that_adds_nothing_goes_and_nothing_changes() -> None:
    model = conv_model()
    with torch.no_grad():
        for index in (2, 5):
            projection_norm(model, index).weight.zero_()
            projection_norm(model, index).bias.zero_()
    pruned = pruned_to(model, {2: None, 5: None})
    assert tower_of(pruned)[1].depth == tower_of(model)[1].depth - 2
    torch.testing.assert_close(embedded(pruned), embedded(model), atol=2e-4, rtol=0)


def test_the_other_copy_of_a_channel_takes_over_its_weight() -> None:
    """The second half of the channels are copies of the first; without them and without a refit half of it is gone."""
    model = conv_model()
    hidden = hidden_of_blocks(tower_of(model)[1])
    with torch.no_grad():
        for index, channels in hidden.items():
            block, half = bottleneck(model, index), channels // 2
            for part in ("expand", "middle"):
                if part in block._modules:
                    for tensor in block.get_submodule(part).state_dict().values():
                        tensor[half : 2 * half] = tensor[:half]
    halves = {index: channels // 2 for index, channels in hidden.items()}
    assert missed(model, pruned_to(model, halves)) < 0.2 < 0.8 < missed(model, pruned_to(model, halves, refitted=False))


def test_a_refit_mends_most_of_what_was_lost() -> None:
    model = conv_model()
    assert missed(model, pruned_to(model, HALF)) < 0.7 * missed(model, pruned_to(model, HALF, refitted=False))


def test_batch_norms_state_what_the_fitted_projections_give() -> None:
    """So the model that trains on, by statistics of its batches, begins where the pruned one is."""
    pixels = torch.cat(BATCHES)
    pruned = shrunk_bottlenecks(conv_model(), HALF, [pixels], {}, True)
    for index in HALF:
        seen: list[Tensor] = []
        norm = projection_norm(pruned, index)
        handle = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        embedded(pruned, pixels)
        handle.remove()
        torch.testing.assert_close(norm.mean, seen[0].mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(norm.variance, seen[0].var((0, 2, 3), correction=0), atol=1e-3, rtol=1e-2)


def test_an_output_that_layer_scale_leaves_out_stays_as_it_was() -> None:
    model = conv_model()
    scale = bottleneck(model, 4).scale
    assert scale is not None
    with torch.no_grad():
        scale[3] = 0
    pruned = pruned_to(model, HALF)
    assert all(tensor.isfinite().all() for tensor in pruned.state_dict().values())
    assert torch.isfinite(embedded(pruned)).all()


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_channels_that_nobody_reads_score_nothing_and_go_first(score: str) -> None:
    model = conv_model()
    with torch.no_grad():
        bottleneck(model, 4).project.weight[:, :8] = 0
    scores = magnitudes(model) if score == "magnitude" else taylor(model, [_pairs()], _anchors())
    found = scores["image.blocks.4.project"]
    assert found.shape == (32,)
    assert found[:8].max() == 0 < found[8:].median()
    order = torch.argsort(found, stable=True)[:8].tolist()
    pruned = shrunk_bottlenecks(
        model, {4: 24}, BATCHES, {"image.blocks.4.project": scores["image.blocks.4.project"]}, False
    )
    kept = [channel for channel in range(32) if channel not in order]
    expand, whole = bottleneck(pruned, 4).expand.weight, bottleneck(model, 4).expand.weight
    assert torch.equal(expand, whole[kept])


def test_taylor_is_the_slope_of_the_loss_by_a_gate_on_the_channel() -> None:
    model, pairs, anchors = conv_model(), _pairs(1), _anchors()
    assert pairs.teacher is not None
    gate = torch.ones(32, requires_grad=True)
    handle = bottleneck(model, 4).project.register_forward_pre_hook(lambda _, inputs: inputs[0] * gate[:, None, None])
    distillation_loss(model(pairs.pixels, pairs.tokens), pairs.teacher, anchors).backward()
    handle.remove()
    model.zero_grad()
    assert gate.grad is not None
    scores = taylor(model, [pairs], anchors)["image.blocks.4.project"]
    torch.testing.assert_close(scores, gate.grad.abs(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_costs_add_up_to_what_the_config_says(kind: str) -> None:
    model = conv_model()
    tower, sizes = tower_of(model)[1], {**HALF, 2: None}
    cost, base, full = hidden_cost(model.config, tower, kind)
    smaller = resized_hidden(tower, sizes)
    assert full == (tower.macs(16) if kind == "macs" else tower.params(16))
    counted = smaller.macs(16) if kind == "macs" else smaller.params(16)
    assert base + sum(cost(index, size) for index, size in sizes.items()) == counted


def test_under_a_limit_the_bottleneck_that_is_not_needed_gives_most() -> None:
    model = conv_model()
    tower = tower_of(model)[1]
    with torch.no_grad():
        bottleneck(model, 4).project.weight[:, :24] = 0
    errors = hidden_errors(model, BATCHES, {}, 8, True)
    assert errors[4].by_channels[8] < 1e-4 < errors[1].by_channels[8]
    assert errors[3].removed is None and errors[4].removed is not None
    cost, base, full = hidden_cost(model.config, tower, "macs")
    choices = hidden_choices(tower, errors, 8, cost)
    sizes = hidden_within(choices, 0.9, base, full, "the macs of the image tower")
    assert sizes[4] == 8
    assert resized_hidden(tower, sizes).macs(16) <= 0.9 * tower.macs(16)


def test_what_is_below_the_floor_says_the_floor() -> None:
    model = conv_config()
    tower = tower_of(conv_model())[1]
    floor = hidden_floor(model, tower, "macs", 8)
    with pytest.raises(UsageError, match=f"the floor is {floor:.3f}x"):
        check_hidden_share(model, tower, "macs", floor - 0.01, 8)
    check_hidden_share(model, tower, "macs", floor + 0.001, 8)
    with pytest.raises(UsageError, match=r"cannot be pruned to 0\.01x"):
        check_hidden_latency(model, tower, 0.01, 8)


def test_uniform_shares_come_in_multiples() -> None:
    tower = tower_of(conv_model())[1]
    assert uniform_hidden(tower, 0.5, 8) == {1: 8, 2: 16, 3: 8, 4: 16, 5: 8, 8: 16, 9: 16}
    assert uniform_hidden(tower, 0.1, 16) == dict.fromkeys(HALF, 16)
    assert uniform_hidden(tower, 1, 8) == {}


def _pairs(count: int = 6) -> TrainingBatch:
    generator = torch.Generator().manual_seed(5)
    teacher = [F.normalize(torch.randn(count, 16, generator=generator), dim=-1) for _ in range(2)]
    tokens = torch.randint(0, 48, (count, 12), generator=generator)
    names = [str(index) for index in range(count)]
    return TrainingBatch(names, conv_pixels(count, 3), tokens, torch.arange(count), (teacher[0], teacher[1]))


def _anchors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    first, second = (F.normalize(torch.randn(20, 16, generator=generator), dim=-1) for _ in range(2))
    return first, second
