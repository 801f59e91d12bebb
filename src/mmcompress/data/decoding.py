"""Encoded images as pixels: one by one, and groups of samples on threads, in order.

Threads read, decode and make views, as Pillow works outside of the interpreter lock, and write them into the batch.
They are a few batches ahead of whoever takes them. What cannot be decoded goes to the tally when its batch is taken, so
that nothing depends on their number.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.data.imagefile import MAX_PIXELS, image_size
from mmcompress.data.preprocess import plain_view, to_array, to_rgb, upright
from mmcompress.data.reading import Listed
from mmcompress.data.tally import Tally
from mmcompress.data.views import Shown, enough, photo_view, uniforms
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing

Kept = dict[tuple[str, tuple[int, ...]], NDArray[np.uint8]]
"""Decoded views (V, S, S, 3), by key and numbers of the views."""
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


@dataclass(frozen=True)
class Batch:
    """B samples, their images decoded."""

    keys: list[str]
    pixels: NDArray[np.uint8]
    """(B * V, S, S, 3), the V views of each sample in a row; the plain image alone unless others were asked for."""
    captions: list[tuple[str, ...]]
    labels: list[str | None]
    seen: list[bool]
    marks: list[bytes]
    """See `sample.mark_of`."""
    number: int
    """Which batch of the pass it is; one of which no image can be decoded is left out."""
    views: NDArray[np.int64]
    """(B, V): the numbers of the views, 0 for the plain image."""


class _Decoding(NamedTuple):
    """A batch that threads are filling."""

    number: int
    group: list[Listed]
    pixels: NDArray[np.uint8]
    """(B, V, S, S, 3)"""
    views: NDArray[np.int64]
    """(B, V)"""
    reasons: list[Future[list[str | None]]]
    """Of each piece, a reason a sample: why it has no pixels."""


def decode(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """JPEG, PNG or WebP -> (S, S, 3); CorruptInputError for what is damaged or larger than 64 MiPixel."""
    with _told():
        image_size(image)
        return _pixels(image, preprocessing)


def decode_whole(image: bytes) -> NDArray[np.uint8]:
    """JPEG, PNG or WebP -> (H, W, 3), upright and RGB; raises as `decode`."""
    with _told():
        image_size(image)
        with _opened(image) as opened:
            return np.asarray(to_rgb(upright(opened)))


@contextmanager
def _told() -> Iterator[None]:
    """Pillow's errors in our words."""
    try:
        yield
    except _PILLOW_ERRORS as error:
        raise CorruptInputError(f"an image cannot be decoded: {error}", "replace it, or leave it out") from error


def _pixels(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    with _opened(image) as opened:
        return to_array(opened, preprocessing)


def _opened(image: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(image), formats=("JPEG", "PNG", "WEBP"))
    if opened.width * opened.height > MAX_PIXELS:  # the container said less
        raise ValueError(f"the image is {opened.width} x {opened.height} pixels large")
    return opened


def _views(
    image: bytes, key: str, numbers: tuple[int, ...], shown: Shown, preprocessing: Preprocessing
) -> Sequence[NDArray[np.uint8]]:
    """The views of an image with these numbers, each (S, S, 3). It is decoded once, or once more at a part of its size:
    which size a view is made from must not depend on the others.
    """
    if shown.given is not None:
        with _opened(image) as opened:
            return [shown.given(key, number, opened) for number in numbers]
    if not any(numbers):
        return [_pixels(image, preprocessing)] * len(numbers)
    with _opened(image) as opened:
        size = opened.size
        opened.draft("RGB", enough(opened.width, opened.height, preprocessing))
        reduced, rgb = opened.size != size, to_rgb(upright(opened))
    u = uniforms(shown.seed, np.array(numbers), [key] * len(numbers))
    views = [photo_view(rgb, preprocessing, own) if number else None for number, own in zip(numbers, u, strict=True)]
    if 0 in numbers:
        plain = _pixels(image, preprocessing) if reduced else plain_view(rgb, preprocessing)
    return [plain if view is None else view for view in views]


def decoded_batches(
    groups: Iterator[tuple[int, list[Listed]]],
    preprocessing: Preprocessing,
    workers: int,
    tally: Tally,
    kept: Kept | None,
    refill: bool,
    shown: Shown,
) -> Iterator[Batch | None]:
    """Decode numbered groups on threads, at most `workers + 1` ahead, and hand out in order; None for one without an
    image."""
    side = preprocessing.size
    decode_piece = partial(_decode_piece, preprocessing=preprocessing, kept=kept, shown=shown)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[_Decoding] = deque()
    try:
        more = True
        while more or waiting:
            while more and len(waiting) <= workers:
                if more := (numbered := next(groups, None)) is not None:
                    number, group = numbered
                    pixels = np.empty((len(group), shown.each, side, side, 3), np.uint8)
                    views = np.empty((len(group), shown.each), np.int64)
                    pieces = [slice(i, i + _PIECE) for i in range(0, len(group), _PIECE)]
                    reasons = [pool.submit(decode_piece, group[i], pixels[i], views[i]) for i in pieces]
                    waiting.append(_Decoding(number, group, pixels, views, reasons))
            if waiting:
                yield _batch(waiting.popleft(), tally, refill)
        tally.finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_piece(
    piece: list[Listed],
    pixels: NDArray[np.uint8],
    views: NDArray[np.int64],
    preprocessing: Preprocessing,
    kept: Kept | None,
    shown: Shown,
) -> list[str | None]:
    """Write the views of each sample into `pixels` (B, V, S, S, 3) and their numbers into `views` (B, V); return why
    there are none, None where there are."""
    reasons: list[str | None] = []
    for sample, own, own_views in zip(piece, pixels, views, strict=True):
        key, reason = sample.key, None
        own_views[:] = numbers = tuple(shown.of(key))
        if kept is not None and (known := kept.get((key, numbers))) is not None:
            own[:] = known
        else:
            try:
                image = sample.stored()  # a shard that has changed is an error
            except OSError as error:
                reasons.append(f"the image cannot be read: {error}")
                continue
            try:
                for place, view in zip(own, _views(image, key, numbers, shown, preprocessing), strict=True):
                    place[:] = view
            except (*_PILLOW_ERRORS, CorruptInputError) as error:
                reason = f"the image cannot be decoded: {error}"
            if kept is not None and reason is None and (len(kept) + 1) * own.nbytes <= KEPT_BYTES:
                kept[key, numbers] = own.copy()
        reasons.append(reason)
    return reasons


def _batch(of: _Decoding, tally: Tally, refill: bool) -> Batch | None:
    good = []
    reasons = [reason for future in of.reasons for reason in future.result()]
    for index, (sample, reason) in enumerate(zip(of.group, reasons, strict=True)):
        if reason is not None:
            tally.good -= 1
            tally.add_bad(sample.key, reason)
        else:
            good.append(index)
    if not good:
        return None
    pixels, views, chosen = of.pixels, of.views, of.group
    if len(good) < len(chosen):
        if refill:
            good = [min((g for g in good if g >= index), default=good[0]) for index in range(len(chosen))]
        pixels, views, chosen = pixels[good], views[good], [chosen[index] for index in good]
    return Batch(
        keys=[sample.key for sample in chosen],
        pixels=pixels.reshape(-1, *pixels.shape[2:]),
        captions=[sample.captions for sample in chosen],
        labels=[sample.label for sample in chosen],
        seen=[sample.seen for sample in chosen],
        marks=[sample.mark for sample in chosen],
        number=of.number,
        views=views,
    )
