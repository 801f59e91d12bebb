"""What a data specification names: shards, folders, streams, or what ships with the package.

A specification is a string, so that it fits into a recipe and on a command line. Here it becomes a list of places;
nothing is read but names. What it holds is known by its fingerprint (`fingerprint.py`).
"""

from __future__ import annotations

import glob
import hashlib
import math
import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmcompress.data.parquet import SUFFIX
from mmcompress.data.remote import check_scheme
from mmcompress.datakeys import Keys, keys_of
from mmcompress.errors import UsageError
from mmcompress.home import expanded
from mmcompress.packaged import packaged

TABLE = "captions.tsv"
CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
DATASET_TYPE = "dataset_type.txt"
SHARD_COUNT = "nshards.txt"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
COMPRESSED = (".tar.gz", ".tgz")
SHARD_SUFFIXES = (".tar", *COMPRESSED)
ACCEPTED = (
    "give WebDataset shards ('shards/{00000..00005}.tar', a glob, or one .tar), a folder of .tar shards, "
    f"a folder with a {TABLE}, a folder of images by class (DIR/CLASS/*.jpg), a folder of CLIP_benchmark's "
    f"(DIR/test/*.tar beside {CLASSNAMES}), a folder of photos without captions, an address "
    "('s3://bucket/{0..9}.tar', with 'cached:' before it to keep it), 'pipe:COMMAND', '-' for stdin, or demo:train, "
    "demo:val, demo:test"
)
STDIN = "-"
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?\}")
MOST_PLACES = 1_000_000
"""That braces may name: 400 million pairs in shards of 10,000 are 40,000."""
PHOTO_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)


def is_stream(spec: str) -> bool:
    """Whether the specification is no path: what another program or machine sends, from its begin to its end."""
    spec = bare(spec)
    return spec == STDIN or spec.startswith("pipe:") or "://" in spec


def is_table(place: str) -> bool:
    """Whether a place is a table of paths and captions."""
    return place.lower().endswith(".tsv") and not is_stream(place)


def is_address(place: str) -> bool:
    """Whether a place is in a store or on a server."""
    return "://" in place and is_stream(place) and not place.startswith("pipe:")


@dataclass(frozen=True)
class Share:
    """Every sample whose key falls into one of the bins `first` to `last` of `bins`."""

    first: int
    last: int
    bins: int

    def has(self, key: str) -> bool:
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
        return self.first <= number % self.bins <= self.last

    def of(self, spec: str) -> str:
        """The specification of this share of a set."""
        return f"part:{self.first}-{self.last}/{self.bins}:{spec}"

    def is_apart_from(self, other: Share) -> bool:
        """Whether no sample can be in both."""
        return self.bins == other.bins and (self.last < other.first or other.last < self.first)


def part_of(spec: str) -> tuple[Share | None, str]:
    """`part:2-9/10:SPEC` -> (those bins, SPEC); None for a specification that stands for all of its samples.

    So one set can be trained on and tested with, by parts that share no sample, wherever its shards begin and end.
    """
    if not spec.startswith("part:"):
        return None, spec
    match = re.fullmatch(r"part:(\d+)-(\d+)/(\d+):(.+)", spec)
    share = Share(*map(int, match.groups()[:3])) if match else None
    if match is None or share is None or not share.first <= share.last < share.bins:
        raise UsageError(f"{spec!r} is no part of a data set", "for example: part:0-1/10:shards, the first two of ten")
    return share, match[4]


def named_keys(spec: str) -> Keys:
    """By which keys a set is read, whole or in part."""
    return keys_of(part_of(spec)[1])[0]


def said_keys(spec: str) -> str:
    """`keys:image/caption:` of a specification that says keys, as it says them; nothing of another one."""
    whole = part_of(spec)[1]
    return whole[: len(whole) - len(keys_of(whole)[1])]


def bare(spec: str) -> str:
    """A specification without which part of it counts, and by which keys it is read."""
    return keys_of(part_of(spec)[1])[1]


def is_photos(spec: str) -> bool:
    """Whether there are images and nothing that is said of them."""
    return not is_stream(spec) and all(place.lower().endswith(PHOTO_SUFFIXES) for place in expand(spec))


def expand(spec: str) -> list[str]:
    """The places that a specification names, in order: tars, tables, folders of a class, other files, streams.

    Raises UsageError for what does not exist, and MissingRequirementError for an address whose package is not there. An
    existing path is taken as it is, whatever characters it has.
    """
    spec = bare(spec)
    if is_stream(spec):
        places = _braces(spec)
        for place in filter(is_address, places[:1]):
            check_scheme(place)
        return places
    if not spec:
        raise UsageError("the data specification is empty", ACCEPTED)
    try:
        pattern = str(packaged(spec)) if spec.startswith("demo:") else str(expanded(spec))
        if Path(pattern).exists():
            places = _place(Path(pattern))
        else:
            parts = _braces(pattern)
            _check_gaps(spec, parts)
            places = [place for part in parts for path in _matches(part) for place in _place(path)]
    except (OSError, RuntimeError, ValueError) as error:  # too long, of no such user, with a zero byte
        raise UsageError(
            f"{spec[:60]!r} cannot be read: {getattr(error, 'strerror', None) or error}", ACCEPTED
        ) from error
    return [f"./{place}" if is_stream(place) else place for place in places]  # a file may be called pipe:…


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    ranges = ((int(first), int(last), abs(int(step or 1)) or 1) for first, last, step in _RANGE.findall(pattern))
    if math.prod(abs(last - first) // step + 1 for first, last, step in ranges) > MOST_PLACES:  # all are made at once
        raise UsageError(
            f"the braces of {pattern!r} name more than {MOST_PLACES:,} places", "give a folder, or larger shards"
        )
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UsageError(
            f"the braces of {pattern!r} do not match", "for example: 'shards/{00000..00005}.tar'"
        ) from error


def _check_gaps(spec: str, parts: list[str]) -> None:
    """Raise UsageError where some of what braces name is there and some is not."""
    missing = [part for part in parts if not glob.has_magic(part) and not Path(part).exists()]
    if missing and len(missing) < len(parts):
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UsageError(
            f"of {len(parts)} places that {spec!r} names {len(missing)} are not there: {named}",
            f"fetch them, or take what is there by a pattern: '{_RANGE.sub('*', spec)}'",
        )


def _matches(pattern: str) -> list[Path]:
    if Path(pattern).exists():
        return [Path(pattern)]
    if not glob.has_magic(pattern):
        raise UsageError(f"there is no {pattern}", ACCEPTED)
    anchor = Path(pattern).anchor
    if not (paths := sorted(Path(anchor).glob(pattern.removeprefix(anchor)))):
        raise UsageError(f"nothing matches {pattern}", ACCEPTED)
    return paths


def _place(path: Path) -> list[str]:
    """A file is itself; a folder is its table if it has one, else its shards, its test shards, its classes, or where
    images lie right in it, all images below it."""
    if path.suffix.lower() == SUFFIX:
        raise _no_parquet(str(path), path)
    if not path.is_dir():
        _check_file(path)
        return [str(path)]
    if (path / TABLE).is_file():
        return [str(path / TABLE)]
    shards = shards_in(path)
    if shards and (image := next(images_in(path), None)) is not None:
        raise UsageError(
            f"the folder {path} holds {shards[0].name}, of the name of a shard, and images that lie in no shard, "
            f"{image.relative_to(path)} say: either could be the data",
            f"give the shards by a pattern, '{path}/*.tar', or move them out of the folder of images",
        )
    if not (places := shards or shards_for_test(path) or _photos(path) or _class_folders(path)):
        if (table := next(path.glob(f"*{SUFFIX}"), None)) is not None:
            raise _no_parquet(f"the folder {path} holds {table.name}, which", path)
        raise UsageError(f"the folder {path} holds neither .tar shards nor a {TABLE}, nor images", ACCEPTED)
    return [str(place) for place in places]


def _check_file(path: Path) -> None:
    """Raise UsageError for a pipe or a device: it is read once, or has no end, and data is hashed before it is read."""
    if not path.is_file():
        raise UsageError(
            f"{path} is a pipe or a device, and data is read more than once",
            "save it to a file, or give a command that can run again: 'pipe:cat FILE'",
        )


def _no_parquet(which: str, source: Path) -> UsageError:
    return UsageError(
        f"{which} is a Parquet table, which is packed before it is read",
        f"`mmcompress data pack {shlex.quote(str(source))} --out SHARDS` makes shards of the images or paths in it",
    )


def shards_for_test(folder: Path) -> list[Path]:
    """`test/0.tar`, `test/1.tar`, … as CLIP_benchmark numbers them, as many as its count says."""
    if not (folder / "test").is_dir():
        return []
    shards = sorted(shards_in(folder / "test"), key=lambda shard: (len(shard.name), shard.name))
    stated = folder / "test" / SHARD_COUNT
    if stated.is_file() and (count := stated.read_text(encoding="utf-8", errors="replace").strip()) != str(len(shards)):
        raise UsageError(
            f"{stated} says {count!r}, and there are {len(shards)} shards beside it", "fetch the missing shards"
        )
    return shards


def _class_folders(folder: Path) -> list[Path]:
    """The folders right in it that hold an image at any depth, hidden ones left out; each is a class."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if next(images_in(path), None) is not None]


def _photos(folder: Path) -> list[Path]:
    """Every image below a folder in which images lie; none where all of them lie in folders of classes."""
    loose = any(path.suffix[1:].lower() in IMAGE_SUFFIXES and path.name[0] != "." for path in folder.iterdir())
    return sorted(images_in(folder)) if loose else []


def images_in(folder: Path) -> Iterator[Path]:
    """The image files below a folder, in no order; hidden ones left out."""
    return files_in(folder, IMAGE_SUFFIXES)


def files_in(folder: Path, kinds: Collection[str]) -> Iterator[Path]:
    """The files of these kinds (`gif`) below a folder, in no order; hidden ones left out."""
    for path in folder.rglob("*"):
        if path.suffix[1:].lower() in kinds and not path.name.startswith(".") and path.is_file():
            yield path


def settings_beside(shard: str) -> dict[str, Path]:
    """CLIP_benchmark's lists that say what the samples of `DIR/test/0.tar` mean, by name; they lie in DIR."""
    if is_stream(shard) or not shard.lower().endswith(SHARD_SUFFIXES):
        return {}
    folder = Path(shard).absolute().parent.parent
    return {name: folder / name for name in (CLASSNAMES, DATASET_TYPE, TEMPLATES) if (folder / name).is_file()}


def shards_in(folder: Path) -> list[Path]:
    """The tars right in the folder, hidden ones left out."""
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(SHARD_SUFFIXES))
    return [folder / name for name in names if not name.startswith(".")]
