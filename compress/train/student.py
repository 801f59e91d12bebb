"""What a student is asked to be: a preset, whose weights start from noise, or a share of its teacher (`inherit.py`)."""

from __future__ import annotations

import math

from mmcompress.architecture import DualEncoderConfig, ImageConfig, TextConfig
from mmcompress.config import StudentConfig
from mmcompress.errors import UsageError, suggestion
from mmcompress.manifest import TextProcessing
from mmcompress.model import DualEncoder, initialize

PRESETS: dict[str, tuple[int, int, int, int, int, int]] = {
    # name: image width, image blocks, patch, image size, text width, text blocks
    "vit-t8-64": (192, 6, 8, 64, 192, 4),
    "vit-m8-64": (256, 6, 8, 64, 256, 4),
    "vit-t16": (192, 12, 16, 224, 256, 6),
    "vit-s32": (384, 12, 32, 224, 384, 6),
    "vit-s16": (384, 12, 16, 224, 384, 6),
    "vit-b32": (768, 12, 32, 224, 512, 12),
    "vit-b16": (768, 12, 16, 224, 512, 12),
    "vit-l14": (1024, 24, 14, 224, 768, 12),
}
_HEAD_DIM = 64
_MLP_RATIO = 4


def preset_config(student: StudentConfig, embed_dim: int, text: TextProcessing, vocab: int) -> DualEncoderConfig:
    """The sizes of a preset, for a given shared space and tokenizer. Heads have 64 channels (32 at width 192)."""
    check_preset(student)
    width, blocks, patch, size, text_width, text_blocks = PRESETS[student.source]
    size = student.image_size or size
    return DualEncoderConfig(
        embed_dim=embed_dim,
        image=ImageConfig(**_uniform(width, blocks), image_size=size, patch=patch),
        text=TextConfig(
            **_uniform(text_width, text_blocks),
            vocab=vocab,
            context=text.context,
            pooling="end",
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
        ),
    )


def check_preset(student: StudentConfig) -> None:
    """Raise UsageError for a preset that there is not, or an image size that its patches do not fill."""
    if student.source not in PRESETS:
        known = [*PRESETS, "inherit:0.25"]
        raise UsageError(f"unknown student {student.source!r}", suggestion(student.source, known))
    patch, size = PRESETS[student.source][2], student.image_size
    if size is not None and (size < patch or size % patch):
        raise UsageError(f"image_size {size} is not a multiple of the {patch}-pixel patches", "choose another size")


def _uniform(width: int, blocks: int) -> dict[str, object]:
    head_dim = _HEAD_DIM if width % (4 * _HEAD_DIM) == 0 or width >= 384 else _HEAD_DIM // 2
    return {
        "width": width,
        "head_dim": head_dim,
        "heads": (width // head_dim,) * blocks,
        "mlp": (_MLP_RATIO * width,) * blocks,
    }


def student_from_preset(
    student: StudentConfig, embed_dim: int, text: TextProcessing, vocab: int, seed: int
) -> DualEncoder:
    return initialize(DualEncoder(preset_config(student, embed_dim, text, vocab)), seed)


def inherited_share(source: str) -> float | None:
    """The F of `inherit:F`; None for anything else."""
    if not source.startswith("inherit:"):
        return None
    try:
        share = float(source.removeprefix("inherit:"))
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(
            f"student {source!r}: the share must be a number above 0 and up to 1", "for example inherit:0.25"
        )
    return share
