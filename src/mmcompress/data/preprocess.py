"""Images to tensors on the device: Pillow and numpy only, equal to transformers' processors bit by bit.

Accuracy lost between training and the device is most often lost here: another resampling filter, a size that is rounded
instead of cut off, a crop one pixel aside. So there is one implementation, used by training, calibration, the drift
table and `classify` alike, and the tests hold it against transformers.

Two deliberate differences from transformers: transparent images are laid on white (it drops alpha, which makes visible
what lies under transparent pixels), and 16-bit grey is scaled to 8 bits (it clips to white). Photos that a camera
marked as rotated are turned upright, as transformers does when it loads a file. Pixels stay uint8 until the batch is
normalized, which keeps caches and queues four times smaller.
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing

MAX_ASPECT = 100
"""Longer over shorter side; beyond it the resized image needs gigabytes and nothing of it survives the crop."""


def to_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop any image to (S, S, 3) RGB."""
    return plain_view(to_rgb(upright(image)), preprocessing)


def plain_view(rgb: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop an upright RGB image to (S, S, 3)."""
    check_aspect(*rgb.size, preprocessing)
    resized = rgb.resize(resized_to(*rgb.size, preprocessing), Image.Resampling[preprocessing.interpolation.upper()])
    return center_crop(np.asarray(resized), preprocessing.size, preprocessing.centre)


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says, the image itself where that is nothing; so is one whose EXIF is damaged."""
    image.load()
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # Pillow would copy it
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with whatever is transparent laid on white; the image itself where it is so already."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _rgb_of_16_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _rgb_of_16_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of each grey's 16 bits, and white where a grey is the transparent one (PNG's tRNS)."""
    grey = np.asarray(image)
    upper = (grey >> 8).astype(np.uint8)
    if (clear := image.info.get("transparency")) is not None:
        upper[grey == clear] = 255
    return Image.fromarray(upper).convert("RGB")


def resized_to(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) of an image before it is cropped."""
    side = preprocessing.resize
    return (side, side) if preprocessing.squash else resized_size(width, height, side)


def resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(width, height) after the shorter side became `shorter`; the longer side is cut off, not rounded."""
    short, long = min(width, height), max(width, height)
    longer = int(shorter * long / short)
    return (shorter, longer) if width <= height else (longer, shorter)


def check_aspect(width: int, height: int, preprocessing: Preprocessing) -> None:
    """Raise CorruptInputError for an image that is too long to be prepared so."""
    if not preprocessing.squash and max(width, height) > MAX_ASPECT * min(width, height):
        raise CorruptInputError(
            f"an image of {width} x {height} pixels is more than {MAX_ASPECT} times longer than it is wide",
            "leave it out, or crop it",
        )


def center_crop(pixels: NDArray[np.uint8], size: int, centre: Literal["floor", "even"] = "floor") -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3), padded with black where the image is smaller.

    The odd pixel goes to the right and below when cropping, to the left and above when padding, as in transformers;
    `even` starts at the even one of both places, as torchvision does.
    """
    height, width, channels = pixels.shape
    top, left = (height - size) // 2, (width - size) // 2
    if centre == "even":
        top, left = top + (top % 2 and (height - size) % 2), left + (left % 2 and (width - size) % 2)
    if top >= 0 and left >= 0:
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    padded_height, padded_width = max(size, height), max(size, width)
    above, before = -((height - padded_height) // 2), -((width - padded_width) // 2)
    padded = np.zeros((padded_height, padded_width, channels), dtype=np.uint8)
    padded[above : above + height, before : before + width] = pixels
    top, left = top + above, left + before
    return np.ascontiguousarray(padded[top : top + size, left : left + size])


def normalize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, (x / 255 - mean) / std, through a table of the 256 values."""
    values = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    out = np.empty((pixels.shape[0], 3, *pixels.shape[1:3]), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        table = (values - np.float32(mean)) / np.float32(std)
        np.take(table, pixels[..., channel], out=out[:, channel])
    return out
