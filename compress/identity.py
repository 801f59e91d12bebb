"""What tells one model from another: the content of its local files, whatever they are called, else its name.

So nothing has to be loaded or fetched to know whether a model is the one that an artifact was made from. Weights are
hashed whole: those of another training have the same size, and may differ in the middle only. What a teacher of one's
own read is known when it was loaded, and recorded beside what was made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmcompress.digests import sha256_of
from mmcompress.home import expanded
from mmcompress.manifest import hash_file, hash_json
from mmcompress.teachers import OPEN_CLIP, open_clip_weights, own_code

READ = "read"
"""The fact of an artifact that says what it was read from: paths with SHA-256, and `hub:NAME` with a commit."""
HUB = "hub:"


def model_fingerprint(source: str) -> str:
    """Of local files the content, and of a function its name; of anything else the text."""
    own, place = own_code(source), local_place(source)
    if own is not None:
        return hash_json(["function", own[1], _content(own[0])])
    if source.startswith(OPEN_CLIP):
        name = source.removeprefix(OPEN_CLIP)
        return hash_json(["open_clip", name if place is None else name.partition("/")[0], place and _content(place)])
    return hash_json(["text", source]) if place is None else hash_json(["files", _content(place)])


def local_place(source: str) -> Path | None:
    """The file or folder on this machine that a source names, there or not; None for a name on a hub, or an alias."""
    own = own_code(source)
    if own is not None:
        return own[0]
    if source.startswith(OPEN_CLIP):
        return open_clip_weights(source.removeprefix(OPEN_CLIP))
    place = expanded(source)
    return place if place.exists() else None


def hashes_of_read(files: Iterable[Path], source: str) -> dict[str, str]:
    """SHA-256 of the files that a teacher was read from; those below its own file's folder by their names in it."""
    folder = _own_folder(source, Path("/"))
    inside = {path: path.relative_to(folder) if path.is_relative_to(folder) else path for path in files}
    return {str(name): hash_file(path) for path, name in sorted(inside.items())}


def changed_since(read: Mapping[str, str], source: str) -> Path | None:
    """The first file of what was recorded by `hashes_of_read` that is not there any more, or another one."""
    folder = _own_folder(source, Path())
    files = {folder / name: digest for name, digest in read.items() if not name.startswith(HUB)}
    return next((path for path, digest in files.items() if not path.is_file() or sha256_of(path) != digest), None)


def _own_folder(source: str, otherwise: Path) -> Path:
    own = own_code(source)
    return otherwise if own is None else own[0].absolute().parent


def _content(place: Path) -> list[tuple[str, str]]:
    """Names and SHA-256 of a file, or of the files in a folder; hidden ones and bytecode left out."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    named = [(path.relative_to(place).as_posix() if path != place else "", path) for path in files]
    seen = [(name, path) for name, path in named if not re.search(r"(^|/)(\.|__pycache__/)", name)]
    return [(name, sha256_of(path)) for name, path in seen]
