"""Checkpoints where a teacher's folder is asked for: what `config.json` would say, a manifest says.

No class of transformers computes a convolutional student, or one whose blocks have different sizes, so their folders
have no config.json. Sizes, preprocessing and tokenizer are then those of the manifest, and every byte is verified as of
any artifact. A folder with a config.json is read as transformers reads it, whoever wrote it.
"""

from __future__ import annotations

from pathlib import Path

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact, manifest_of_kind
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.families import config_from_hugging_face
from mmcompress.int8 import INTEGERS
from mmcompress.manifest import Kind
from mmcompress.places import MANIFEST

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
"""What of a checkpoint's folder is its tokenizer."""


def is_own_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours that transformers has no class for. Only its manifest is read.

    Raises as `check_float_checkpoint`.
    """
    if (folder / "config.json").is_file() or not (folder / MANIFEST).is_file():
        return False
    check_float_checkpoint(folder)
    return True


def check_float_checkpoint(folder: Path) -> None:
    """Raise UsageError for an artifact that is no checkpoint, or a quantized one, since a teacher is read in float."""
    manifest = manifest_of_kind(folder, Kind.CHECKPOINT)
    if INTEGERS in manifest.files:
        raise UsageError(
            f"{folder} is quantized, and a teacher is read in float", "give the checkpoint that it was made from"
        )


def own_checkpoint(folder: Path) -> Artifact:
    """The verified checkpoint in such a folder; CorruptInputError where its images are not those of its model."""
    found = Artifact.open(folder, Kind.CHECKPOINT)
    if (side := found.image_processing.size) != (wanted := found.model.image.image_size):
        raise CorruptInputError(
            f"{folder} prepares images of {side} pixels, and its model takes {wanted}", "make the checkpoint again"
        )
    return found


def config_from_folder(folder: Path) -> DualEncoderConfig:
    """The sizes of the model in a folder. Raises UsageError for one of another family."""
    return own_checkpoint(folder).model if is_own_checkpoint(folder) else config_from_hugging_face(folder)
