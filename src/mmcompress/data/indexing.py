"""`mmcompress data index`: read what is new in a data set now, before many processes ask for it.

Whatever reads shards makes the indices that it lacks, so this is never needed. It is worth a command where the first
pass is long, and where one machine can read for others that share its cache folder.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from mmcompress.data.index import indexed_shard
from mmcompress.data.reading import is_image_or_table, named
from mmcompress.data.remote import UnreachableError, at_hand, is_cached
from mmcompress.data.spec import expand, is_stream, named_keys
from mmcompress.datakeys import Keys
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.interrupts import children_spared
from mmcompress.progress import track


@dataclass(frozen=True)
class ShardFacts:
    """What the index of one shard says."""

    shard: str
    samples: int
    damaged: int
    """Items that cannot be read."""
    first_damage: str | None
    seekable: bool
    """Whether images are read at their offsets; of a compressed shard they are not."""
    made: bool
    """Whether the shard was read now."""
    bytes: int


@dataclass(frozen=True)
class DataFacts:
    """What the indices of a data set say."""

    shards: tuple[ShardFacts, ...]
    seconds: float


def index_data(spec: str, processes: int = 1) -> DataFacts:
    """Make the indices that are not there yet, and fetch the shards that are to be kept. UsageError for data that is
    not of shards that lie here."""
    places = named(expand(spec))
    if other := next((place for place, _ in places if not _is_shard(place)), None):
        raise UsageError(f"{other} is no shard, and indices are of shards", "give .tar shards, or a folder of them")
    facts_of, start = functools.partial(_facts, named_keys(spec)), time.monotonic()
    if processes == 1:
        facts = list(track(map(facts_of, places), "indexing", len(places)))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            with children_spared():
                found = pool.map(facts_of, places)
            try:
                facts = list(track(found, "indexing", len(places)))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is begun is finished, and nothing else
                raise
    return DataFacts(tuple(facts), time.monotonic() - start)


def _is_shard(place: str) -> bool:
    return is_cached(place) or not (is_stream(place) or is_image_or_table(place))


def _facts(keys: Keys, place_and_name: Sequence[str]) -> ShardFacts:
    place, name = place_and_name
    try:
        place = at_hand(place)
    except UnreachableError as error:
        raise CorruptInputError(
            f"{place} cannot be fetched: {error}", "see whether it is there, or leave it out"
        ) from error
    shard = indexed_shard(place, name, keys)
    if shard is None:
        raise CorruptInputError(f"{place} cannot be read", "mend it, or leave it out")
    damage = [found for _, found in shard.index.damage]
    first = next((": ".join(filter(None, (found.key, found.reason))) for found in damage), None)
    size = Path(place).stat().st_size
    return ShardFacts(place, len(shard.index), len(damage), first, shard.index.seekable, shard.made, size)
