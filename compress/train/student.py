"""Where a student starts: the sizes of a preset from scratch, a published tower, or parts of the teacher.

`inherit:F` keeps evenly spaced blocks and, in each, some heads and MLP units (`inherit.py`), so that the image tower
has at most F of the teacher's MACs. Width, patches, tokenizer, projection or attention pooling stay the teacher's. A
text tower with LayerNorms behind its blocks is taken over whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmcompress.architecture import AnyImageConfig, DualEncoderConfig, ImageConfig, TextConfig
from mmcompress.compress.train.mobilenetv4 import mobilenetv4
from mmcompress.compress.train.presets import CONV_PRESETS, PRESETS
from mmcompress.compress.train.published import Published, load_published
from mmcompress.compress.train.scaling import check_shares, scaled
from mmcompress.config import DistillConfig, StudentConfig
from mmcompress.convnet import ConvConfig
from mmcompress.convtower import ConvTower
from mmcompress.errors import UsageError, suggestion
from mmcompress.manifest import TextProcessing
from mmcompress.model import DualEncoder, initialize
from mmcompress.towerparts import LARGEST_SIDE
from mmcompress.transformer import Block

_HEAD_DIM = 64
_MLP_RATIO = 4


def preset_config(student: StudentConfig, embed_dim: int, text: TextProcessing, vocab: int) -> DualEncoderConfig:
    """The sizes of a preset, for a given shared space and tokenizer. Heads have 64 channels (32 at width 192)."""
    check_preset(student)
    text_width, text_blocks = (CONV_PRESETS if student.source in CONV_PRESETS else PRESETS)[student.source][-2:]
    return DualEncoderConfig(
        embed_dim=embed_dim,
        image=preset_image(student),
        text=TextConfig(
            **_uniform(text_width, text_blocks),
            vocab=vocab,
            context=text.context,
            pooling="end",
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
        ),
    )


def preset_image(student: StudentConfig) -> AnyImageConfig:
    """The image tower of a preset, at its resolution, width and depth."""
    image: AnyImageConfig
    if student.source in CONV_PRESETS:
        variant, size, stem_stride, *_ = CONV_PRESETS[student.source]
        image = mobilenetv4(variant, student.image_size or size, stem_stride)
    else:
        width, blocks, patch, size, *_ = PRESETS[student.source]
        image = ImageConfig(**_uniform(width, blocks), image_size=student.image_size or size, patch=patch)
    return scaled(image, student.width, student.depth)


def check_preset(student: StudentConfig) -> None:
    """Raise UsageError for a preset that there is not, or that cannot have its image size, width or depth.

    Of a published tower the size alone is looked at.
    """
    if student.image_size is not None and not 1 <= student.image_size <= LARGEST_SIDE:
        said = f"image_size {student.image_size} is no side of an image, which has 1 to {LARGEST_SIDE} pixels"
        raise UsageError(said, "give pixels, 224 say")
    if student.published:
        return
    if student.source not in (*PRESETS, *CONV_PRESETS):
        known = [*PRESETS, *CONV_PRESETS, "inherit:0.25"]
        if Path(student.source).is_dir():
            said = f"student {student.source!r} is no preset, and of a folder a path is asked for"
            raise UsageError(said, f"give ./{student.source}")
        raise UsageError(f"unknown student {student.source!r}", suggestion(student.source, known))
    if student.source in PRESETS and (size := student.image_size) is not None:
        patch = PRESETS[student.source][2]
        if size < patch or size % patch:
            raise UsageError(f"image_size {size} is not a multiple of the {patch}-pixel patches", "choose another size")
    whole = preset_image(student.model_copy(update={"width": 1.0, "depth": 1.0}))
    check_shares(whole, student.width, student.depth)


def check_reads_teachers_texts(student: StudentConfig, teacher: str) -> None:
    """Raise UsageError for a tokenizer that nothing would read: a student has that of its teacher, where it has one."""
    if student.tokenizer is not None:
        raise UsageError(
            f"student.tokenizer is for teachers that bring none, and {teacher} has its own",
            "leave it out: the student's texts are read as the teacher's are",
        )


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
    """A preset with random weights."""
    return initialize(DualEncoder(preset_config(student, embed_dim, text, vocab)), seed)


def coming_student(config: DistillConfig, teacher: DualEncoderConfig) -> DualEncoderConfig | None:
    """The sizes of the student that a distillation begins with, by its teacher's; None for one that is published, whose
    own have to be read first."""
    if (student := config.student) is None or student.published:
        return None
    if (share := inherited_share(student.source)) is not None:
        return inherited_config(teacher, share)
    theirs = teacher.text
    text = TextProcessing(context=theirs.context, pad_token_id=theirs.pad_token_id, eos_token_id=theirs.eos_token_id)
    made = preset_config(student, config.embed_dim or teacher.embed_dim, text, theirs.vocab)
    return made.model_copy(update={"text": theirs}) if config.text == "keep" else made


def student_from_published(
    student: StudentConfig, found: Published, embed_dim: int, text: TextProcessing, vocab: int, seed: int
) -> DualEncoder:
    """The preset of a published tower, with its weights up to the projection."""
    asked = {"source": found.preset, "image_size": student.image_size or found.image_size}
    model = student_from_preset(student.model_copy(update=asked), embed_dim, text, vocab, seed)
    assert isinstance(model.image, ConvTower) and isinstance(model.config.image, ConvConfig)
    load_published(model.image, model.config.image, found)
    return model


def is_convolutional(student: StudentConfig) -> bool:
    """Whether its image tower has convolutions and BatchNorm; all published ones do."""
    return student.published or student.source in CONV_PRESETS


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


def inherited_config(config: DualEncoderConfig, share: float) -> DualEncoderConfig:
    """The sizes of a student that has at most `share` of the image MACs and of the text MACs of a model.

    Raises UsageError where not even one block with one head fits, and for a teacher whose blocks are not alike.
    """
    config.transformer_image("a student that inherits", "take a preset instead, mnv4-s say")
    for tower in config.compressed:
        if len({*zip(getattr(config, tower).heads, getattr(config, tower).mlp, strict=True)}) > 1:
            raise UsageError(
                f"a student that inherits takes blocks of one size, and those of this {tower} tower have several",
                "prune it further: mmcompress prune TEACHER --target-macs 0.5 --out DIR",
            )
    smaller: dict[str, ImageConfig | TextConfig]
    smaller = {tower: _share_of(getattr(config, tower), share, config.embed_dim) for tower in config.compressed}
    return config.model_copy(update=smaller)


def evenly_spaced(blocks: int, kept: int) -> list[int]:
    """Indices of `kept` of `blocks`, the first and the last among them (the last alone where one is kept)."""
    if kept == 1:
        return [blocks - 1]
    return [round(i * (blocks - 1) / (kept - 1)) for i in range(kept)]


def _share_of(tower: ImageConfig | TextConfig, share: float, embed_dim: int) -> ImageConfig | TextConfig:
    """The widest blocks within `share` of the tower's MACs, MLP units at half to all of the share of heads.

    Where not one head fits at the depth that goes with the share, there are fewer blocks.
    """
    for blocks in range(max(1, round(tower.depth * math.sqrt(share))), 0, -1):
        for heads in range(tower.heads[0], 0, -1):
            units = tower.mlp[0] * heads // tower.heads[0]
            whole = [units] if heads == tower.heads[0] else []
            for mlp in (*whole, *range(units // 32 * 32, max(31, units // 2), -32)):
                smaller = tower.model_copy(update={"heads": (heads,) * blocks, "mlp": (mlp,) * blocks})
                if smaller.macs(embed_dim) <= share * tower.macs(embed_dim):
                    return smaller
    raise UsageError(
        f"the teacher is too small to inherit {share:g} of it",
        f"ask for a larger share, inherit:{0.5 if share < 0.5 else 1:g} say",
    )


def head_norms(block: Block) -> Tensor:
    """(heads,) Frobenius norm of the value and output weights of each head."""
    values = block.qkv.weight.unflatten(0, (3, block.heads, -1))[2].flatten(1).norm(dim=1)
    outputs = block.out.weight.unflatten(1, (block.heads, -1)).transpose(0, 1).flatten(1).norm(dim=1)
    return torch.mul(values, outputs)


def unit_norms(block: Block) -> Tensor:
    """(mlp,) norm of the incoming times the outgoing weights of each hidden unit."""
    return torch.mul(block.fc1.weight.norm(dim=1), block.fc2.weight.norm(dim=0))


@torch.no_grad()
def copy_block(target: Block, source: Block, heads: Sequence[int], units: Sequence[int]) -> None:
    """Copy the given heads and MLP units of a block into a smaller one."""
    h, u = torch.tensor(heads), torch.tensor(units)
    for norm, original in ((target.norm1, source.norm1), (target.norm2, source.norm2)):
        norm.load_state_dict(original.state_dict())
    for leaf in ("weight", "bias"):
        grouped = getattr(source.qkv, leaf).unflatten(0, (3, source.heads, -1))
        getattr(target.qkv, leaf).copy_(grouped[:, h].flatten(0, 2))
    target.out.weight.copy_(source.out.weight.unflatten(1, (source.heads, -1))[:, h].flatten(1))
    target.out.bias.copy_(source.out.bias)
    target.fc1.weight.copy_(source.fc1.weight[u])
    target.fc1.bias.copy_(source.fc1.bias[u])
    target.fc2.weight.copy_(source.fc2.weight[:, u])
    target.fc2.bias.copy_(source.fc2.bias)
