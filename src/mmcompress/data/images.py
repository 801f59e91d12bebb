"""Images of any set by names that lead back to them: the path of a file, or a shard's path with the key inside.

Keys of samples (`reading.py`) begin with the name of a shard alone, which suffices within a set. An index of images is
of many sets, and what it finds has to be found on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmcompress.data.reading import Listed, is_image_or_table, listed
from mmcompress.data.spec import SHARD_SUFFIXES, expand, files_in, is_stream, is_table, named_keys, part_of
from mmcompress.data.tally import Tally
from mmcompress.datakeys import KNOWN, Keys

NAME = "0"
"""What keys begin with while a place is read; it is taken off again."""
NOT_READ = ("gif", "bmp", "tif", "tiff", "heic", "heif", "avif", "jxl", "jfif", "jp2")
"""Kinds of images by suffix, which are none to us."""


def named_images(spec: str, tally: Tally) -> Iterator[tuple[str, Listed]]:
    """Every good image of a data specification with its name, in order; damage goes to the tally."""
    share = part_of(spec)[0]
    for name, item in images_of_places(map(_absolute, expand(spec)), tally, named_keys(spec)):
        if share is None or share.has(item.key.removeprefix(f"{NAME}/")):
            yield name, item


def images_of_places(places: Iterable[str], tally: Tally, keys: Keys = KNOWN) -> Iterator[tuple[str, Listed]]:
    """As `named_images`, of places."""
    for place in places:
        for item in listed([(place, NAME)], keys, tally):
            inside = item.key.removeprefix(f"{NAME}/")
            if is_table(place):
                yield str(Path(place).parent / inside), item
            elif is_image_or_table(place) and not Path(place).is_dir():
                yield place, item
            else:
                yield f"{place}/{inside}", item


def passed_over(folder: Path) -> tuple[int, str]:
    """How many files of a folder are images of a kind that is not read, and of which: `2 .gif, 1 .tiff`."""
    found = Counter(path.suffix.lower() for path in files_in(folder, NOT_READ))
    return found.total(), ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))


def place_of(name: str) -> str:
    """The file that an image lies in: itself, or its shard."""
    parts = name.split("/")
    for end, part in enumerate(parts, 1):
        if part.lower().endswith(SHARD_SUFFIXES) and end < len(parts):
            return "/".join(parts[:end])
    return name


def _absolute(place: str) -> str:
    return place if is_stream(place) else str(Path(place).absolute())
