"""What image graphs are fed: images that are resized and cropped here, or, where a graph does that, as they are.

A graph with its preprocessing inside may still be fed images that are prepared, as calibration, drift and verdict have
them: laid into a frame of the resized size, where resizing changes nothing and the crop takes them out again, they
come through unchanged, to the bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcompress.data.preprocess import check_aspect, resized_size
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing, TensorSpec

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ANY_SIZE = Preprocessing(size=32, resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
"""Decoding tells whether a file is an image, however large the model wants it."""
LARGEST = 1 << 31
"""Twice a side times what it is resized to has to be smaller: OpenVINO computes places of pixels in 32 bits."""


def read_pixels(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image file -> (S, S, 3), resized and cropped."""
    check_image(path)
    return stored_pixels(path.read_bytes(), path, preprocessing)


def stored_pixels(content: bytes, name: object, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """As `read_pixels`, of the bytes of an image file, which an error calls by its `name`."""
    from mmcompress.data.batches import decode

    try:
        return decode(content, preprocessing)
    except CorruptInputError as error:
        raise CorruptInputError(f"{name}: {error.what}", error.hint) from error


def decoded(path: Path, preprocessing: Preprocessing, spec: TensorSpec) -> NDArray[np.uint8]:
    """One image file -> (H, W, 3), upright and RGB, as a graph with the input `spec` takes it.

    Raises UsageError for a path that is no file or an image of a size that the graph does not take, CorruptInputError
    for what is no image.
    """
    check_image(path)
    return stored_decoded(path.read_bytes(), path, preprocessing, spec)


def stored_decoded(content: bytes, path: object, preprocessing: Preprocessing, spec: TensorSpec) -> NDArray[np.uint8]:
    """As `decoded`, of the bytes of an image file, which an error calls by its `path`."""
    from mmcompress.data.decoding import decode_whole

    try:
        pixels = decode_whole(content)
        height, width = pixels.shape[:2]
        check_aspect(width, height, preprocessing)
    except CorruptInputError as error:
        raise CorruptInputError(f"{path}: {error.what}", error.hint) from error
    if any(side not in (None, own) for side, own in zip(spec.shape[1:3], (height, width), strict=True)):
        raise UsageError(
            f"{path} is {height} x {width} pixels (height x width), and the graph takes {spec.shape[1]} x"
            f" {spec.shape[2]}",
            "give an image of that size, or export with --image-input any",
        )
    across, down = resized_size(width, height, preprocessing.resize)
    if 2 * max(width * across, height * down) >= LARGEST:
        raise UsageError(f"{path} is {height} x {width} pixels, too large for the graph", "crop it first")
    return pixels


def takes_prepared(spec: TensorSpec, preprocessing: Preprocessing) -> bool:
    """Whether a graph that prepares images takes frames of the resized size."""
    return all(side in (None, preprocessing.resize) for side in spec.shape[1:3])


def framed(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, spec: TensorSpec, artifact: Path
) -> NDArray[np.uint8]:
    """(B, S, S, 3), resized and cropped -> (B, R, R, 3), of which a graph with the input `spec` crops out the same."""
    if not takes_prepared(spec, preprocessing):
        raise UsageError(
            f"{artifact} takes images of {spec.shape[1]} x {spec.shape[2]} pixels, and these are cropped to"
            f" {preprocessing.size} already",
            "measure an export without image_input: the tower inside is the same",
        )
    margin = preprocessing.resize - preprocessing.size
    start = margin // 2
    if preprocessing.centre == "even":
        start += start % 2 * (margin % 2)
    end = margin - start
    return np.pad(pixels, ((0, 0), (start, end), (start, end), (0, 0)))


def check_image(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"there is no image {path}", f"give a file that ends in {', '.join(IMAGE_SUFFIXES)}")
