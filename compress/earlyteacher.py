"""What can be known of a teacher before it is loaded: whether it is there and whole, its sizes, its images, its texts.

Nothing is fetched but a folder that a tokenizer is taken from. Of a hub id that is not cached nothing is known yet.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.checkpoints import config_from_folder, is_own_checkpoint, own_checkpoint
from mmcompress.compress.identity import READ, changed_since, local_place, model_fingerprint
from mmcompress.compress.openclip import check_open_clip, check_open_clip_weights
from mmcompress.compress.ownteacher import check_own
from mmcompress.config import TeacherConfig
from mmcompress.errors import UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.export.texts import save_text_processing
from mmcompress.pretrained import check_folder
from mmcompress.teachers import ALIASES, OPEN_CLIP, cached_folder, hub_id, own_code, resolve
from mmcompress.weights import check_finite, weight_files


def check_source(teacher: TeacherConfig) -> None:
    """Refuse a teacher that is not there, or that is no teacher as far as can be seen without loading it."""
    own = own_code(teacher.source)
    if own is not None:
        check_own(*own)
    elif teacher.source.startswith(OPEN_CLIP):
        check_open_clip(teacher.source.removeprefix(OPEN_CLIP))
        check_open_clip_weights(teacher.source)
    elif (folder := folder_here(teacher)) is not None:
        if is_own_checkpoint(folder):
            own_checkpoint(folder)
        else:
            check_folder(folder, teacher.trust_remote_code)
        for file in weight_files(folder):
            check_finite(file)


def check_is_foreign(teacher: TeacherConfig) -> None:
    """Raise UsageError for a checkpoint of ours, whose graphs are written from its own sizes."""
    folder = local_place(teacher.source)
    if folder is not None and folder.is_dir() and is_own_checkpoint(folder):
        raise UsageError(
            f"{teacher.source} is a checkpoint of mmcompress, which neither transformers nor a function of yours opens",
            f"its graphs: mmcompress export {teacher.source} --out DIR",
        )


def check_same_teacher(source: str, embeddings: Artifact) -> None:
    """Raise UsageError where cached embeddings are of another teacher, or of other weights, than what is named.

    One that was only moved is the same; one that is not here any more is taken by its name.
    """
    recorded = embeddings.manifest.config.get("teacher")
    theirs = recorded.get("source") if isinstance(recorded, dict) else None
    known = embeddings.manifest.parents.get("teacher")
    if not isinstance(theirs, str):
        return
    if known == model_fingerprint(source):
        if (changed := changed_since(embeddings.manifest.facts.get(READ, {}), source)) is not None:
            raise _changed_since(source, embeddings, f": {changed} is another one")
        return
    if ALIASES.get(source, source) != ALIASES.get(theirs, theirs):
        raise UsageError(
            f"the embeddings in {embeddings.path} are of the teacher {theirs!r}, and the teacher is {source!r}",
            "give the embeddings of that teacher, or leave one of both out",
        )
    place = local_place(source)
    if known is not None and place is not None and place.exists():
        raise _changed_since(source, embeddings)


def _changed_since(source: str, embeddings: Artifact, how: str = "") -> UsageError:
    return UsageError(
        f"the teacher {source!r} has changed since the embeddings in {embeddings.path} were made of it{how}",
        "embed it again, or restore what it was",
    )


def coming_model(teacher: TeacherConfig) -> DualEncoderConfig | None:
    """The sizes of the checkpoint that a teacher becomes; None for one that becomes none, or is not here yet."""
    folder = None if brings_no_tokenizer(teacher.source) else folder_here(teacher)
    try:
        return None if folder is None else config_from_folder(folder)
    except UsageError:  # of a family that says it otherwise
        return None


def side_of(teacher: TeacherConfig) -> int | None:
    """The side of a teacher's images, in pixels; None where no folder on this machine says it."""
    if own_code(teacher.source) is not None or teacher.source.startswith(OPEN_CLIP):
        return None
    folder = folder_here(teacher)
    return None if folder is None else image_processing(folder, teacher.trust_remote_code).size


def brings_no_tokenizer(source: str) -> bool:
    return source.startswith(OPEN_CLIP) or own_code(source) is not None


def check_tokenizer(teacher: TeacherConfig, fetched: bool = False) -> Path | None:
    """The folder of a teacher if it is here or to be fetched, after its tokenizer has been read as a student's."""
    folder = resolve(teacher) if fetched else folder_here(teacher)
    if folder is not None:
        with tempfile.TemporaryDirectory() as scratch:
            save_text_processing(folder, Path(scratch), teacher.trust_remote_code)
    return folder


def folder_here(teacher: TeacherConfig) -> Path | None:
    """A folder on this machine; None for a hub id that is not cached, whose name may still be wrong."""
    if hub_id(teacher.source) is not None:
        return cached_folder(teacher.source)
    return resolve(teacher)
