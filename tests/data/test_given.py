"""Views that somebody else chose: the same pixels as torchvision's, and as arithmetic on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmcompress.data.given import OPERATIONS, given_view
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing

MADE_FOR = Preprocessing(size=24, resize=24, mean=(0.5,) * 3, std=(0.5,) * 3)
MAGNITUDES = {
    **{"ShearX": (0.27, -0.09), "ShearY": (0.2, -0.3), "TranslateX": (7.9, -4.2), "TranslateY": (5.0, -3.6)},
    **{"Rotate": (30.4, -12.0), "Brightness": (0.27, -0.09), "Color": (0.8, -0.9), "Contrast": (0.4, -0.5)},
    **{"Sharpness": (0.9, -0.7), "Posterize": (4.0, 8.0), "Solarize": (178.5, 20.0)},
}


def noise(height: int = 40, width: int = 30) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def view(pixels: NDArray[np.uint8], name: str, magnitude: float) -> NDArray[np.int64]:
    """An operation alone, on an image that is its own crop."""
    whole = (0, 0, 24, 24)
    made = given_view(Image.fromarray(pixels), whole, [(OPERATIONS.index(name), magnitude)], MADE_FOR, 24)
    return made.astype(np.int64)


def test_a_crop_is_the_box_of_the_image_resized() -> None:
    pixels = noise()
    made = given_view(Image.fromarray(pixels), (3, 5, 20, 17), [], MADE_FOR, 24)
    box = Image.fromarray(pixels[3:23, 5:22]).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(made, np.asarray(box))
    smaller = given_view(Image.fromarray(pixels), (3, 5, 20, 17), [], MADE_FOR, 16)
    np.testing.assert_array_equal(smaller, np.asarray(box.resize((16, 16), Image.Resampling.BICUBIC)))


def test_operations_by_arithmetic() -> None:
    pixels = noise(24, 24)
    moved = np.zeros_like(pixels)
    moved[:, 7:] = pixels[:, :-7]
    np.testing.assert_array_equal(view(pixels, "TranslateX", 7.9), moved)
    moved = np.zeros_like(pixels)
    moved[:-3] = pixels[3:]
    np.testing.assert_array_equal(view(pixels, "TranslateY", -3.6), moved)
    np.testing.assert_array_equal(view(pixels, "Posterize", 4.0), pixels & 0xF0)
    np.testing.assert_array_equal(view(pixels, "Solarize", 178.5), np.where(pixels < 178.5, pixels, 255 - pixels))
    np.testing.assert_array_equal(view(pixels, "Identity", 9.0), pixels)
    rows, columns = np.mgrid[:24, :24]
    source = np.floor(columns + 0.5 + 0.27 * (rows + 0.5)).astype(int)
    sheared = np.where((source < 24)[..., None], pixels[rows, np.minimum(source, 23)], 0)
    np.testing.assert_array_equal(view(pixels, "ShearX", 0.27), sheared)
    assert np.abs(view(pixels, "Brightness", 0.27) - np.minimum(255, 1.27 * pixels)).max() < 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    pixels = noise(24, 24)
    for magnitude in MAGNITUDES.get(name, (0.0,)):
        nearest = transforms.InterpolationMode.NEAREST
        theirs = autoaugment._apply_op(Image.fromarray(pixels), name, magnitude, interpolation=nearest, fill=None)
        np.testing.assert_array_equal(view(pixels, name, magnitude), np.asarray(theirs))


def test_two_operations_one_after_the_other() -> None:
    pixels = noise(24, 24)
    both = [(OPERATIONS.index("Posterize"), 4.0), (OPERATIONS.index("TranslateX"), 3.0)]
    made = given_view(Image.fromarray(pixels), (0, 0, 24, 24), both, MADE_FOR, 24)
    np.testing.assert_array_equal(made, view((pixels & 0xF0).astype(np.uint8), "TranslateX", 3.0))


@pytest.mark.parametrize("box", [(0, 0, 41, 30), (0, 0, 40, 31), (-1, 0, 5, 5), (0, 0, 0, 5), (38, 0, 3, 3)])
def test_a_crop_that_the_image_does_not_have_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(CorruptInputError, match="the image has 30 x 40 pixels"):
        given_view(Image.fromarray(noise()), box, [], MADE_FOR, 24)
