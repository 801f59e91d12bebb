"""Images that grow in training: the sides that are shown, and what a tower makes of small ones."""

from __future__ import annotations

import pytest
import torch
from small_model import random_pixels, small_model
from tiny_conv import conv_model, conv_pixels
from torch.nn import functional as F

from mmcompress.architecture import ImageConfig
from mmcompress.compress.train.growing import grown, sides
from mmcompress.compress.train.mobilenetv4 import mobilenetv4
from mmcompress.config import DistillConfig, TrainConfig


def image(image_size: int, patch: int) -> ImageConfig:
    return ImageConfig(width=8, head_dim=4, heads=(2,), mlp=(8,), image_size=image_size, patch=patch)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((64, 8), [32, 40, 48, 56, 64]),
        ((224, 32), [128, 160, 192, 224]),
        ((224, 16), [*range(112, 225, 16)]),
        ((30, 8), [16, 30]),  # what fills no patch is not read
        ((16, 16), [16]),
    ],
)
def test_sides_are_whole_patches_from_a_half_to_the_whole(sizes: tuple[int, int], expected: list[int]) -> None:
    assert sides(image(*sizes)) == expected


def test_sides_of_convolutions_are_multiples_of_their_stride() -> None:
    assert sides(mobilenetv4("conv-s", 64, stem_stride=1)) == [32, 48, 64]
    assert sides(mobilenetv4("hybrid-m", 224)) == [128, 160, 192, 224]
    model = conv_model(image_size=64).train()
    smaller = grown(conv_pixels(2, side=64), model.config.image, 0.0, 0.5)
    assert smaller.shape == (2, 3, 32, 32) and model.encode_image(smaller).shape == (2, 16)


def test_each_side_has_an_equal_part_of_the_first_steps() -> None:
    pixels, config = torch.zeros(1, 3, 64, 64), image(64, 8)
    seen = [grown(pixels, config, step / 100, 0.8).shape[-1] for step in range(100)]
    assert all(abs(seen.count(side) - 20) <= 1 for side in (32, 40, 48, 56, 64)) and seen == sorted(seen)
    assert grown(pixels, config, 0.0, 0.0) is pixels


def test_small_images_are_shrunk_as_pillow_does() -> None:
    """Bilinear with antialiasing, which a constant and a ramp survive."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    small = grown(ramp, image(64, 8), 0.0, 0.5)
    assert torch.allclose(small[..., 1:-1], F.avg_pool2d(ramp, 2)[..., 1:-1], atol=1e-3)


def test_positions_are_interpolated_in_training_alone() -> None:
    model = small_model()
    tower, whole = model.image.train(), random_pixels(2)
    with torch.no_grad():
        at_half = tower.enter(F.interpolate(whole, (16, 16)))
        assert at_half.shape == (2, 5, 64)
        patches = tower.positions[1:].T.unflatten(-1, (4, 4))
        pooled = F.avg_pool2d(patches[None], 2)[0].flatten(1).T  # bilinear at an exact half is the mean of four
        tokens = tower.patch(F.interpolate(whole, (16, 16))).flatten(2).transpose(1, 2) + pooled
        assert torch.allclose(at_half[:, 1:], tower.norm_pre(tokens), atol=1e-5)
        assert torch.allclose(tower.eval()(whole), model.image.train()(whole), atol=1e-6)
        with pytest.raises(RuntimeError):
            tower.eval()(F.interpolate(whole, (16, 16)))


def test_positions_of_the_whole_learn_from_small_images() -> None:
    tower = small_model().image.train()
    tower(random_pixels(2)[..., ::2, ::2]).square().sum().backward()
    assert tower.positions.grad is not None and bool((tower.positions.grad.abs().sum(dim=1) > 0).all())


def test_students_grow_unless_they_are_two_pretrained_towers() -> None:
    data = {"data": {"train": "demo:train"}}
    pair = {"towers": {"image": "a", "text": "b"}}
    teacher = {"teacher": {"source": "demo:teacher"}}
    assert DistillConfig.model_validate({**data, **teacher}).grows == 0.67
    assert DistillConfig.model_validate({**data, **teacher, "growing": 0.2}).grows == 0.2
    assert TrainConfig.model_validate({**data, "student": {"source": "vit-s16"}}).grows == 0.67
    assert TrainConfig.model_validate({**data, **pair}).grows == 0
    assert TrainConfig.model_validate({**data, **pair, "growing": 0.2}).grows == 0.2
