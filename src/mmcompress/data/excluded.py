"""Lists of samples that could be left out: a table that people read, and `data filter --exclude` takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mmcompress.drafts import written_whole
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.places import writing_file

HEADER = "key\tlike\tcosine"


def check_list(out: Path) -> None:
    """Raise UsageError unless a list may be written: where nothing is, or another one."""
    if out.exists() and not (out.is_file() and _begin(out) == HEADER):
        raise UsageError(f"{out} exists and is no list of ours, so it is not overwritten", "give another --out")


def _begin(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.readline(100).decode("utf-8", "replace").rstrip("\r\n")


def write_list(out: Path, lines: Iterable[tuple[str, str, float]]) -> None:
    """A key, the key of what it is like, and their cosine a line; whole or not at all."""
    check_list(out)
    with writing_file(out), written_whole(out) as stream:
        stream.write(f"{HEADER}\n".encode())
        for key, like, cosine in lines:
            if {"\t", "\n", "\r"} & {*key, *like}:
                raise UsageError(f"the key {key!r} has a tab or a line break in it", "rename the sample")
            stream.write(f"{key}\t{like}\t{cosine:.4f}\n".encode())


class Excluded:
    """Whether a key is on a list; 8 bytes of its hash are held."""

    def __init__(self, path: Path | None) -> None:
        self._keys: set[bytes] = set()
        self.found = 0
        if path is None:
            return
        if not path.is_file():
            raise UsageError(f"there is no list {path}", "give one that `data dedupe` wrote")
        if _begin(path) != HEADER:
            raise CorruptInputError(f"{path} does not begin with {HEADER!r}", "give a list that `data dedupe` wrote")
        try:
            with path.open(encoding="utf-8") as lines:
                next(lines)
                self._keys = {_hash(line.partition("\t")[0]) for line in lines if line.strip()}
        except UnicodeDecodeError as error:
            raise CorruptInputError(f"{path} is not UTF-8: {error}", "save it as UTF-8") from error

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, key: str) -> bool:
        self.found += (on := _hash(key) in self._keys)
        return on


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
