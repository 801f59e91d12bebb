"""What a stage reads beside artifacts: data, a teacher, a published student, a tokenizer. Of what is known before it
runs, fingerprints are part of the key. The rest is recorded when it has run, and a reuse asks whether it is still so:
the revision of a hub repository, and the files that a teacher of one's own opened.

So nothing has to be loaded or fetched to know whether an artifact may be reused.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmcompress.compress.identity import HUB, READ, changed_since, model_fingerprint
from mmcompress.config import BankConfig, DataConfig, PairConfig, StageConfig, StudentConfig, TeacherConfig
from mmcompress.data.fingerprint import fingerprint
from mmcompress.pipeline.recipe import DATA_FIELDS
from mmcompress.teachers import cached_folder

__all__ = ["READ", "outside", "revisions", "still_as_read"]


def outside(built: StageConfig) -> dict[str, str]:
    """Fingerprints of what is known of a stage's inputs before it runs, by the keys of its config."""
    fingerprints: dict[str, str] = {}
    data = getattr(built, "data", None)
    if isinstance(data, DataConfig):
        for name in DATA_FIELDS:
            if (spec := getattr(data, name)) is not None:
                fingerprints[f"data.{name}"] = fingerprint(spec)
    bank = getattr(built, "bank", None)
    for name in ("labels", "templates") if isinstance(bank, BankConfig) else ():
        if (spec := getattr(bank, name)) is not None:
            fingerprints[f"bank.{name}"] = fingerprint(spec)
    for name in ("trim_vocab", "sentences"):
        if (corpus := getattr(built, name, None)) is not None:
            fingerprints[name] = fingerprint(corpus)
    return fingerprints | {key: model_fingerprint(source) for key, source in _models(built).items()}


def revisions(built: StageConfig) -> dict[str, str]:
    """The hub repositories that a stage has read from, with the commits that lie in the hub's cache."""
    found = {f"{HUB}{source}": cached_folder(source) for source in _models(built).values()}
    return {name: folder.name for name, folder in found.items() if folder is not None}


def still_as_read(recorded: Mapping[str, str], built: StageConfig) -> bool:
    """Whether what an artifact says that it was read from is what is there now. A hub that has nothing cached is."""
    for name, known in recorded.items():
        if name.startswith(HUB):
            cached = cached_folder(name.removeprefix(HUB))
            if cached is not None and cached.name != known:
                return False
    return changed_since(recorded, _models(built).get("teacher", "")) is None


def _models(built: StageConfig) -> dict[str, str]:
    """The sources of models and tokenizers that a config names."""
    teacher, student = getattr(built, "teacher", None), getattr(built, "student", None)
    models = {"teacher": teacher.source} if isinstance(teacher, TeacherConfig) else {}
    if isinstance(student, StudentConfig):
        models |= {"student.source": student.source} if student.published else {}
        models |= {} if student.tokenizer is None else {"student.tokenizer": student.tokenizer}
    if isinstance(towers := getattr(built, "towers", None), PairConfig):
        models |= {"towers.image": towers.image, "towers.text": towers.text}
    return models
