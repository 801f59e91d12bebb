"""Shrinking with a refit: what is spare costs nothing, and what is not is made up for."""

from __future__ import annotations

import pytest
import torch
from small_model import outputs, random_pixels, random_tokens, small_model
from torch import Tensor

from mmcompress.compress.prune.shrink import Size, TowerName, counted, resized, shrunk, sizes_of
from mmcompress.model import DualEncoder

PIXELS, TOKENS = random_pixels(48), random_tokens(48)
NEW = (random_pixels(16, 1), random_tokens(16, 1))


def batches(name: TowerName) -> list[Tensor]:
    return list((PIXELS if name == "image" else TOKENS).split(20))


def both(model: DualEncoder, sizes: list[Size], refitted: bool = True) -> DualEncoder:
    for name in ("image", "text"):
        model = shrunk(model, name, sizes, batches(name), {}, refitted)
    return model


def test_full_sizes_give_the_model_itself() -> None:
    model = small_model()
    assert both(model, sizes_of(model.config.image)) is model


def test_dead_units_and_heads_go_and_nothing_changes() -> None:
    model = small_model()
    with torch.no_grad():
        for tower in (model.image, model.text):
            for block in tower.blocks:
                block.out.weight[:, 16:48] = 0  # heads 1 and 2
                block.fc2.weight[:, 10:74] = 0
    pruned = both(model, [(2, 64), (2, 64)])
    assert pruned.config.image.heads == (2, 2) and pruned.config.text.mlp == (64, 64)
    torch.testing.assert_close(outputs(pruned, *NEW), outputs(model, *NEW), atol=2e-5, rtol=0)


def test_a_block_that_adds_nothing_goes_and_nothing_changes() -> None:
    model = small_model(3)
    with torch.no_grad():
        for tower in (model.image, model.text):
            for linear in (tower.blocks[1].out, tower.blocks[1].fc2):
                linear.weight.zero_()
    pruned = both(model, [(4, 128), None, (4, 128)])
    assert pruned.config.image.depth == pruned.config.text.depth == 2
    torch.testing.assert_close(outputs(pruned, *NEW), outputs(model, *NEW), atol=2e-5, rtol=0)


def test_the_other_copy_of_a_unit_takes_over_its_weight() -> None:
    """Units 64 to 127 are copies of 0 to 63; without them and without a refit half of the MLP's output is gone."""
    model = small_model()
    with torch.no_grad():
        for tower in (model.image, model.text):
            for block in tower.blocks:
                block.fc1.weight[64:] = block.fc1.weight[:64]
                block.fc1.bias[64:] = block.fc1.bias[:64]
    dense = outputs(model, *NEW)
    mended = (outputs(both(model, [(4, 64), (4, 64)]), *NEW) - dense).norm()
    scores = {f"{t}.blocks.{i}.fc2": torch.arange(128.0) for t in ("image", "text") for i in range(2)}
    plain = model
    for name in ("image", "text"):
        plain = shrunk(plain, name, [(4, 64), (4, 64)], batches(name), scores, refitted=False)
    assert mended < 0.03 * (outputs(plain, *NEW) - dense).norm()


@pytest.mark.parametrize("sizes", [[(2, 48), (3, 64)], [(4, 128), None], [None, (4, 96)]])
def test_a_refit_brings_the_outputs_nearer(sizes: list[Size]) -> None:
    model = small_model()
    dense = outputs(model, PIXELS, TOKENS)
    scores = {
        f"{t}.blocks.{i}.{p}": torch.arange(128.0) for t in ("image", "text") for i in (0, 1) for p in ("out", "fc2")
    }
    scores = {name: score[:4] if name.endswith("out") else score for name, score in scores.items()}
    distances = []
    for refitted in (False, True):
        pruned = model
        for name in ("image", "text"):
            pruned = shrunk(pruned, name, sizes, batches(name), scores, refitted)
        assert pruned.config.image == resized(model.config.image, sizes)
        distances.append(float((outputs(pruned, PIXELS, TOKENS) - dense).norm()))
    assert distances[1] < distances[0]


def test_the_pooled_token_counts_for_half_and_what_follows_for_nothing() -> None:
    model = small_model()
    images = counted(model.image, PIXELS[:2])
    assert images.tolist() == [[8.5] + [1.0] * 16] * 2
    tokens = torch.tensor([[1, 2, 3, 49, 7, 7, 7, 7, 7, 7, 7, 7]])
    assert counted(model.text, tokens).tolist() == [[1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0]]
