"""Encoded images as pixels: one by one, and groups of samples on threads, in order.

Threads read and decode, as Pillow works outside of the interpreter lock. They are a few batches ahead of whoever takes
them. What cannot be decoded goes to the tally when its batch is taken, so that nothing depends on their number.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.data.imagefile import MAX_PIXELS, image_size
from mmcompress.data.preprocess import to_array
from mmcompress.data.reading import Listed
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing

KEPT_BYTES = 256 * 2**20
"""Of decoded images that a caller keeps from one epoch to the next; what is beyond is decoded again."""
_PIECE = 32  # images that a thread decodes at a time
_PILLOW_ERRORS = (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


Draw = Callable[[str, Image.Image], NDArray[np.uint8]]
"""(key, image as it was opened) -> (S, S, 3), for views that are not made of the plain one."""


@dataclass(frozen=True)
class Batch:
    """B samples, their images decoded."""

    keys: list[str]
    pixels: NDArray[np.uint8]
    """(B, S, S, 3)"""
    captions: list[tuple[str, ...]]
    labels: list[str | None]
    seen: list[bool]
    marks: list[bytes]
    """See `sample.mark_of`."""
    number: int
    """Which batch of the pass it is; one of which no image can be decoded is left out."""


def decode(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """JPEG, PNG or WebP -> (S, S, 3); CorruptInputError for what is damaged or larger than 64 MiPixel."""
    try:
        image_size(image)
        return _pixels(image, preprocessing)
    except _PILLOW_ERRORS as error:
        raise CorruptInputError(f"an image cannot be decoded: {error}", "replace it, or leave it out") from error


def _pixels(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    with _opened(image) as opened:
        return to_array(opened, preprocessing)


@contextmanager
def _opened(image: bytes) -> Iterator[Image.Image]:
    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG", "WEBP")) as opened:
        if opened.width * opened.height > MAX_PIXELS:  # the container said less
            raise ValueError(f"the image is {opened.width} x {opened.height} pixels large")
        yield opened


def _drawn(image: bytes, key: str, draw: Draw) -> NDArray[np.uint8]:
    with _opened(image) as opened:
        return draw(key, opened)


def decoded_batches(
    groups: Iterator[tuple[int, list[Listed]]],
    preprocessing: Preprocessing,
    workers: int,
    tally: Tally,
    kept: dict[str, NDArray[np.uint8]] | None,
    refill: bool,
    draw: Draw | None = None,
) -> Iterator[Batch | None]:
    """Decode numbered groups on threads, at most `workers + 1` ahead, and hand out in order; None for one without an
    image."""
    decode_piece = partial(_decode_piece, preprocessing=preprocessing, kept=kept, draw=draw)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[int, list[Listed], list[Future[list[NDArray[np.uint8] | str]]]]] = deque()
    try:
        more = True
        while more or waiting:
            while more and len(waiting) <= workers:
                if more := (numbered := next(groups, None)) is not None:
                    number, group = numbered
                    pieces = [group[i : i + _PIECE] for i in range(0, len(group), _PIECE)]
                    waiting.append((number, group, [pool.submit(decode_piece, piece) for piece in pieces]))
            if waiting:
                number, group, futures = waiting.popleft()
                results = [result for future in futures for result in future.result()]
                yield _batch(number, group, results, tally, refill)
        tally.finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_piece(
    piece: list[Listed], preprocessing: Preprocessing, kept: dict[str, NDArray[np.uint8]] | None, draw: Draw | None
) -> list[NDArray[np.uint8] | str]:
    """Pixels, or why there are none."""
    results: list[NDArray[np.uint8] | str] = []
    for sample in piece:
        if kept is not None and (known := kept.get(sample.key)) is not None:
            results.append(known)
            continue
        try:
            image = sample.stored()  # a shard that has changed is an error
        except OSError as error:
            results.append(f"the image cannot be read: {error}")
            continue
        try:
            pixels = _pixels(image, preprocessing) if draw is None else _drawn(image, sample.key, draw)
        except (*_PILLOW_ERRORS, CorruptInputError) as error:
            results.append(f"the image cannot be decoded: {error}")
            continue
        if kept is not None and (len(kept) + 1) * pixels.nbytes <= KEPT_BYTES:
            kept[sample.key] = pixels
        results.append(pixels)
    return results


def _batch(
    number: int, group: list[Listed], results: list[NDArray[np.uint8] | str], tally: Tally, refill: bool
) -> Batch | None:
    good = []
    for index, (sample, result) in enumerate(zip(group, results, strict=True)):
        if isinstance(result, str):
            tally.good -= 1
            tally.add_bad(sample.key, result)
        else:
            good.append(index)
    if not good:
        return None
    if refill:
        good = [min((g for g in good if g >= index), default=good[0]) for index in range(len(group))]
    chosen = [group[index] for index in good]
    pixels = np.stack([result for index in good if not isinstance(result := results[index], str)])
    return Batch(
        keys=[sample.key for sample in chosen],
        pixels=pixels,
        captions=[sample.captions for sample in chosen],
        labels=[sample.label for sample in chosen],
        seen=[sample.seen for sample in chosen],
        marks=[sample.mark for sample in chosen],
        number=number,
    )
