"""Preprocessing against transformers' CLIPImageProcessor and SiglipImageProcessor, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcompress.data.preprocess import normalize, to_array
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = {"bilinear": 2, "bicubic": 3, "lanczos": 1, "nearest": 0}


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize("size", [(64, 64), (97, 41), (41, 97), (300, 201), (33, 32), (7, 50), (2, 5)])
@pytest.mark.parametrize(("crop", "resize"), [(32, 32), (33, 40), (48, 32), (49, 32), (47, 40)])
def test_crop_matches_transformers(size: tuple[int, int], crop: int, resize: int) -> None:
    from transformers import CLIPImageProcessor

    image = noise(*size, seed=size[0])
    processor = CLIPImageProcessor(
        size={"shortest_edge": resize}, crop_size={"height": crop, "width": crop}, image_mean=MEAN, image_std=STD
    )
    expected = processor(image, return_tensors="np")["pixel_values"]
    preprocessing = Preprocessing(size=crop, resize=resize, mean=MEAN, std=STD)
    actual = normalize(to_array(image, preprocessing)[None], preprocessing)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("interpolation", list(RESAMPLE))
def test_squash_matches_transformers(interpolation: str) -> None:
    from transformers import SiglipImageProcessor

    image = noise(61, 23)
    half = (0.5, 0.5, 0.5)
    processor = SiglipImageProcessor(size={"height": 32, "width": 32}, resample=RESAMPLE[interpolation])
    expected = processor(image, return_tensors="np")["pixel_values"]
    preprocessing = Preprocessing(
        size=32,
        resize=32,
        squash=True,
        interpolation=interpolation,
        mean=half,
        std=half,  # type: ignore[arg-type]
    )
    actual = normalize(to_array(image, preprocessing)[None], preprocessing)
    np.testing.assert_array_equal(actual, expected)


def test_transparency_is_laid_on_white() -> None:
    preprocessing = Preprocessing(size=8, resize=8, mean=MEAN, std=STD)
    hidden_red = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (to_array(hidden_red, preprocessing) == 255).all()
    half_black = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert abs(int(to_array(half_black, preprocessing)[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert (to_array(palette, preprocessing) == 255).all()


def test_grey_of_8_and_16_bits() -> None:
    preprocessing = Preprocessing(size=4, resize=4, mean=MEAN, std=STD)
    assert (to_array(Image.new("L", (4, 4), 100), preprocessing) == 100).all()
    deep = Image.fromarray(np.full((4, 4), 100 << 8, dtype=np.uint16))
    assert (to_array(deep, preprocessing) == 100).all()
    deep.info["transparency"] = 65535
    assert (to_array(deep, preprocessing) == 100).all(), "no pixel has the grey that is transparent"
    deep.info["transparency"] = 100 << 8
    assert (to_array(deep, preprocessing) == 255).all()


def test_a_rotated_photo_is_upright_as_transformers_loads_it(tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = 6
    noise(20, 12).save(tmp_path / "photo.png", exif=exif)
    preprocessing = Preprocessing(size=8, resize=8, mean=MEAN, std=STD)
    with Image.open(tmp_path / "photo.png") as photo:
        actual = to_array(photo, preprocessing)
    np.testing.assert_array_equal(actual, to_array(load_image(str(tmp_path / "photo.png")), preprocessing))
    assert not np.array_equal(actual, to_array(noise(20, 12), preprocessing))


def test_a_thread_of_pixels_is_refused() -> None:
    preprocessing = Preprocessing(size=224, resize=224, mean=MEAN, std=STD)
    with pytest.raises(CorruptInputError, match="5000 x 1 pixels is more than 100 times") as caught:
        to_array(Image.new("RGB", (5000, 1)), preprocessing)
    assert caught.value.exit_code == 4


def test_a_batch_is_normalized_image_by_image() -> None:
    preprocessing = Preprocessing(size=8, resize=8, mean=MEAN, std=STD)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    together = normalize(pixels, preprocessing)
    assert together.shape == (3, 3, 8, 8)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[1], normalize(pixels[1:2], preprocessing)[0])
    empty = normalize(pixels[:0], preprocessing)
    assert empty.shape == (0, 3, 8, 8)
