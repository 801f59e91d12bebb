"""SHA-256 of files, remembered from run to run: what has been hashed is hashed again when it was touched.

A rerun asks for the content of every shard, of every image of a table and of every file of a teacher, and reads none of
them. A file is known by its path, its size and the times of its last changes; the time of its inode too, since copying
with times kept changes a file and neither of the other two. Each folder has a log in the cache, one line a file, the
last line counts: 10,000 shards are one small file to read, and a process that is killed leaves at most a torn line,
which is skipped. Rejected: a file a digest, as tables name more images than a cache should hold files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from mmcompress.errors import CorruptInputError
from mmcompress.manifest import hash_file
from mmcompress.places import cache_folder
from mmcompress.strictjson import json_from_text, text_from_json

Identity = tuple[int, int, int]
"""Bytes, and the times of the last change of the content and of the inode in ns."""
_SETTLED_NS = 100_000_000
"""File systems tell times apart by up to 10 ms: a file that is younger may change again within the same time."""
_tables: dict[Path, dict[str, tuple[Identity, str]]] = {}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, from the cache where it is known and untouched.

    Raises OSError for a file that cannot be read, and CorruptInputError for one that changes meanwhile.
    """
    path = path.absolute()
    before = identity_of(path)
    log, known = _table(path.parent)
    found = known.get(path.name)
    if found is not None and found[0] == before:
        return found[1]
    began = time.time_ns()
    digest = hash_file(path)
    if identity_of(path) != before:
        raise CorruptInputError(f"{path} changes while it is read", "wait until it is written")
    if began - max(before[1:]) > _SETTLED_NS:
        known[path.name] = before, digest
        _append(log, path.name, before, digest)
    return digest


def remember(digests: Mapping[Path, str]) -> None:
    """Take over the SHA-256 of files that their writer has just read, and that nobody else can have changed since."""
    time.sleep(_SETTLED_NS / 1e9)
    for path, digest in digests.items():
        path = path.absolute()
        log, known = _table(path.parent)
        known[path.name] = identity_of(path), digest
        _append(log, path.name, *known[path.name])


def identity_of(path: Path) -> Identity:
    """What tells without reading a file whether it was touched."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _table(folder: Path) -> tuple[Path, dict[str, tuple[Identity, str]]]:
    """The log of a folder's files, and what it says of them."""
    name = hashlib.blake2b(str(folder).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    log = cache_folder() / "digests" / f"{name}.jsonl"
    if log not in _tables:
        _tables.setdefault(log, _read(log))  # another thread may have been quicker
    return log, _tables[log]


def _read(log: Path) -> dict[str, tuple[Identity, str]]:
    try:
        lines = log.read_bytes().splitlines()
    except OSError:
        return {}
    known = {}
    for line in lines:
        try:
            name, size, mtime, ctime, digest = json_from_text(line)
        except (ValueError, TypeError):
            continue  # torn
        known[name] = ((size, mtime, ctime), digest)
    return known


def _append(log: Path, name: str, identity: Identity, digest: str) -> None:
    """One write, so that processes which append at once do not mix their lines. A cache is no duty: see `index.py`."""
    line = text_from_json([name, *identity, digest], canonical=True)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab", buffering=0) as stream:
            stream.write(f"{line}\n".encode())
    except OSError:
        return
