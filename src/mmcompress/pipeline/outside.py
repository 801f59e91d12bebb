"""What a stage reads beside artifacts: data, a teacher, a tokenizer. Of what is known before it runs, fingerprints are
part of the key. The rest is recorded when it has run, and a reuse asks whether it is still so: the revision of a hub
repository, and the files that a teacher of one's own opened.

So nothing has to be loaded or fetched to know whether an artifact may be reused. Weights are hashed whole: those of
another training have the same size, and may differ in the middle only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmcompress.config import DataConfig, StageConfig, StudentConfig, TeacherConfig
from mmcompress.data.digests import sha256_of
from mmcompress.data.spec import fingerprint
from mmcompress.manifest import hash_json
from mmcompress.pipeline.recipe import DATA_FIELDS
from mmcompress.teachers import OPEN_CLIP, cached_folder, open_clip_weights, own_code

READ = "read"
"""The fact of an artifact in which that is recorded: paths with SHA-256, and `hub:NAME` with a commit."""
_HUB = "hub:"


def outside(built: StageConfig) -> dict[str, str]:
    """Fingerprints of what is known of a stage's inputs before it runs, by the keys of its config."""
    fingerprints: dict[str, str] = {}
    data = getattr(built, "data", None)
    if isinstance(data, DataConfig):
        for name in DATA_FIELDS:
            if (spec := getattr(data, name)) is not None:
                fingerprints[f"data.{name}"] = fingerprint(spec)
    return fingerprints | {key: _model_fingerprint(source) for key, source in _models(built).items()}


def revisions(built: StageConfig) -> dict[str, str]:
    """The hub repositories that a stage has read from, with the commits that lie in the hub's cache."""
    found = {f"{_HUB}{source}": cached_folder(source) for source in _models(built).values()}
    return {name: folder.name for name, folder in found.items() if folder is not None}


def still_as_read(recorded: Mapping[str, str], built: StageConfig) -> bool:
    """Whether what an artifact says that it was read from is what is there now. A hub that has nothing cached is."""
    models = _models(built)
    own = own_code(models["teacher"]) if "teacher" in models else None
    folder = own[0].parent if own else Path()
    for name, known in recorded.items():
        if name.startswith(_HUB):
            cached = cached_folder(name.removeprefix(_HUB))
            if cached is not None and cached.name != known:
                return False
        elif not (folder / name).is_file() or sha256_of(folder / name) != known:
            return False
    return True


def _models(built: StageConfig) -> dict[str, str]:
    """The sources of models and tokenizers that a config names."""
    teacher, student = getattr(built, "teacher", None), getattr(built, "student", None)
    models = {"teacher": teacher.source} if isinstance(teacher, TeacherConfig) else {}
    if isinstance(student, StudentConfig) and student.tokenizer is not None:
        models["student.tokenizer"] = student.tokenizer
    return models


def _model_fingerprint(source: str) -> str:
    """Of local files the content, and of a function its name; of anything else the text."""
    own = own_code(source)
    if own is not None:
        return hash_json(["function", own[1], _content(own[0])])
    if source.startswith(OPEN_CLIP):
        name = source.removeprefix(OPEN_CLIP)
        place = open_clip_weights(name)
        return hash_json(["open_clip", name if place is None else name.partition("/")[0], place and _content(place)])
    place = Path(source).expanduser()
    return hash_json(["files", _content(place)]) if place.exists() else hash_json(["text", source])


def _content(place: Path) -> list[tuple[str, str]]:
    """Names and SHA-256 of a file, or of the files in a folder; hidden ones and bytecode left out."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    named = [(path.relative_to(place).as_posix() if path != place else "", path) for path in files]
    seen = [(name, path) for name, path in named if not re.search(r"(^|/)(\.|__pycache__/)", name)]
    return [(name, sha256_of(path)) for name, path in seen]
