"""What a data specification names: shards, folders, streams, or what ships with the package.

A specification is a string, so that it fits into a recipe and on a command line. Here it becomes a list of places and a
fingerprint; nothing is read but names and, for the fingerprint, bytes. The fingerprint is the content's, not the
path's: moving a data set does not run a stage again, changing a byte of it does. What cannot be looked at cheaply
(hub ids, URLs, commands) is known by its text alone.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.resources
import re
from pathlib import Path

from mmcompress.artifact import hash_file, hash_json
from mmcompress.errors import UsageError, suggestion

TABLE = "captions.tsv"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PACKAGED = {
    "train": "train-*.tar",
    "val": "val-*.tar",
    "test": "test-*.tar",
    "names": "names.txt",
    "names-zh": "names-zh.txt",
    "teacher": "teacher",
}
ACCEPTED = (
    "give WebDataset shards ('shards/{00000..00005}.tar', a glob, or one .tar), a folder of .tar shards, "
    f"a folder with a {TABLE}, a URL, 'pipe:COMMAND', '-' for stdin, or demo:train, demo:val, demo:test"
)
_WHOLE = 64 * 2**20
_END = 8 * 2**20


def packaged(spec: str) -> Path:
    """Where `demo:NAME` lies in the package: a file, a folder, or a pattern of shards."""
    name = spec.removeprefix("demo:")
    if name == spec or name not in PACKAGED:
        raise UsageError(f"nothing that ships with mmcompress is called {spec!r}", suggestion(name, PACKAGED))
    return Path(str(importlib.resources.files("mmcompress.demo"))) / PACKAGED[name]


def is_stream(spec: str) -> bool:
    """Whether the specification is read once, from its begin to its end, by another program."""
    return spec == "-" or spec.startswith("pipe:") or "://" in spec


def expand(spec: str) -> list[str]:
    """The places that a specification names, in order: tars, `.tsv` tables, other files, or streams.

    Raises UsageError for what does not exist. An existing path is taken as it is, whatever characters it has.
    """
    if is_stream(spec):
        return _braces(spec)
    pattern = str(packaged(spec)) if spec.startswith("demo:") else str(Path(spec).expanduser())
    if not spec:
        raise UsageError("the data specification is empty", ACCEPTED)
    if Path(pattern).exists():
        return _place(Path(pattern))
    return [place for part in _braces(pattern) for path in _matches(part) for place in _place(path)]


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UsageError(
            f"the braces of {pattern!r} do not match", "for example: 'shards/{00000..00005}.tar'"
        ) from error


def _matches(pattern: str) -> list[Path]:
    if Path(pattern).exists():
        return [Path(pattern)]
    if not glob.has_magic(pattern):
        raise UsageError(f"there is no {pattern}", ACCEPTED)
    anchor = Path(pattern).anchor
    if not (found := sorted(Path(anchor).glob(pattern.removeprefix(anchor)))):
        raise UsageError(f"nothing matches {pattern}", ACCEPTED)
    return found


def _place(path: Path) -> list[str]:
    """A file is itself; a folder is its table if it has one, else its shards."""
    if not path.is_dir():
        return [str(path)]
    if (path / TABLE).is_file():
        return [str(path / TABLE)]
    if not (shards := _shards(path)):
        raise UsageError(f"the folder {path} holds neither .tar shards nor a {TABLE}", ACCEPTED)
    return [str(shard) for shard in shards]


def _shards(folder: Path) -> list[Path]:
    """The tars right in the folder, hidden ones left out."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(SHARD_SUFFIXES))
    return [folder / name for name in names if not name.startswith(".")]


def fingerprint(spec: str) -> str:
    """Content identity of a data specification or of a teacher's source.

    Local files and folders: names, sizes and SHA-256 (of the first and last 8 MiB where a file has more than 64 MiB).
    Hub ids, aliases, URLs and commands: the text. `file.py:function`: the file and the function's name.
    """
    if is_stream(spec):
        return hash_json(["text", spec])
    if match := re.fullmatch(r"(.+\.py):(\w+)", spec):
        file, function = Path(match[1]).expanduser(), match[2]
        if file.is_file():
            return hash_json(["function", function, _identity(file)])
    path = packaged(spec) if spec.startswith("demo:") else Path(spec).expanduser()
    if path.is_dir():
        return hash_json(["files", [[name, *_identity(file)] for name, file in _content(path)]])
    if path.is_file() or spec.startswith("demo:") or "{" in spec or glob.has_magic(spec):
        return hash_json(["files", [[Path(place).name, *_identity(Path(place))] for place in _files(spec)]])
    return hash_json(["text", spec])


def _files(spec: str) -> list[str]:
    """Every file below the places of a specification."""
    places = expand(spec)
    tables = [place for place in places if place.endswith(".tsv")]
    beside = [str(file) for table in tables for _, file in _content(Path(table).parent)]
    return [place for place in places if place not in tables] + beside


def _content(folder: Path) -> list[tuple[str, Path]]:
    """The shards of a folder of shards, else every file in it; hidden files and bytecode left out."""
    if not (folder / TABLE).is_file() and (shards := _shards(folder)):
        return [(shard.name, shard) for shard in shards]
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return [(name, path) for name, path in files if not re.search(r"(^|/)(\.|__pycache__/)", name)]


def _identity(path: Path) -> tuple[int, str]:
    stat = path.stat()
    return stat.st_size, _hash(str(path.absolute()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=65536)
def _hash(path: str, size: int, mtime_ns: int) -> str:
    """One recipe asks for the same files at every stage, so what was hashed is remembered until it is touched."""
    if size <= _WHOLE:
        return hash_file(Path(path))
    with Path(path).open("rb") as stream:
        digest = hashlib.sha256(stream.read(_END))
        stream.seek(size - _END)
        digest.update(stream.read(_END))
    return digest.hexdigest()
