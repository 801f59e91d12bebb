"""What tells one model from another: the content of its local files, whatever they are called, else its name.

So nothing has to be loaded or fetched to know whether a model is the one that an artifact was made from. Weights are
hashed whole: those of another training have the same size, and may differ in the middle only.
"""

from __future__ import annotations

import re
from pathlib import Path

from mmcompress.digests import sha256_of
from mmcompress.manifest import hash_json
from mmcompress.teachers import OPEN_CLIP, open_clip_weights, own_code


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
    place = Path(source).expanduser()
    return place if place.exists() else None


def _content(place: Path) -> list[tuple[str, str]]:
    """Names and SHA-256 of a file, or of the files in a folder; hidden ones and bytecode left out."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    named = [(path.relative_to(place).as_posix() if path != place else "", path) for path in files]
    seen = [(name, path) for name, path in named if not re.search(r"(^|/)(\.|__pycache__/)", name)]
    return [(name, sha256_of(path)) for name, path in seen]
