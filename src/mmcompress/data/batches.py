"""Image-text pairs as batches of pixels: the one way that data enters training, calibration and the drift table.

Reading is sequential and single (see reading.py), decoding runs on threads, since Pillow works outside of the
interpreter lock, and results are taken in order, so that a batch does not depend on the number of threads. The order of
an epoch is a function of (seed, epoch) alone: shards are permuted and mixed through a buffer. So a stage that was
killed goes on at the batch where it was, without decoding those before it.

For that, batches are cut before images are decoded. An image that looks whole and still does not decode cannot shift
the batches after it: in a shuffled epoch the next one of its batch takes its place once more, which keeps every batch
full; in sequential order its batch is one shorter, which keeps every sample single. Left out: splitting shards over
processes. Each process reads all and decodes its own share, which needs no agreement about sizes.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.data.imagefile import MAX_PIXELS, image_size
from mmcompress.data.preprocess import to_array
from mmcompress.data.reading import Sample, named, samples
from mmcompress.data.spec import expand, fingerprint, part_of
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing
from mmcompress.packaged import packaged

__all__ = ["Batch", "Sample", "batches", "count", "decode", "expand", "fingerprint", "packaged", "read"]

MAX_BAD_FRACTION = 0.05
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
    """(B, S, S, 3)"""
    captions: list[tuple[str, ...]]
    labels: list[str | None]
    seen: list[bool]
    number: int
    """Which batch of the pass it is; one of which no image can be decoded is left out."""


def read(
    spec: str, *, max_bad_fraction: float = MAX_BAD_FRACTION, log: Path | None = None, announce: bool = True
) -> Iterator[Sample]:
    """Stream all whole samples in order; name the others in the log and skip them.

    Raises UsageError at once for a path that does not exist, and CorruptInputError when more than the fraction is bad
    or nothing is good: at the end, or on the way from 1,000 items on.
    """
    tally = Tally(spec, max_bad_fraction, log, announce)
    return _finished(_of_part(samples(named(expand(spec)), tally), spec), tally)


def _of_part(stream: Iterator[Sample], spec: str) -> Iterator[Sample]:
    share = part_of(spec)[0]
    return stream if share is None else (sample for sample in stream if share.has(sample.key))


def _finished(stream: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
    yield from stream
    tally.finish()


def count(spec: str, max_bad_fraction: float = MAX_BAD_FRACTION) -> int:
    """How many samples `read` yields. Reads everything, decodes nothing."""
    return sum(1 for _ in read(spec, max_bad_fraction=max_bad_fraction, announce=False))


def count_up_to(most: int, spec: str) -> int:
    """How many whole samples there are, of which so many are read at most, whatever lies between them."""
    return sum(1 for _ in islice(read(spec, max_bad_fraction=1.0, announce=False), most))


def decode(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """JPEG, PNG or WebP -> (S, S, 3); CorruptInputError for what is damaged or larger than 64 MiPixel."""
    try:
        image_size(image)
        return _pixels(image, preprocessing)
    except _PILLOW_ERRORS as error:
        raise CorruptInputError(f"an image cannot be decoded: {error}", "replace it, or leave it out") from error


def _pixels(image: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG", "WEBP")) as opened:
        if opened.width * opened.height > MAX_PIXELS:  # the container said less
            raise ValueError(f"the image is {opened.width} x {opened.height} pixels large")
        return to_array(opened, preprocessing)


def batches(
    spec: str,
    preprocessing: Preprocessing,
    *,
    batch: int,
    workers: int = 4,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    skip: int = 0,
    only: Callable[[int], bool] | None = None,
    buffer: int = 16384,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    log: Path | None = None,
    kept: dict[str, NDArray[np.uint8]] | None = None,
) -> Iterator[Batch]:
    """Batches of one pass over the data, from batch `skip` on, and of those `only` some, by number.

    With a seed the order is shuffled, as a function of (seed, epoch): `buffer` encoded samples are held in memory.
    Of `world` processes each takes every world-th sample, so theirs together are the batches of one process with
    `batch * world`; with `drop_last` all of them get equally many. Images are taken from `kept`, by key, and put there
    while they fit; one such dict belongs to one spec and one preprocessing.
    """
    if not 0 <= rank < world or batch < 1 or workers < 1 or skip < 0 or buffer < 1:
        raise ValueError(f"rank {rank} of {world}, batch {batch}, workers {workers}, skip {skip}, buffer {buffer}")
    places = named(expand(spec))
    tally = Tally(spec, max_bad_fraction, log, announce=epoch == 0 and rank == 0)
    if shuffle_seed is None:
        stream = _of_part(samples(places, tally), spec)
    else:
        order = random.Random(f"{shuffle_seed}/{epoch}")
        order.shuffle(places)
        stream = _shuffled(_of_part(samples(places, tally), spec), order, buffer)
    stream = _dealt(stream, rank, world, drop_last)
    groups: Iterator[tuple[int, list[Sample]]] = islice(enumerate(_groups(stream, batch, drop_last, tally)), skip, None)
    if only is not None:
        groups = ((number, group) for number, group in groups if only(number))
    return _decoded(groups, preprocessing, workers, tally, kept, refill=shuffle_seed is not None)


def _shuffled(stream: Iterator[Sample], order: random.Random, buffer: int) -> Iterator[Sample]:
    """Each sample that comes in pushes a random one of the buffer out; at the end the buffer is emptied at random."""
    held = list(islice(stream, buffer))
    for sample in stream:
        place = order.randrange(len(held))
        pushed, held[place] = held[place], sample
        yield pushed
    order.shuffle(held)
    yield from held


def _dealt(stream: Iterator[Sample], rank: int, world: int, drop_last: bool) -> Iterator[Sample]:
    """Every world-th sample; an incomplete last round is dropped where all ranks need equally many."""
    while hand := list(islice(stream, world)):
        if len(hand) == world or (not drop_last and rank < len(hand)):
            yield hand[rank]


def _groups(stream: Iterator[Sample], batch: int, drop_last: bool, tally: Tally) -> Iterator[list[Sample]]:
    full = 0
    while group := list(islice(stream, batch)):
        if len(group) == batch or not drop_last:
            full += 1
            yield group
    if drop_last and not full and tally.good:
        tally.finish()
        raise UsageError(
            f"{tally.spec} has {tally.good} samples, which do not fill one batch of {batch} on every process",
            "give a smaller batch, or more data",
        )


def _decoded(
    groups: Iterator[tuple[int, list[Sample]]],
    preprocessing: Preprocessing,
    workers: int,
    tally: Tally,
    kept: dict[str, NDArray[np.uint8]] | None,
    refill: bool,
) -> Iterator[Batch]:
    """Decode on threads, at most `workers + 1` batches ahead, and hand out in order."""
    decode_piece = partial(_decode_piece, preprocessing=preprocessing, kept=kept)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[int, list[Sample], list[Future[list[NDArray[np.uint8] | str]]]]] = deque()
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
                if (batch := _batch(number, group, results, tally, refill)) is not None:
                    yield batch
        tally.finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_piece(
    piece: list[Sample], preprocessing: Preprocessing, kept: dict[str, NDArray[np.uint8]] | None
) -> list[NDArray[np.uint8] | str]:
    """Pixels, or why there are none."""
    results: list[NDArray[np.uint8] | str] = []
    for sample in piece:
        try:
            pixels = None if kept is None else kept.get(sample.key)
            if pixels is None:
                pixels = _pixels(sample.image, preprocessing)
                if kept is not None and (len(kept) + 1) * pixels.nbytes <= KEPT_BYTES:
                    kept[sample.key] = pixels
            results.append(pixels)
        except (*_PILLOW_ERRORS, CorruptInputError) as error:
            results.append(f"the image cannot be decoded: {error}")
    return results


def _batch(
    number: int, group: list[Sample], results: list[NDArray[np.uint8] | str], tally: Tally, refill: bool
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
        number=number,
    )
