"""Teachers: anything that embeds images and texts into one space.

`transformers`' `get_image_features` and `get_text_features` are the seam, so CLIP, SigLIP, SigLIP 2, Chinese-CLIP and
MetaCLIP all come in through `AutoModel`. A hub is optional: a local folder always works. Code from a hub repository
runs only with `trust_remote_code`, and pickled weights are read by torch's restricted `weights_only` reader.

A teacher of one's own is `file.py:function`; the function takes no argument and returns a `Teacher`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from mmcompress.compress.opencliptowers import open_clip_towers
from mmcompress.compress.towers import Towers
from mmcompress.config import TeacherConfig
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError, require, suggestion
from mmcompress.manifest import Preprocessing
from mmcompress.processing import image_processing, text_context
from mmcompress.teachers import resolve


@dataclass(frozen=True)
class Teacher:
    """Two functions into one space, and what they expect."""

    encode_image: Callable[[Tensor], Tensor]
    """(B, 3, S, S) normalized float -> (B, D) of unit norm"""
    encode_text: Callable[[Sequence[str]], Tensor]
    """B texts -> (B, D) of unit norm"""
    preprocessing: Preprocessing
    embed_dim: int
    towers: Callable[[], Towers] | None = None
    """What both functions run, for those who want graphs of it; None where that cannot be said."""


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build the teacher that `--teacher` names, in evaluation mode on the device."""
    source = config.source
    file, colon, function = source.rpartition(":")
    if source.startswith("open_clip:"):
        teacher = _open_clip_teacher(source.removeprefix("open_clip:"), device)
    elif colon and file.endswith(".py"):
        teacher = _own_teacher(Path(file), function)
    else:
        teacher = _hugging_face_teacher(resolve(config), device, config.trust_remote_code)
    image, text = teacher.encode_image, teacher.encode_text
    return replace(
        teacher,
        encode_image=lambda pixels: _checked(image(pixels), source, "an image"),
        encode_text=lambda texts: _checked(text(texts), source, "a text"),
    )


def _checked(embeddings: Tensor, source: str, what: str) -> Tensor:
    """(B, D) of which each row has a direction: a student cannot be taught NaN or zeros."""
    norms = embeddings.norm(dim=-1)
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise CorruptInputError(
            f"the teacher {source} embeds {what} as NaN, infinity or zeros only", "its weights are broken: check them"
        )
    return embeddings


def _hugging_face_teacher(folder: Path, device: torch.device, trust_remote_code: bool) -> Teacher:
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CorruptInputError(
            f"the teacher in {folder} cannot be loaded: {error}", "check that the folder is a whole Hugging Face model"
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise UsageError(
            f"the model in {folder} ({type(model).__name__}) does not embed both images and texts",
            "give a CLIP, SigLIP or Chinese-CLIP model",
        )
    model = model.eval().to(device)
    context = text_context(model.config)
    inputs = ("input_ids", "attention_mask")
    padding = "max_length" if model.config.model_type.startswith("siglip") else True

    def encode_image(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return F.normalize(model.get_image_features(pixel_values=pixels.to(device)).float(), dim=-1).cpu()

    def encode_text(texts: Sequence[str]) -> Tensor:
        encoded = tokenizer(list(texts), padding=padding, truncation=True, max_length=context, return_tensors="pt")
        with torch.inference_mode():
            features = _text_features(model, {k: encoded[k].to(device) for k in inputs if k in encoded})
        return F.normalize(features.float(), dim=-1).cpu()

    width = encode_text(["a"]).shape[1]
    return Teacher(encode_image, encode_text, image_processing(folder), width)


def _text_features(model: Any, encoded: dict[str, Tensor]) -> Tensor:
    """`get_text_features`; for Chinese-CLIP what it should do (transformers 4.57 projects a pooler it never built)."""
    if model.config.model_type != "chinese_clip":
        features: Tensor = model.get_text_features(**encoded)
    else:
        features = model.text_projection(model.text_model(**encoded).last_hidden_state[:, 0])
    return features


def _open_clip_teacher(name: str, device: torch.device) -> Teacher:
    """`NAME/TAG` of open_clip. Never run with downloaded weights here; `NAME/` alone gives random weights."""
    open_clip = require("open_clip", "open-clip")
    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise UsageError(f"open_clip has no model {architecture!r}", suggestion(architecture, open_clip.list_models()))
    try:
        model, _, _ = open_clip.create_model_and_transforms(architecture, pretrained=tag or None)
    except (OSError, RuntimeError) as error:
        raise MissingRequirementError(
            f"open_clip cannot load {name!r}: {error}", "check the tag and the network"
        ) from error
    model = model.eval().to(device)
    tokenizer = open_clip.get_tokenizer(architecture)
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"][0] if isinstance(settings["size"], Sequence) else settings["size"]
    preprocessing = Preprocessing(
        size=size,
        resize=size,
        squash=settings.get("resize_mode") == "squash",
        interpolation=settings.get("interpolation", "bicubic"),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )

    def encode_image(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return F.normalize(model.encode_image(pixels.to(device)).float(), dim=-1).cpu()

    def encode_text(texts: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            return F.normalize(model.encode_text(tokenizer(list(texts)).to(device)).float(), dim=-1).cpu()

    towers = partial(open_clip_towers, model, tokenizer, name)
    return Teacher(encode_image, encode_text, preprocessing, encode_text(["a"]).shape[1], towers)


def _own_teacher(file: Path, function: str) -> Teacher:
    """Run the user's own file; it is named on the command line, so it is trusted as the command line is."""
    spec = importlib.util.spec_from_file_location(file.stem, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"there is no Python file {file}", "give --teacher path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if build is None:
        raise UsageError(f"{file} has no function {function!r}", suggestion(function, vars(module)))
    teacher = build()
    if not isinstance(teacher, Teacher):
        raise UsageError(
            f"{file}:{function} returned {type(teacher).__name__}",
            "it must return a mmcompress.compress.teacher.Teacher",
        )
    return teacher
