"""Views of photos: crops of the original image, mirrored and recoloured where it is decoded.

A view is a function of (seed, view number, key) through Philox (Salmon et al. 2011), so it can be made again anywhere:
the student sees the crop that the teacher embedded, at its own resolution, and where both have the same one, the same
pixels. View 0 is the plain image. A crop is resampled once, from the pixels of the file to the model's, so it is as
sharp as its image; a crop of what was resized before would be an enlargement. All colour changes of a view are one
affine map of RGB and one power, on bytes: a matrix and a table. Everything but a few numbers a view is Pillow's, which
works outside of the interpreter lock.

Of a JPEG that is much larger than any view needs, libjpeg decodes a half, a quarter or an eighth (`Image.draft`). Which
depends on the size of the image and not on the view, and plain images are never decoded so, as devices do not either.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.data.preprocess import center_crop, check_aspect
from mmcompress.manifest import Preprocessing

UNIFORMS = 40
"""Random numbers a view; those of drawings take all of them."""
LEAST_AREA, WIDEST = 0.4, 4 / 3
"""Of a crop: its share of the image, and its longer side over the shorter one."""
SPARE = 1.5
"""How many times larger than needed an image stays that is decoded at a part of its size."""
_LEVELS = (np.arange(256) / 255).clip(1e-4)
_EYE, _GREY = np.eye(3), np.full((3, 3), 1 / 3)
_CROSS = math.sqrt(1 / 3) * np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])


Given = Callable[[str, int, Image.Image], NDArray[np.uint8]]
"""Key, view and image as it was opened -> (S, S, 3)."""


@dataclass(frozen=True)
class Shown:
    """Which views of a sample are decoded."""

    seed: int
    each: int
    """How many."""
    of: Callable[[str], Sequence[int]]
    """The numbers of a key's views."""
    given: Given | None = None
    """What makes them where somebody else chose them."""


PLAIN = Shown(0, 1, lambda _: (0,))


def uniforms(seed: int, views: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.float32]:
    """(B, UNIFORMS) in [0, 1), a stateless function of (seed, view, key)."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, _hash(key)], counter=[int(view), 0, 0, 0])).random(
            UNIFORMS, dtype=np.float32
        )
        for view, key in zip(views, keys, strict=True)
    ]
    return np.stack(rows)


def choices(seed: int, epoch: int, keys: Sequence[str]) -> NDArray[np.float32]:
    """(B, 2) in [0, 1): which view and which caption a sample shows in an epoch."""
    return uniforms(seed, np.full(len(keys), -1 - epoch) & 0xFFFFFFFF, keys)[:, :2]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def photo_view(rgb: Image.Image, preprocessing: Preprocessing, u: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(UNIFORMS,) and an upright RGB image -> (S, S, 3): a crop of 40 to 100% of its area, perhaps mirrored, and its
    colours changed.

    CorruptInputError for an image that the plain view refuses as well.
    """
    check_aspect(rgb.width, rgb.height, preprocessing)
    side = min(preprocessing.size, preprocessing.resize)
    box = crop_box(u, rgb.width, rgb.height, preprocessing.squash)
    crop = rgb.resize((side, side), Image.Resampling[preprocessing.interpolation.upper()], box)
    if u[4] < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    matrix, power = recolouring(u[None, 5:14], hue=0.1, strength=0.4)
    matrix[0, :, 3] *= 255
    coloured = crop.convert("RGB", tuple(matrix.ravel().tolist())).tobytes()
    table = np.rint(255 * _LEVELS ** power[0]).astype(np.uint8).tobytes()
    pixels = np.frombuffer(coloured.translate(table), np.uint8)  # in less time than Pillow's `point`
    return center_crop(pixels.reshape(side, side, 3), preprocessing.size)


def crop_box(
    u: NDArray[np.float32], width: int, height: int, squash: bool = False
) -> tuple[float, float, float, float]:
    """(left, upper, right, lower) in pixels, from (4,): a random area and aspect, as large as fits, at a random place.

    As Inception's crops (Szegedy et al. 2015, section 6), but a box that is too large becomes smaller, at its aspect,
    where others are drawn anew. With `squash` the aspect is against the image's own, as all of its images are squashed.
    """
    w, h = (1.0, 1.0) if squash else (float(width), float(height))
    area = w * h * (LEAST_AREA + (1 - LEAST_AREA) * float(u[0]))
    aspect = WIDEST ** (2 * float(u[1]) - 1)
    tall = min(math.sqrt(area / aspect), h, w / aspect)
    wide = min(tall * aspect, w)
    left, upper = float(u[2]) * (w - wide), float(u[3]) * (h - tall)
    x, y = width / w, height / h
    return left * x, upper * y, min((left + wide) * x, width), min((upper + tall) * y, height)


def enough(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The (width, height) that an image must keep for every view of it to be a reduction still, by `SPARE`."""
    w, h = (1.0, 1.0) if preprocessing.squash else (float(width), float(height))
    shortest = min(math.sqrt(LEAST_AREA * w * h / WIDEST), w / WIDEST, h / WIDEST)
    scale = SPARE * min(preprocessing.size, preprocessing.resize) / shortest
    return math.ceil(scale * w), math.ceil(scale * h)


def recolouring(
    u: NDArray[np.float32], hue: float | NDArray[np.float32], strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B, 9) -> RGB in [0, 1] to RGB as affine maps (B, 3, 4), and the power (B,) of what comes out of them.

    Hue rotation about the grey axis, saturation, contrast, brightness and a gain a channel; the power is a gamma.
    `hue` is the largest rotation in radians, for all or (B,).
    """
    s = strength * (2 * u.astype(np.float64) - 1)
    angle = ((2 * u[:, 0].astype(np.float64) - 1) * hue)[:, None, None]
    turn = np.cos(angle) * _EYE + (1 - np.cos(angle)) * _GREY + np.sin(angle) * _CROSS
    saturation = np.where(u[:, 2] < 0.06, 0.0, np.exp(0.5 * s[:, 1]))[:, None, None]
    contrast, brightness, gains = np.exp(0.3 * s[:, 3]), 0.15 * s[:, 4], 1 + 0.12 * s[:, 5:8]
    linear = contrast[:, None, None] * ((saturation * _EYE + (1 - saturation) * _GREY) @ turn)
    offset = np.broadcast_to((0.5 - 0.5 * contrast + brightness)[:, None, None], (len(u), 3, 1))
    return gains[:, :, None] * np.concatenate([linear, offset], axis=2), np.exp(0.35 * s[:, 8])
