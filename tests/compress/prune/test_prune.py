"""Pruning: nothing pruned is the identity, dead units cost nothing, and the importance is the loss's own slope."""

from __future__ import annotations

import pytest
import torch
from small_model import outputs as outputs_of
from small_model import small_model
from torch.nn import functional as F

from mmcompress.compress.prune.importance import taylor
from mmcompress.compress.prune.prune import uniform_sizes
from mmcompress.compress.prune.shrink import shrunk
from mmcompress.compress.train.objective import distillation_loss
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.config import DataConfig, PruneConfig, validated
from mmcompress.errors import UsageError
from mmcompress.model import DualEncoder


def _anchors(seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(20, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)


ANCHORS = (_anchors(0), _anchors(1))


@pytest.fixture
def model() -> DualEncoder:
    return small_model()


@pytest.fixture
def pairs() -> TrainingBatch:
    torch.manual_seed(1)
    teacher = tuple(F.normalize(torch.randn(6, 32), dim=-1) for _ in range(2))
    tokens = torch.randint(0, 50, (6, 12))
    return TrainingBatch(list("abcdef"), torch.randn(6, 3, 32, 32), tokens, torch.arange(6), (teacher[0], teacher[1]))


def config(**changes: object) -> PruneConfig:
    return PruneConfig.model_validate({"data": DataConfig(), **changes})


def outputs(model: DualEncoder, pairs: TrainingBatch) -> torch.Tensor:
    return outputs_of(model, pairs.pixels, pairs.tokens)


def pruned_by_taylor(model: DualEncoder, pairs: TrainingBatch, chosen: PruneConfig) -> DualEncoder:
    """Both towers by scores alone, as with `refit = false`."""
    scores, pruned = taylor(model, [pairs], ANCHORS), model
    for name, inputs in (("image", pairs.pixels), ("text", pairs.tokens)):
        if name in chosen.towers:
            sizes = uniform_sizes(getattr(model.config, name), chosen.heads, chosen.mlp, chosen.mlp_multiple)
            pruned = shrunk(pruned, name, sizes, [inputs], scores, refitted=False)
    return pruned


def test_pruning_nothing_is_the_identity(model: DualEncoder, pairs: TrainingBatch) -> None:
    pruned = pruned_by_taylor(model, pairs, config(heads=1, mlp=1))
    assert pruned.config == model.config
    assert torch.equal(outputs(model, pairs), outputs(pruned, pairs))


def test_pruning_dead_units_changes_no_output(model: DualEncoder, pairs: TrainingBatch) -> None:
    with torch.no_grad():
        for tower in (model.image, model.text):
            for block in tower.blocks:
                block.out.weight[:, 16:48] = 0  # heads 1 and 2
                block.fc2.weight[:, 10:74] = 0
    scores = taylor(model, [pairs], ANCHORS)
    assert scores["image.blocks.0.out"].argsort()[:2].sort().values.tolist() == [1, 2]
    pruned = pruned_by_taylor(model, pairs, config(heads=0.5, mlp=0.5))
    assert pruned.config.image.heads == (2, 2) and pruned.config.image.mlp == (64, 64)
    torch.testing.assert_close(outputs(model, pairs), outputs(pruned, pairs), atol=1e-6, rtol=0)


def test_importance_is_the_change_of_the_loss_to_first_order(model: DualEncoder, pairs: TrainingBatch) -> None:
    """Closing the gate of one unit by a hair, by finite differences, on a single pair (so that |.| is outside)."""
    assert pairs.teacher is not None
    one = TrainingBatch(
        pairs.keys[:1],
        pairs.pixels[:1],
        pairs.tokens[:1],
        pairs.groups[:1],
        (pairs.teacher[0][:1], pairs.teacher[1][:1]),
    )
    assert one.teacher is not None
    scores = taylor(model, [one], ANCHORS)
    block, step = model.image.blocks[1], 1e-2
    with torch.no_grad():
        base = distillation_loss(model(one.pixels, one.tokens), one.teacher, ANCHORS)
        for unit in (0, 31, 100):
            column = block.fc2.weight[:, unit].clone()
            block.fc2.weight[:, unit] = (1 - step) * column
            moved = distillation_loss(model(one.pixels, one.tokens), one.teacher, ANCHORS)
            block.fc2.weight[:, unit] = column
            measured = abs((moved - base).item()) / step
            assert measured == pytest.approx(scores["image.blocks.1.fc2"][unit].item(), rel=0.1, abs=2e-5)


@pytest.mark.parametrize("share", ["0.5x", "0.5", 0.5])
def test_a_share_may_be_written_with_a_times_sign(share: object) -> None:
    assert config(target_latency=share).target == ("latency", 0.5)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"target_macs": "2x"}, "target_macs is '2x': Input should be less than or equal to 1"),
        ({"target_params": "half"}, "target_params is 'half': Input should be a valid number"),
        ({"target_macs": 0.5, "target_params": 0.5}, "target_macs and target_params exclude each other: give one"),
        ({"target_latency": 0.5, "towers": ("text",)}, "target_latency is of the image tower"),
    ],
)
def test_a_wrong_target_is_named(wrong: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        validated(PruneConfig, {"data": {}, **wrong}, "mmcompress prune")
    assert what in caught.value.what


@pytest.mark.parametrize("target", ["target_macs", "target_params", "target_latency"])
@pytest.mark.parametrize("wrong", ["70%", "4ms", "70", "2x"])
def test_a_wrong_share_is_told_the_forms(target: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=f"{target} is '{wrong}': Input should be ") as caught:
        validated(PruneConfig, {"data": {}, target: wrong}, "mmcompress prune")
    assert "to keep, `0.5` or `0.5x`" in caught.value.hint


def test_one_tower_can_be_left_alone(model: DualEncoder, pairs: TrainingBatch) -> None:
    pruned = pruned_by_taylor(model, pairs, config(heads=0.5, mlp=0.25, towers=("image",)))
    assert pruned.config.text == model.config.text
    assert pruned.config.image.heads == (2, 2) and pruned.config.image.mlp == (32, 32)
    assert pruned.config.params == sum(p.numel() for p in pruned.parameters())
