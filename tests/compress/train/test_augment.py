"""Views are functions of (seed, view, key) and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmcompress.compress.train.augment import averaged, choices, drawing, normalized, photo, pixels_of_views, uniforms
from mmcompress.data.batches import Batch
from mmcompress.manifest import Preprocessing


def batch(keys: list[str], size: int = 32) -> Batch:
    pixels = np.random.default_rng(0).integers(0, 256, (len(keys), size, size, 3), dtype=np.uint8)
    count = len(keys)
    return Batch(
        keys=keys,
        pixels=pixels,
        captions=[("x",)] * count,
        labels=[None] * count,
        seen=[True] * count,
        marks=[bytes(16)] * count,
        number=0,
    )


def views(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize("kind", ["photo", "drawing"])
def test_a_view_depends_on_its_sample_alone(kind: str) -> None:
    both = batch(["a", "b"])
    alone = Batch(["b"], both.pixels[1:], [("x",)], [None], [True], [bytes(16)], 0)
    together = pixels_of_views(both, views(1, 3), 0, kind, torch.device("cpu"))
    single = pixels_of_views(alone, views(3), 0, kind, torch.device("cpu"))
    torch.testing.assert_close(together[1], single[0])
    assert together.min() >= 0 and together.max() <= 1


@pytest.mark.parametrize("kind", ["photo", "drawing"])
def test_view_zero_is_the_plain_image_and_others_differ(kind: str) -> None:
    one = batch(["a"])
    plain = torch.from_numpy(one.pixels).permute(0, 3, 1, 2) / 255
    shown = [pixels_of_views(one, views(v), 0, kind, torch.device("cpu")) for v in range(3)]
    assert torch.equal(shown[0], plain)
    assert not torch.allclose(shown[1], plain) and not torch.allclose(shown[1], shown[2])


def test_uniforms_are_stateless_and_uniform() -> None:
    keys = [f"k{i}" for i in range(500)]
    u = uniforms(7, np.full(500, 3), keys)
    assert np.array_equal(u[10:11], uniforms(7, views(3), ["k10"]))
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.01
    assert not np.array_equal(choices(0, 0, keys), choices(0, 1, keys))


def test_resolution_does_not_change_the_view() -> None:
    """A student of another input size sees the same crop: the view of an upscaled image is the upscaled view."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64).clone()
    u = torch.from_numpy(uniforms(0, views(1), ["a"]))
    for function in (photo, drawing):
        large = function(ramp, u)
        small = function(torch.nn.functional.avg_pool2d(ramp, 2), u)
        difference = torch.nn.functional.avg_pool2d(large, 2) - small
        assert difference.abs().mean() < 0.03


def test_normalized_matches_the_formula() -> None:
    rule = Preprocessing(size=2, resize=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = torch.rand(1, 3, 2, 2)
    out = normalized(pixels, rule)
    torch.testing.assert_close(out[:, 1], (pixels[:, 1] - 0.2) / 0.25)


@pytest.mark.parametrize(("side", "padding"), [(7, 3), (3, 0)])
def test_averages_are_those_of_avg_pool2d_to_the_bit(side: int, padding: int) -> None:
    planes = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(averaged(planes, side, padding), F.avg_pool2d(planes, side, 1, padding))


@pytest.mark.parametrize("kind", ["photo", "drawing"])
def test_only_the_images_that_change_are_augmented(kind: str) -> None:
    three, cpu = batch(["a", "b", "c"]), torch.device("cpu")
    mixed = pixels_of_views(three, views(0, 2, 1), 0, kind, cpu)
    assert torch.equal(mixed[0], pixels_of_views(three, views(0, 0, 0), 0, kind, cpu)[0])
    assert torch.equal(mixed[1], pixels_of_views(three, views(2, 2, 2), 0, kind, cpu)[1])
    assert torch.equal(mixed[2], pixels_of_views(three, views(1, 1, 1), 0, kind, cpu)[2])
