"""What a data specification or a teacher's source holds, as one hash: the content's, not the path's.

Moving a data set does not run a stage again, changing a byte of it does. What cannot be looked at cheaply (hub ids,
URLs, commands) is known by its text alone.
"""

from __future__ import annotations

import glob
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmcompress.data.remote import CACHED
from mmcompress.data.spec import (
    STDIN,
    TABLE,
    expand,
    is_stream,
    is_table,
    part_of,
    settings_beside,
    shards_for_test,
    shards_in,
)
from mmcompress.datakeys import keys_of
from mmcompress.digests import sha256_of
from mmcompress.errors import CorruptInputError
from mmcompress.home import expanded
from mmcompress.manifest import hash_json
from mmcompress.packaged import packaged

_PROCESS = uuid.uuid4().hex
"""What nothing that another process has read can have in its key."""
_HASHING, _AT_ONCE = 8, 16
"""Threads that hash files, and the files that one takes at a time: most are known, and handing over costs more."""


def fingerprint(spec: str) -> str:
    """Content identity of a data specification or of a teacher's source.

    Local files and folders: names, sizes and SHA-256, which `digests.py` remembers.
    Hub ids, aliases, URLs and commands: the text. `file.py:function`: the file and the function's name. What comes from
    stdin is never the same again.
    """
    share, whole = part_of(spec)
    if share is not None:
        return hash_json(["part", share.first, share.last, share.bins, fingerprint(whole)])
    keys, whole = keys_of(spec)
    if whole != spec:
        return hash_json(["keys", keys.images, keys.texts, keys.last_dot, fingerprint(whole)])
    if spec == STDIN:
        return hash_json(["stdin", _PROCESS])
    if is_stream(spec):
        return hash_json(["text", spec.removeprefix(CACHED)])
    if match := re.fullmatch(r"(.+\.py):(\w+)", spec):
        file, function = expanded(match[1]), match[2]
        if file.is_file():
            return hash_json(["function", function, _identity(file)])
    path = packaged(spec) if spec.startswith("demo:") else expanded(spec)
    if path.is_dir() and not shards_for_test(path):
        return _of_files(_content(path))
    if path.exists() or spec.startswith("demo:") or "{" in spec or glob.has_magic(spec):
        return _of_files([(Path(place).name, Path(place)) for place in _files(spec)])
    return hash_json(["text", spec])


def same_set(a: str, b: str) -> bool:
    """Whether two specifications name one content, wherever it lies."""
    return a == b or fingerprint(a) == fingerprint(b)


def _files(spec: str) -> list[str]:
    """Every file below the places of a specification, and the lists that belong to them."""
    files: dict[str, None] = {}
    for place in expand(spec):
        if Path(place).is_dir() or is_table(place):
            folder = Path(place) if Path(place).is_dir() else Path(place).parent
            files |= dict.fromkeys(str(file) for _, file in _content(folder))
        else:
            files |= dict.fromkeys([place, *map(str, settings_beside(place).values())])
    return list(files)


def _content(folder: Path) -> list[tuple[str, Path]]:
    """The shards of a folder of shards and the lists beside it, else every file; hidden ones and bytecode left out."""
    if not (folder / TABLE).is_file() and (shards := shards_in(folder)):
        return [*((shard.name, shard) for shard in shards), *settings_beside(str(shards[0])).items()]
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return [(name, path) for name, path in files if not re.search(r"(^|/)(\.|__pycache__/)", name)]


def _of_files(named: list[tuple[str, Path]]) -> str:
    """The identity of files under their names; they are hashed side by side, outside of the interpreter lock."""
    parts = [named[i : i + _AT_ONCE] for i in range(0, len(named), _AT_ONCE)]
    with ThreadPoolExecutor(_HASHING, thread_name_prefix="hash") as pool:
        found = [one for part in pool.map(_identities, parts) for one in part]
    return hash_json(["files", found])


def _identities(named: list[tuple[str, Path]]) -> list[tuple[str, int, str]]:
    return [(name, *_identity(path)) for name, path in named]


def _identity(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise CorruptInputError(f"{path} cannot be read: {error.strerror}", "mend it, or leave it out") from error
