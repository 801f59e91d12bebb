"""What a student takes over of its teacher: everything is the teacher, and what is fitted is nearer to it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.train.inherit import inherited
from mmcompress.compress.train.pairs import TrainingBatch
from mmcompress.model import DualEncoder, initialize
from mmcompress.transformer import Block

TOWER = {"width": 32, "head_dim": 8, "heads": (4,) * 4, "mlp": (128,) * 4}
CONFIG = DualEncoderConfig.model_validate(
    {
        "embed_dim": 16,
        "image": {**TOWER, "image_size": 32, "patch": 8},
        "text": {**TOWER, "vocab": 60, "context": 12, "eos_token_id": 59},
    }
)


@pytest.fixture(scope="module")
def teacher() -> DualEncoder:
    model = initialize(DualEncoder(CONFIG), 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".blocks." in name and weight.ndim == 2:
                weight *= 4  # so that blocks do something
    return model.eval()


def batch(seed: int, size: int = 64) -> TrainingBatch:
    draw = torch.Generator().manual_seed(seed)
    pixels = F.interpolate(torch.randn(size, 3, 4, 4, generator=draw), size=32, mode="bilinear")
    tokens = torch.randint(0, 59, (size, 12), generator=draw)
    tokens[:, -1] = 59
    return TrainingBatch([str(n) for n in range(size)], pixels, tokens, torch.arange(size), None)


SAMPLES = [batch(seed) for seed in range(4)]
UNSEEN = batch(9)


@torch.no_grad()
def embedded(model: DualEncoder) -> dict[str, Tensor]:
    return {"image": model.encode_image(UNSEEN.pixels), "text": model.encode_text(UNSEEN.tokens)}


def test_inheriting_everything_is_the_teacher(teacher: DualEncoder) -> None:
    student = embedded(inherited(teacher, 1.0, ("image", "text"), SAMPLES))
    assert all(torch.equal(student[tower], own) for tower, own in embedded(teacher).items())


def test_what_is_fitted_is_nearer_to_the_teacher_on_samples_that_it_has_not_seen(teacher: DualEncoder) -> None:
    own = embedded(teacher)
    fitted, taken = (
        embedded(inherited(teacher, 0.4, ("image", "text"), samples)) for samples in (SAMPLES, list[TrainingBatch]())
    )
    for tower, target in own.items():
        near, far = (float((found[tower] * target).sum(dim=1).mean()) for found in (fitted, taken))
        assert near > far + 0.05, f"{tower}: cosine {near:.3f} fitted, {far:.3f} taken over"


@torch.no_grad()
def test_without_samples_units_of_the_largest_norms_are_taken_over_as_they_are(teacher: DualEncoder) -> None:
    """Written out: the teacher with what is not taken set to zero computes the same."""
    student = inherited(teacher, 0.4, ("image",), [])
    kept, zeroed = student.config.image, copy.deepcopy(teacher)
    blocks = [round(i * 3 / (kept.depth - 1)) for i in range(kept.depth)]
    for index, block in enumerate(zeroed.image.blocks):
        assert isinstance(block, Block)
        if index not in blocks:
            for linear in (block.out, block.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
            continue
        values = block.qkv.weight[64:].view(4, 8, 32)
        heads = [float(values[h].norm() * block.out.weight[:, 8 * h : 8 * h + 8].norm()) for h in range(4)]
        units = [float(block.fc1.weight[u].norm() * block.fc2.weight[:, u].norm()) for u in range(128)]
        for head in sorted(range(4), key=lambda h: heads[h])[: 4 - kept.heads[0]]:
            block.out.weight[:, 8 * head : 8 * head + 8] = 0
        block.fc2.weight[:, sorted(range(128), key=lambda u: units[u])[: 128 - kept.mlp[0]]] = 0
    assert 1 < kept.depth < 4 and kept.heads[0] < 4
    torch.testing.assert_close(student.encode_image(UNSEEN.pixels), zeroed.encode_image(UNSEEN.pixels))
    assert torch.equal(student.encode_text(UNSEEN.tokens), teacher.encode_text(UNSEEN.tokens))


def test_a_fit_that_can_do_nothing_is_refused(tiny_clip_folder: Path, cli: object) -> None:
    assert callable(cli)
    words = ("distill", "--teacher", tiny_clip_folder, "--out", "student", "--optimizer-batch", "8")
    preset = cli(*words, "--data", "demo:val", "--student", "vit-s16", "--student-fit", "8")
    assert preset.code == 2 and "fit is of inherit:F" in preset.err
    piped = cli(*words, "--data", "-", "--student", "inherit:0.5")
    assert piped.code == 2 and "'-' can be read once only" in piped.err and "--student-fit 0" in piped.err
