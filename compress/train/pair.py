"""A dual encoder from two pretrained towers: each with a new projection into a space that both then learn to share.

The image tower is the vision transformer of a CLIP or SigLIP folder, the text tower that of a CLIP or SigLIP folder or
a BERT; folders of a whole model and of its one tower are taken alike. What `model.py` cannot hold is refused by name,
before anything is read. Projections that a folder has of its own are left: they lead into another space. SigLIP's
pooling is as wide as its tower and has no projection, so there the space is as wide as the image tower, and the text
side alone is new. A BERT's pooler is left too; a text is read at its first token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcompress.architecture import DualEncoderConfig, ImageConfig, TextConfig
from mmcompress.config import PairConfig, TeacherConfig
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.export.pixels import image_processing
from mmcompress.families import image_tower_of, text_tower_of
from mmcompress.manifest import Preprocessing
from mmcompress.model import DualEncoder
from mmcompress.sidefiles import check_side_files
from mmcompress.teachers import resolve
from mmcompress.tensornames import entries, state_from_hugging_face
from mmcompress.weights import first_not_finite, not_finite, read_weights, weight_files

NEW = ("visual_projection.weight", "text_projection.weight", "text_model.head.weight", "text_model.head.bias")
"""What is a projection, by its name at rest."""
_BERT = re.compile(r"^(bert\.)?(embeddings|encoder)\.")


def folders_of(pair: PairConfig) -> tuple[Path, Path]:
    """Where the image tower and the text tower lie, looked at for what would change what they compute."""
    image, text = (resolve(TeacherConfig(source=source)) for source in (pair.image, pair.text))
    for folder in (image, text):
        check_side_files(folder)
    return image, text


def pair_config(pair: PairConfig, embed_dim: int, stated: bool) -> DualEncoderConfig:
    """The sizes of both; `embed_dim` is what the space is made as wide as, where it is not the image tower's own.

    Raises UsageError for a tower of another kind, and where a width was `stated` that the image tower cannot have.
    """
    image_folder, text_folder = folders_of(pair)
    image, text = ImageConfig(**image_tower_of(image_folder)), TextConfig(**text_tower_of(text_folder))
    if image.head is not None and stated and embed_dim != image.width:
        raise UsageError(
            f"{image_folder} pools by attention and embeds into {image.width} dimensions, and embed_dim is {embed_dim}",
            f"leave embed_dim out, or make it {image.width}",
        )
    return DualEncoderConfig(embed_dim=embed_dim if image.head is None else image.width, image=image, text=text)


def pair_preprocessing(pair: PairConfig, config: DualEncoderConfig) -> Preprocessing:
    """That of the image tower's folder. Raises UsageError where its images have another size than the tower takes."""
    folder = folders_of(pair)[0]
    rule = image_processing(folder)
    if rule.size != config.image.image_size:
        raise UsageError(
            f"the processor in {folder} makes images of {rule.size} pixels, and its tower takes "
            f"{config.image.image_size}",
            "make crop_size (or size) in its config and image_size in config.json the same",
        )
    return rule


def model_from_pair(pair: PairConfig, config: DualEncoderConfig, seed: int) -> DualEncoder:
    """Both towers with their own weights, and new projections."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for part, folder in zip(("image", "text"), folders_of(pair), strict=True):
        tensors = _named(folder)
        for entry in entries(config, (part,)):
            for name, shape in entry.theirs.items():
                if name in NEW:
                    tensors[name] = _projection(shape, generator)
        state |= state_from_hugging_face(tensors, config, (part,), where=str(folder))
    model = DualEncoder(config)
    own = model.state_dict()
    missing = {name for name in own if not name.startswith("logit")} - state.keys()
    if missing:
        raise CorruptInputError(f"no weights for {min(missing)}", "restore both folders from where they came")
    model.load_state_dict({**own, **state})
    return model


def _named(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder in float32, by the names that they have in a dual encoder at rest."""
    tensors: Mapping[str, Any] = {n: t for file in weight_files(folder) for n, t in read_weights(file).items()}
    named = {_BERT.sub(r"text_model.\2.", name): t.float() for name, t in tensors.items() if t.is_floating_point()}
    if (broken := first_not_finite(named.items())) is not None:
        raise not_finite(folder, broken)
    return named


def _projection(shape: tuple[int | str, ...], generator: torch.Generator) -> Tensor:
    """Random weights as of CLIP's reference code, or a bias of zeros."""
    sizes = [int(size) for size in shape]
    return torch.zeros(sizes) if len(sizes) == 1 else torch.randn(sizes, generator=generator) * sizes[1] ** -0.5
