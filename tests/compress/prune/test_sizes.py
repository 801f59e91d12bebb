"""Sizes under a budget: exact costs, monotone errors, and harm that is measured where it is known."""

from __future__ import annotations

import pytest
import torch
from small_model import random_pixels, small_model

from mmcompress.compress.prune.harm import measured_errors
from mmcompress.compress.prune.shrink import resized
from mmcompress.compress.prune.sizes import block_choices, levels, sizes_within, static_cost
from mmcompress.errors import UsageError

MODEL = small_model(3).config
ERRORS = [({1: 0.3, 4: 0.0}, {32: 0.4, 64: 0.5, 128: 0.0}, 0.1 * (i + 1)) for i in range(3)]


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_the_chosen_sizes_keep_to_the_configs_own_count(kind: str, share: float) -> None:
    cost, base, full = static_cost(MODEL, "image", kind)
    sizes = sizes_within(block_choices(MODEL.image, ERRORS, 32, cost), share, base, full, "it")
    smaller = resized(MODEL.image, sizes)
    count = smaller.macs(MODEL.embed_dim) if kind == "macs" else smaller.params(MODEL.embed_dim)
    assert count <= share * full
    assert count > 0.6 * share * full


def test_a_target_below_the_floor_says_the_floor() -> None:
    cost, base, full = static_cost(MODEL, "image", "macs")
    with pytest.raises(UsageError) as caught:
        sizes_within(block_choices(MODEL.image, ERRORS, 32, cost), 0.05, base, full, "the macs of the image tower")
    smallest = resized(MODEL.image, [None, None, (1, 32)])
    floor = smallest.macs(MODEL.embed_dim) / full
    assert caught.value.what == f"the macs of the image tower cannot be pruned to 0.05x: the floor is {floor:.3f}x"
    assert caught.value.exit_code == 2


def test_more_kept_never_counts_as_worse_and_one_block_stays() -> None:
    cost, *_ = static_cost(MODEL, "image", "macs")
    blocks = block_choices(MODEL.image, ERRORS, 32, cost)
    assert [any(choice.size is None for choice in choices) for choices in blocks] == [True, True, False]
    errors = {choice.size: choice.error for choice in blocks[0]}
    assert errors[4, 64] == pytest.approx(0.4)  # measured 0.5, but fewer units did with 0.4
    assert errors[4, 96] == pytest.approx(0.2) and errors[2, 128] == pytest.approx(0.2)
    assert errors[4, 128] == 0


def test_levels_are_multiples_below_the_full_size() -> None:
    assert levels(4, 1) == [1, 2, 3]
    assert levels(1, 1) == [] and levels(32, 32) == []
    assert levels(4096, 32)[0] == 32 and levels(4096, 32)[-1] == 4064 and len(levels(4096, 32)) == 6


def test_harm_is_none_where_units_are_dead_and_a_block_adds_nothing() -> None:
    model = small_model(3)
    with torch.no_grad():
        model.image.blocks[0].fc2.weight[:, :64] = 0
        model.image.blocks[1].out.weight.zero_()
        model.image.blocks[1].fc2.weight.zero_()
    errors = measured_errors(model, "image", list(random_pixels(40).split(16)), {}, 64, refitted=True)
    assert errors[0][1][64] == pytest.approx(0, abs=1e-5)
    assert errors[1][2] == pytest.approx(0, abs=1e-5) and errors[1][0][1] == pytest.approx(0, abs=1e-5)
    assert errors[2][2] > 1e-3 and errors[0][2] > 1e-3
    assert all(by_size[full] == 0 for heads, units, _ in errors for by_size, full in ((heads, 4), (units, 128)))
