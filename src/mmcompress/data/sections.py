"""A data set by its shards, for what is computed of it once and kept: a shard more then costs one shard.

A section is a shard, or all samples together that lie in none: those of tables, folders and photos. It is known by its
content and by the name that its keys begin with. Its batches end where it ends, and whole batches make chunks, so that
a chunk is the same whatever other sections there are, and whoever makes it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcompress.data.decoding import Batch, decoded_batches
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.layout import is_retrieval, numbered_classes
from mmcompress.data.reading import Listed, is_image_or_table, listed, named
from mmcompress.data.spec import Share, expand, is_stream, named_keys, part_of
from mmcompress.data.tally import Tally
from mmcompress.data.views import PLAIN, Shown
from mmcompress.datakeys import KNOWN, Keys
from mmcompress.digests import sha256_of
from mmcompress.errors import CorruptInputError
from mmcompress.manifest import Preprocessing, hash_json
from mmcompress.progress import track


@dataclass(frozen=True)
class Section:
    """A shard, or all that lies in no shard."""

    name: str
    """What its keys begin with, up to the first `/`; empty where each begins otherwise."""
    places: Sequence[tuple[str, str]]
    """What it is read from, with the names that `reading.listed` takes."""
    share: Share | None
    """Which of its samples count; None for all."""
    keys: Keys = KNOWN
    """What it is read by."""

    def listed(self, tally: Tally) -> Iterator[Listed]:
        """Its samples in order; damage goes to the tally."""
        stream = listed(self.places, self.keys, tally)
        return stream if self.share is None else (one for one in stream if self.share.has(one.key))


def sections(spec: str) -> list[Section]:
    """The sections of a data set, in order, what lies in no shard at the end. Nothing is read but names."""
    share, keys, places = part_of(spec)[0], named_keys(spec), named(expand(spec))
    loose = [(place, name) for place, name in places if is_image_or_table(place)]
    shards = [Section(name, [(place, name)], share, keys) for place, name in places if not is_image_or_table(place)]
    return [*shards, *([Section("", loose, share, keys)] if loose else [])]


def digest_of(section: Section, spec: str) -> str:
    """Of all that the samples of a section are: content and names. Of a stream the text is all that is known."""
    if not section.name:
        return hash_json(["loose", fingerprint(spec)])
    (place, name) = section.places[0]
    share = section.share and [section.share.first, section.share.last, section.share.bins]
    keys = [] if section.keys == KNOWN else [section.keys.images, section.keys.texts, section.keys.last_dot]
    if is_stream(place):
        return hash_json(["stream", place, name, share, *keys])
    try:
        content = sha256_of(Path(place))
    except OSError as error:
        raise CorruptInputError(f"{place} cannot be read: {error.strerror}", "mend it, or leave it out") from error
    return hash_json(["shard", content, numbered_classes(place), is_retrieval(place), name, share, *keys])


def counts(spec: str, of: Sequence[Section], max_bad_fraction: float) -> list[int]:
    """How many samples each section lists. Shards are counted by their indices, of other data everything is read.

    Raises what `batches.read` raises, and CorruptInputError where a shard cannot be read now and may be later.
    """
    tally = Tally(spec, max_bad_fraction, keeps=True)
    numbers = [sum(1 for _ in section.listed(tally)) for section in track(of, "listing", len(of))]
    tally.finish()
    return numbers


def decoded_chunks(
    of: Sequence[Section],
    wanted: Mapping[int, Collection[int]],
    preprocessing: Preprocessing,
    *,
    batch: int,
    a_chunk: int,
    workers: int,
    tally: Tally,
    shown: Shown = PLAIN,
) -> Iterator[tuple[tuple[int, int], Batch | None]]:
    """The batches of chunks in order, each with (section, chunk); None for one of which no image can be decoded.

    A chunk has `a_chunk` batches, the last one of a section the rest. `wanted` has the numbers of chunks by the number
    of their section; of other sections nothing is read. `shown` says which views of a photo a batch has. `tally`
    has all that is listed as good; what cannot be decoded goes from there to the bad.
    """
    listing = Tally("", 1.0, announce=False, keeps=True)  # by `counts` it was judged and told
    ahead: deque[tuple[int, int]] = deque()

    def groups() -> Iterator[tuple[int, list[Listed]]]:
        for at in sorted(wanted):
            stream = of[at].listed(listing)
            for number in itertools.count():
                if not (group := list(itertools.islice(stream, batch))):
                    break
                if number // a_chunk in wanted[at]:
                    ahead.append((at, number // a_chunk))
                    yield number, group

    decoded = decoded_batches(groups(), preprocessing, workers, tally, None, False, shown)
    return ((ahead.popleft(), one) for one in decoded)
