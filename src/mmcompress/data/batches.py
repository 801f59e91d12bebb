"""Image-text pairs as batches of pixels: the one way that data enters training, calibration and the drift table.

What is put into order is references into shards (reading.py). Images are read and decoded on threads, as Pillow works
outside of the interpreter lock, and results are taken in order, so that a batch does not depend on the number of
threads. The order of an epoch is a function of (seed, epoch) alone: shards are permuted and mixed through a buffer. So
a stage that was killed goes on at the batch where it was, without reading an image before it, and each of several
processes reads its own images only.

For that, batches are cut before images are decoded. An image that looks whole and still does not decode cannot shift
the batches after it: in a shuffled epoch the next one of its batch takes its place once more, which keeps every batch
full; in sequential order its batch is one shorter, which keeps every sample single.

Shards that have no offsets, compressed or in a store, would be read whole by each of several processes. Where training
says how long an epoch is, each reads shards of its own instead, and the order is a function of the number of processes
too. Left out: that for indexed shards, whose batches of several processes are those of one.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from mmcompress.data.decoding import Batch, Kept, decode, decoded_batches
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.reading import Listed, listed, named, samples
from mmcompress.data.sample import Sample, image_of
from mmcompress.data.spec import COMPRESSED, expand, is_stream, named_keys, part_of
from mmcompress.data.tally import EARLY, Tally
from mmcompress.data.views import PLAIN, Shown
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import Preprocessing
from mmcompress.packaged import packaged
from mmcompress.progress import track

__all__ = ["Batch", "Sample", "batches", "count", "decode", "expand", "fingerprint", "listing", "packaged", "read"]

MAX_BAD_FRACTION = 0.05
BUFFER_BYTES = 512 * 2**20
"""Of encoded images that are held for shuffling; those that an index lists are not held."""
_DECODED = 32
"""Images that are decoded to see whether a set can be."""
_ANY_SIZE = Preprocessing(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def read(
    spec: str, *, max_bad_fraction: float = MAX_BAD_FRACTION, log: Path | None = None, announce: bool = True
) -> Iterator[Sample]:
    """Stream all whole samples in order; name the others in the log and skip them.

    Raises UsageError at once for a path that does not exist, and CorruptInputError when more than the fraction is bad
    or nothing is good: at the end, or on the way from 1,000 items on.
    """
    tally = Tally(spec, max_bad_fraction, log, announce)
    return _finished(samples(_of_part(listed(named(expand(spec)), named_keys(spec), tally), spec), tally), tally)


def _of_part(stream: Iterator[Listed], spec: str) -> Iterator[Listed]:
    share = part_of(spec)[0]
    return stream if share is None else (sample for sample in stream if share.has(sample.key))


def _finished(stream: Iterator[Sample], tally: Tally) -> Iterator[Sample]:
    yield from stream
    tally.finish()


def count(spec: str, max_bad_fraction: float = MAX_BAD_FRACTION) -> int:
    """How many samples `read` yields. Shards are counted by their indices, of other data everything is read."""
    return sum(1 for _ in listing(spec, max_bad_fraction))


def listing(spec: str, max_bad_fraction: float = MAX_BAD_FRACTION) -> Iterator[Listed]:
    """What `read` yields, in order, and no image of an indexed shard is read; the same errors as `read`'s."""
    tally = Tally(spec, max_bad_fraction, announce=False)
    places = named(expand(spec))
    yield from _of_part(listed(track(places, "listing", len(places)), named_keys(spec), tally), spec)
    tally.finish()


def count_up_to(most: int, spec: str) -> int:
    """How many whole samples there are, of which so many are looked at at most, whatever lies between them."""
    return sum(1 for _ in islice(listing(spec, max_bad_fraction=1.0), most))


def images_of(spec: str, most: int | None = None) -> Iterator[bytes]:
    """What tells the image files of a set, or the first of them, apart (`sample.image_of`); none is decoded.

    Of a stream, which is read once, nothing.
    """
    return iter(()) if is_stream(spec) else (image_of(one.mark) for one in islice(listing(spec, 1.0), most))


@functools.cache
def check_readable(spec: str, max_bad_fraction: float, shuffle_seed: int | None = None) -> None:
    """Raise, before anything long is done, what a pass over the data would raise for damage in its first items, and
    where it has none.

    A set of up to 1,000 items is looked at whole, a larger one as far as a pass looks before it judges; of those that
    look whole a few are decoded. A stream is read once, so nothing is known of it.
    """
    if is_stream(spec):
        return
    tally = Tally(spec, max_bad_fraction, announce=False)
    stream = _of_part(listed(_in_order(spec, shuffle_seed, 0)[0], named_keys(spec), tally), spec)
    number = 0
    for number, item in enumerate(stream, start=1):
        if number <= _DECODED:
            try:
                decode(item.stored(), _ANY_SIZE)
            except (OSError, CorruptInputError) as error:
                tally.good -= 1
                tally.add_bad(item.key, str(error))
        if tally.good + tally.bad >= EARLY:
            return tally.check_so_far()
    if not number and not tally.bad:
        raise UsageError(f"{spec} has no samples", "give other data, or a larger part: part:0-4/10:photos")
    tally.finish()


def _in_order(spec: str, shuffle_seed: int | None, epoch: int) -> tuple[list[tuple[str, str]], random.Random]:
    """The places of a specification in the order of a pass, and what the order of their samples is drawn from."""
    places, order = named(expand(spec)), random.Random(f"{shuffle_seed}/{epoch}")
    if shuffle_seed is not None:
        order.shuffle(places)
    return places, order


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
    kept: Kept | None = None,
    shown: Shown = PLAIN,
    length: int | None = None,
) -> Iterator[Batch]:
    """Batches of one pass over the data, from batch `skip` on, and of those `only` some, by number.

    With a seed the order is shuffled, as a function of (seed, epoch), through a buffer of `buffer` samples, and of
    `BUFFER_BYTES` of encoded images, which are held where they are of no indexed shard.
    Of `world` processes each takes every world-th sample, so theirs together are the batches of one process with
    `batch * world`; with `drop_last` all of them get equally many. With a `length`, and a seed, processes share shards
    that are read from their begin instead, if there are enough: each gets `length` batches of its own, with samples
    that come again where its shards have too few. `shown` says which views of a photo a batch has.
    Images are taken from `kept`, and put there while they fit; one such dict belongs to one spec, one preprocessing and
    one seed of views.
    """
    if not 0 <= rank < world or batch < 1 or workers < 1 or skip < 0 or buffer < 1:
        raise ValueError(f"rank {rank} of {world}, batch {batch}, workers {workers}, skip {skip}, buffer {buffer}")
    tally = Tally(spec, max_bad_fraction, log, announce=epoch == 0 and rank == 0)
    places, order = _in_order(spec, shuffle_seed, epoch)
    if shuffle_seed is not None and length is not None and world > 1 and _are_shared(places, world):
        stream: Iterator[Listed] = islice(_own(places[rank::world], tally, spec, order, buffer), length * batch)
    else:
        stream = _of_part(listed(places, named_keys(spec), tally), spec)
        if shuffle_seed is not None:
            stream = _shuffled(stream, order, buffer)
        stream = _dealt(stream, rank, world, drop_last)
    groups: Iterator[tuple[int, list[Listed]]] = islice(enumerate(_groups(stream, batch, drop_last, tally)), skip, None)
    if only is not None:
        groups = ((number, group) for number, group in groups if only(number))
    decoded = decoded_batches(groups, preprocessing, workers, tally, kept, shuffle_seed is not None, shown)
    return _as_many(decoded, spec) if drop_last and world > 1 else (one for one in decoded if one is not None)


def _as_many(decoded: Iterator[Batch | None], spec: str) -> Iterator[Batch]:
    """Where no image of a batch can be decoded its neighbour takes its place: a process with fewer batches would leave
    the others waiting for it."""
    last, before = None, 0
    for one in decoded:
        last = one or last
        if last is None:
            before += 1
        else:
            yield from [last] * (1 + before)
            before = 0
    if before:
        raise CorruptInputError(f"{spec}: a process got no image that can be decoded", "mend or remove them")


def _are_shared(places: list[tuple[str, str]], world: int) -> bool:
    """Whether each process reads shards of its own: all have to be read from their begin, and suffice for all."""
    return len(places) >= world and all(is_stream(place) or place.lower().endswith(COMPRESSED) for place, _ in places)


def _own(places: list[tuple[str, str]], tally: Tally, spec: str, order: random.Random, buffer: int) -> Iterator[Listed]:
    """The samples of a process's own places, again and again, each time in another order."""
    while True:
        found = 0
        for sample in _shuffled(_of_part(listed(places, named_keys(spec), tally), spec), order, buffer):
            found += 1
            yield sample
        if not found:
            tally.finish()  # most often there is damage, and it says which
            raise UsageError(f"{spec}: the {len(places)} shards of a process have no sample", "use fewer processes")
        order.shuffle(places)


def _shuffled(stream: Iterator[Listed], order: random.Random, buffer: int) -> Iterator[Listed]:
    """Each sample that comes in pushes a random one of a full buffer out; at the end it is emptied at random."""
    held: list[Listed] = []
    size = 0
    for sample in stream:
        held.append(sample)
        size += _bytes(sample)
        while len(held) > buffer or (size > BUFFER_BYTES and len(held) > 1):
            place, last = order.randrange(len(held) - 1), held.pop()
            pushed, held[place] = held[place], last
            size -= _bytes(pushed)
            yield pushed
    order.shuffle(held)
    yield from held


def _bytes(sample: Listed) -> int:
    return len(sample.image) if isinstance(sample, Sample) else 0


def _dealt(stream: Iterator[Listed], rank: int, world: int, drop_last: bool) -> Iterator[Listed]:
    """Every world-th sample; an incomplete last round is dropped where all ranks need equally many."""
    while hand := list(islice(stream, world)):
        if len(hand) == world or (not drop_last and rank < len(hand)):
            yield hand[rank]


def _groups(stream: Iterator[Listed], batch: int, drop_last: bool, tally: Tally) -> Iterator[list[Listed]]:
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
