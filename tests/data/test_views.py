"""Views of photos: functions of (seed, view, key) and of the original image; the same for whoever makes them."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from shards import SMALL, pair, picture, shard, write_tar

from mmcompress.data.batches import Batch, batches, decode
from mmcompress.data.views import PLAIN, Shown, choices, crop_box, enough, photo_view, recolouring, uniforms
from mmcompress.manifest import Preprocessing

GREY = np.full(40, 0.5, np.float32)
"""The numbers that change no colour."""


def smooth(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture without fine detail, (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of(spec: object, numbers: tuple[int, ...], preprocessing: Preprocessing = SMALL, **options: Any) -> list[Batch]:
    shown = Shown(3, len(numbers), lambda _: numbers)
    return list(batches(str(spec), preprocessing, shown=shown, **{"batch": 8, **options}))


def test_uniforms_are_stateless_and_uniform() -> None:
    keys = [f"k{i}" for i in range(500)]
    u = uniforms(7, np.full(500, 3), keys)
    assert np.array_equal(u[10:11], uniforms(7, np.array([3]), ["k10"]))
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.01
    assert not np.array_equal(choices(0, 0, keys), choices(0, 1, keys))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (900, 30), (3, 2)])
def test_crops_have_the_area_and_the_aspect_that_fit(size: tuple[int, int]) -> None:
    width, height = size
    areas = []
    for u in np.random.default_rng(0).random((2000, 40), dtype=np.float32):
        left, upper, right, lower = crop_box(u, width, height)
        assert 0 <= left < right <= width and 0 <= upper < lower <= height
        aspect = (right - left) / (lower - upper)
        assert aspect == pytest.approx((4 / 3) ** (2 * float(u[1]) - 1), rel=1e-4)
        largest = min(width, height * aspect) * min(height, width / aspect)
        wanted = width * height * (0.4 + 0.6 * float(u[0]))
        area = (right - left) * (lower - upper)
        assert area == pytest.approx(min(wanted, largest), rel=1e-4)
        areas.append(area / (width * height))
    if size == (64, 64):
        assert min(areas) < 0.42 and max(areas) > 0.95


def test_squashed_images_are_cropped_by_their_own_aspect() -> None:
    u = np.random.default_rng(0).random((50, 40), dtype=np.float32)
    for row in u:
        wide = np.array(crop_box(row, 400, 100, squash=True))
        assert wide == pytest.approx(np.array(crop_box(row, 100, 100)) * [4, 1, 4, 1], rel=1e-4)


@pytest.mark.parametrize(("size", "squash"), [((500, 375), False), ((300, 900), False), ((640, 480), True)])
def test_an_image_that_is_decoded_smaller_is_enough_for_every_view(size: tuple[int, int], squash: bool) -> None:
    rule = Preprocessing(size=224, resize=224, squash=squash, mean=SMALL.mean, std=SMALL.std)
    width, height = enough(*size, rule)
    for corner in itertools.product([0, 0.999], repeat=2):
        left, upper, right, lower = crop_box(np.array([*corner, 0, 0], np.float32), width, height, squash)
        assert min(right - left, lower - upper) >= 1.49 * 224
    if not squash:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.01)


def stepwise(rgb: NDArray[np.float64], u: NDArray[np.float32]) -> NDArray[np.float64]:
    """The changes of colour one after the other, (..., 3) in [0, 1], from (9,): hue in YIQ-like axes by Rodrigues."""
    s = 0.4 * (2 * u.astype(np.float64) - 1)
    axis = np.ones(3) / math.sqrt(3)
    angle = 0.1 * (2 * float(u[0]) - 1)
    turned = (
        rgb * math.cos(angle)
        + np.cross(np.broadcast_to(axis, rgb.shape), rgb) * math.sin(angle)
        + axis * (rgb @ axis)[..., None] * (1 - math.cos(angle))
    )
    grey = turned.mean(axis=-1, keepdims=True)
    saturation = 0.0 if u[2] < 0.06 else math.exp(0.5 * s[1])
    y = grey + saturation * (turned - grey)
    y = (y - 0.5) * math.exp(0.3 * s[3]) + 0.5 + 0.15 * s[4]
    y = y * (1 + 0.12 * s[5:8])
    return y.clip(1e-4, 1) ** math.exp(0.35 * s[8])


def test_colours_are_those_of_the_steps_one_after_the_other() -> None:
    rgb = np.random.default_rng(1).random((200, 3))
    u = np.random.default_rng(2).random((30, 9), dtype=np.float32)
    u[0, 2] = 0.01
    maps, powers = recolouring(u, hue=0.1, strength=0.4)
    for row, mapping, power in zip(u, maps, powers, strict=True):
        ours = (rgb @ mapping[:, :3].T + mapping[:, 3]).clip(1e-4, 1) ** power
        np.testing.assert_allclose(ours, stepwise(rgb, row), atol=1e-9)


def test_a_view_is_a_crop_of_the_original_with_its_colours_changed() -> None:
    """Against Pillow's crop at whole pixels and the steps in float; bytes between them round twice."""
    image = smooth((640, 480))
    for number in range(1, 8):
        (u,) = uniforms(0, np.array([number]), ["a"])
        view = photo_view(image, SMALL, u)
        left, upper, right, lower = (round(edge) for edge in crop_box(u, 640, 480))
        crop = image.crop((left, upper, right, lower)).resize((16, 16), Image.Resampling.BICUBIC)
        if u[4] < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = 255 * stepwise(np.asarray(crop) / 255, u[5:14])
        assert np.abs(view - expected).mean() < 1.5


def test_views_have_the_detail_of_the_original() -> None:
    """Stripes that a resized image has lost are there in a crop."""
    columns = np.where(np.arange(256) // 5 % 2, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(columns[None, :, None], (256, 256, 3)).copy())
    rule = Preprocessing(size=64, resize=64, mean=SMALL.mean, std=SMALL.std)
    u = GREY.copy()
    u[0] = 0
    left, upper, right, lower = (edge / 4 for edge in crop_box(u, 256, 256))
    small = image.resize((64, 64), Image.Resampling.BICUBIC)
    enlarged = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC, (left, upper, right, lower)))
    assert photo_view(image, rule, u).std() > 1.5 * enlarged.std()


@pytest.mark.parametrize("large", [False, True])
def test_whoever_makes_a_view_makes_the_same_pixels(tmp_path: Path, large: bool) -> None:
    """All views of an image at once, as the teacher has them, and one at a time, as the student does."""
    files = [
        (f"{n:02d}.{end}", content)
        for n in range(9)
        for end, content in (
            ("jpg", encoded(smooth((300, 200) if large else (24, 20), n), "JPEG")),
            ("txt", b"x"),
        )
    ]
    path = write_tar(tmp_path / "x.tar", files)
    together = of(path, (0, 1, 2))
    assert together[0].views.tolist() == [[0, 1, 2]] * 8
    for number in (0, 1, 2):
        alone = of(path, (number,), workers=1, batch=3)
        pixels = np.concatenate([batch.pixels for batch in together])[number::3]
        np.testing.assert_array_equal(pixels, np.concatenate([batch.pixels for batch in alone]))
    plain = [decode(content, SMALL) for name, content in files if name.endswith("jpg")]
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in of(path, (0,))]), plain)
    assert not np.array_equal(together[0].pixels[0], together[0].pixels[1])


def test_a_jpeg_decoded_at_a_part_of_its_size_looks_the_same(tmp_path: Path) -> None:
    image = smooth((800, 600))
    shown = {}
    for kind, options in (("JPEG", {"quality": 98, "subsampling": 0}), ("PNG", {})):
        path = write_tar(tmp_path / f"{kind}.tar", [("a.jpg", encoded(image, kind, **options)), ("a.txt", b"x")])
        named = tmp_path / kind / "x.tar"  # keys begin with the name of the shard
        named.parent.mkdir()
        path.rename(named)
        shown[kind] = of(named, (1, 2, 3))[0].pixels.astype(int)
    assert np.abs(shown["JPEG"] - shown["PNG"]).mean() < 2


def test_views_lie_beside_samples_whatever_breaks(tmp_path: Path) -> None:
    """A shuffled epoch shows another sample where one cannot be decoded, in that sample's own view."""
    files = [file for n in range(8) for file in pair(f"{n}", n)]
    files[4] = ("2.jpg", picture(size=(1, 3000)))
    path = write_tar(tmp_path / "x.tar", files)

    def view_of(key: str) -> tuple[int]:
        return (1 + int(key[-1]),)

    shown = Shown(3, 1, view_of)
    (batch,) = batches(str(path), SMALL, batch=8, shuffle_seed=0, drop_last=True, max_bad_fraction=1, shown=shown)
    assert "x/2" not in batch.keys and len(batch.keys) == 8
    assert batch.views[:, 0].tolist() == [view_of(key)[0] for key in batch.keys]
    for key, pixels in zip(batch.keys, batch.pixels, strict=True):
        (u,) = uniforms(3, np.array(view_of(key)), [key])
        with Image.open(io.BytesIO(picture(int(key[-1])))) as image:
            np.testing.assert_array_equal(pixels, photo_view(image.convert("RGB"), SMALL, u))


def test_kept_views_are_those_of_their_numbers(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", 6)
    kept: dict[tuple[str, tuple[int, ...]], NDArray[np.uint8]] = {}
    for numbers in ((0,), (1,), (0, 1), (1,)):
        kept_then = of(path, numbers, kept=kept)
        np.testing.assert_array_equal(kept_then[0].pixels, of(path, numbers)[0].pixels)
    assert len(kept) == 18 and PLAIN.of("x") == (0,)


def test_an_image_smaller_than_the_crop_has_its_border_in_views_too() -> None:
    rule = Preprocessing(size=16, resize=10, mean=SMALL.mean, std=SMALL.std)
    view = photo_view(Image.new("RGB", (30, 30), "white"), rule, GREY)
    assert (view[:3] == 0).all() and view[8, 8].min() > 200
