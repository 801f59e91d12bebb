"""Views that somebody else has made and embedded, made again: a crop, and operations on it, from their parameters.

The parameters are those that reinforced data is published with (DataCompDR, Vasu et al. 2024, MobileCLIP, section 4.1;
Faghri et al. 2023, Dataset Reinforcement): torchvision's RandomResizedCrop on the whole image, then two operations of
its RandAugment (Cubuk et al. 2020) on the crop, whose numbers are in pixels of the crop. So a view is made at the
teacher's size, and resized after that for a student of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from mmcompress.data.preprocess import to_rgb
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""In the order in which they are numbered."""
MAGNITUDES = {"Posterize": (0, 8)}
"""The least and the largest magnitude of those that do not take any: bits that are left."""
A_VIEW = 2
"""Operations a view; fewer are filled up with the first one, which does nothing."""


def given_view(
    image: Image.Image,
    box: Sequence[int],
    operations: Sequence[tuple[int, float]],
    made_for: Preprocessing,
    size: int,
) -> NDArray[np.uint8]:
    """Box (top, left, height, width) of an image -> (size, size, 3).

    Raises CorruptInputError for a box that the image does not have.
    """
    rgb = to_rgb(image)
    top, left, height, width = box
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rgb.height or left + width > rgb.width:
        raise CorruptInputError(
            f"a view is the crop {list(box)} (top, left, height, width), and the image has {rgb.width} x {rgb.height} "
            "pixels",
            "use the images at the size that they were embedded at, without resizing them",
        )
    filter_ = Image.Resampling[made_for.interpolation.upper()]
    view = rgb.crop((left, top, left + width, top + height)).resize((made_for.size, made_for.size), filter_)
    for number, magnitude in operations:
        view = _APPLIED[OPERATIONS[number]](view, magnitude)
    return np.asarray(view if made_for.size == size else view.resize((size, size), filter_))


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """What lies outside is black; the nearest pixel is taken, as torchvision's RandAugment does."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


_APPLIED: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, m: _moved(image, 1, m, 0, 0, 1, 0),
    "ShearY": lambda image, m: _moved(image, 1, 0, 0, m, 1, 0),
    "TranslateX": lambda image, m: _moved(image, 1, 0, -int(m), 0, 1, 0),
    "TranslateY": lambda image, m: _moved(image, 1, 0, 0, 0, 1, -int(m)),
    "Rotate": lambda image, m: image.rotate(m, Image.Resampling.NEAREST),
    "Brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m),
    "Color": lambda image, m: ImageEnhance.Color(image).enhance(1 + m),
    "Contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m),
    "Sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m),
    "Posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, int(np.ceil(m))),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}
