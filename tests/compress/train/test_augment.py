"""Views are functions of (seed, view, key) and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmcompress.compress.train.augment import averaged, drawing, normalized, pixels_of_views
from mmcompress.data.batches import Batch
from mmcompress.data.preprocess import normalize
from mmcompress.data.views import uniforms
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
        views=np.zeros((count, 1), np.int64),
    )


def views(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def test_a_drawn_view_depends_on_its_sample_alone() -> None:
    both = batch(["a", "b"])
    alone = Batch(["b"], both.pixels[1:], [("x",)], [None], [True], [bytes(16)], 0, both.views[1:])
    together = pixels_of_views(both, views(1, 3), 0, "drawing", torch.device("cpu"))
    single = pixels_of_views(alone, views(3), 0, "drawing", torch.device("cpu"))
    torch.testing.assert_close(together[1], single[0])
    assert together.min() >= 0 and together.max() <= 1


def test_view_zero_is_the_plain_image_and_others_differ() -> None:
    one = batch(["a"])
    plain = torch.from_numpy(one.pixels).permute(0, 3, 1, 2)
    shown = [pixels_of_views(one, views(v), 0, "drawing", torch.device("cpu")) for v in range(3)]
    assert torch.equal(shown[0], plain)
    assert not torch.allclose(shown[1], plain / 255) and not torch.allclose(shown[1], shown[2])
    assert torch.equal(pixels_of_views(one, views(2), 0, "none", torch.device("cpu")), plain)


def test_resolution_does_not_change_the_view() -> None:
    """A student of another input size sees the same: the view of an upscaled image is the upscaled view."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64).clone()
    u = uniforms(0, views(1), ["a"])
    large, small = drawing(ramp, u), drawing(F.avg_pool2d(ramp, 2), u)
    assert (F.avg_pool2d(large, 2) - small).abs().mean() < 0.03


def test_photos_show_the_views_that_were_decoded() -> None:
    numbers = np.array([[0, 1, 2], [0, 1, 2]])
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((6, 4, 4, 3), np.uint8)
    both = dataclasses.replace(batch(["a", "b"]), pixels=pixels, views=numbers)
    shown = pixels_of_views(both, views(2, 1), 0, "photo", torch.device("cpu"))
    assert shown[:, 0, 0, 0].tolist() == [2, 4] and shown.shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="some were not decoded"):
        pixels_of_views(both, views(3, 1), 0, "photo", torch.device("cpu"))


def test_normalized_matches_the_formula() -> None:
    rule = Preprocessing(size=2, resize=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = torch.rand(1, 3, 2, 2)
    out = normalized(pixels, rule)
    torch.testing.assert_close(out[:, 1], (pixels[:, 1] - 0.2) / 0.25)
    levels = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2) * 23
    torch.testing.assert_close(
        normalized(levels, rule), torch.from_numpy(normalize(levels.permute(0, 2, 3, 1).numpy(), rule))
    )


@pytest.mark.parametrize(("side", "padding"), [(7, 3), (3, 0)])
def test_averages_are_those_of_avg_pool2d_to_the_bit(side: int, padding: int) -> None:
    planes = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(averaged(planes, side, padding), F.avg_pool2d(planes, side, 1, padding))


def test_only_the_images_that_change_are_augmented() -> None:
    three, cpu = batch(["a", "b", "c"]), torch.device("cpu")
    mixed = pixels_of_views(three, views(0, 2, 1), 0, "drawing", cpu)
    assert torch.equal(mixed[0], torch.from_numpy(three.pixels[0]).permute(2, 0, 1) / 255)
    assert torch.equal(mixed[1], pixels_of_views(three, views(2, 2, 2), 0, "drawing", cpu)[1])
    assert torch.equal(mixed[2], pixels_of_views(three, views(1, 1, 1), 0, "drawing", cpu)[2])
