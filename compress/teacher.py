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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from mmcompress.artifact import Preprocessing, TextProcessing
from mmcompress.compress.vocabulary import save_tokenizer_config
from mmcompress.config import TeacherConfig
from mmcompress.data import packaged
from mmcompress.errors import CorruptInputError, MissingRequirementError, UsageError, require, suggestion
from mmcompress.strictjson import read_json, text_from_json
from mmcompress.teachers import ALIASES

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_CONTEXT = 77


@dataclass(frozen=True)
class Teacher:
    """Two functions into one space, and what they expect."""

    encode_image: Callable[[Tensor], Tensor]
    """(B, 3, S, S) normalized float -> (B, D) of unit norm"""
    encode_text: Callable[[Sequence[str]], Tensor]
    """B texts -> (B, D) of unit norm"""
    preprocessing: Preprocessing
    embed_dim: int


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build the teacher that `--teacher` names, in evaluation mode on the device."""
    source = config.source
    file, colon, function = source.rpartition(":")
    if source.startswith("open_clip:"):
        found = _open_clip_teacher(source.removeprefix("open_clip:"), device)
    elif colon and file.endswith(".py"):
        found = _own_teacher(Path(file), function)
    else:
        found = _hugging_face_teacher(resolve(config), device, config.trust_remote_code)
    image, text = found.encode_image, found.encode_text
    return replace(
        found,
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


def resolve(config: TeacherConfig) -> Path:
    """The local folder of a Hugging Face teacher, downloaded into the hub's own cache if need be.

    Raises UsageError for what is no model folder, MissingRequirementError where the hub cannot be reached.
    """
    source = config.source
    if source.startswith("demo:"):
        return packaged(source)
    path = Path(source)
    if path.exists():
        if not (path / "config.json").is_file():
            raise UsageError(f"the teacher {source} is no model: it has no config.json", "give a Hugging Face folder")
        return path
    if source.startswith((".", "/", "~")):
        raise UsageError(f"there is no teacher folder {source}", "give a folder in Hugging Face format")
    hub_id = ALIASES.get(source, source)
    if hub_id.count("/") != 1 or ":" in hub_id:
        raise UsageError(
            f"unknown teacher {source!r}",
            f"{suggestion(source, ALIASES)}; or a hub id (owner/name), a local folder, or file.py:function",
        )
    return _download(hub_id, source)


def _download(hub_id: str, source: str) -> Path:
    hub = require("huggingface_hub", "compress")
    patterns = _HUB_FILES
    try:
        try:
            names = hub.list_repo_files(hub_id)
            if not any(name.endswith(".safetensors") for name in names):
                patterns = [*_HUB_FILES, "pytorch_model.bin"]
            return Path(hub.snapshot_download(hub_id, allow_patterns=patterns))
        except (OSError, hub.errors.HfHubHTTPError):
            return Path(hub.snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise MissingRequirementError(
            f"the teacher {source!r} ({hub_id}) is not cached here, and the hub cannot be reached or has no such model",
            f"connect, or give a local folder: --teacher /path/to/{hub_id.split('/')[1]}",
        ) from error


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
    context = _context(model.config)
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

    return Teacher(encode_image, encode_text, preprocessing, encode_text(["a"]).shape[1])


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


def image_processing(folder: Path) -> Preprocessing:
    """What `preprocessor_config.json` says; CLIP's own values where it says nothing."""
    stated = _read_json(folder / "preprocessor_config.json", {})
    size = _side(stated.get("size")) or _image_size(folder)
    crops = stated.get("do_center_crop", True) and "crop_size" in stated
    raw = stated.get("size")
    squash = isinstance(raw, dict) and "height" in raw and not crops
    return Preprocessing(
        size=_side(stated["crop_size"]) or size if crops else size,
        resize=size,
        squash=squash,
        interpolation=_INTERPOLATION.get(stated.get("resample", 3), "bicubic"),
        mean=tuple(stated.get("image_mean", _OPENAI_MEAN)),
        std=tuple(stated.get("image_std", _OPENAI_STD)),
    )


def save_image_processing(folder: Path, target: Path, size: int) -> Preprocessing:
    """Write a `preprocessor_config.json` for a student of this input side, normalized as the teacher is."""
    teacher = image_processing(folder)
    scaled = max(size, round(teacher.resize * size / teacher.size))
    student = teacher.model_copy(update={"size": size, "resize": scaled})
    save_preprocessing(student, target)
    return student


def save_preprocessing(student: Preprocessing, target: Path) -> None:
    """Write the `preprocessor_config.json` that transformers reads."""
    written = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": student.size, "width": student.size}
        if student.squash
        else {"shortest_edge": student.resize},
        "do_center_crop": not student.squash,
        "crop_size": {"height": student.size, "width": student.size},
        "resample": next(k for k, v in _INTERPOLATION.items() if v == student.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": student.mean,
        "image_std": student.std,
        "do_convert_rgb": True,
    }
    (target / "preprocessor_config.json").write_text(text_from_json(written, indent=2) + "\n", encoding="utf-8")


def save_text_processing(folder: Path, target: Path) -> TextProcessing:
    """Write the teacher's tokenizer as `tokenizer.json` into `target`, and say how texts become ids.

    What ends a text is found by encoding one: the last id that the tokenizer itself appends.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"the tokenizer in {folder} has no fast form", "a student needs a tokenizer.json")
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(target / "tokenizer.json"))
    plain = backend.encode("a", add_special_tokens=False).ids
    ids = backend.encode("a").ids
    if ids[-1] == plain[-1]:
        raise UsageError(
            f"the tokenizer in {folder} ends texts with no token of its own", "a student pools at that token"
        )
    config = AutoConfig.from_pretrained(folder)
    context = _context(config)
    names = [getattr(tokenizer, f"{x}_token") for x in ("bos", "eos", "pad")]
    prefix = bool(getattr(tokenizer, "add_prefix_space", False))
    save_tokenizer_config(target, context, bos=names[0], eos=names[1], pad=names[2], add_prefix_space=prefix)
    pad = tokenizer.pad_token_id
    return TextProcessing(
        context=context,
        pad_token_id=ids[-1] if pad is None else pad,
        eos_token_id=ids[-1],
        lowercase=config.model_type == "siglip",
    )


def _context(config: Any) -> int:
    text = getattr(config, "text_config", config)
    return min(int(getattr(text, "max_position_embeddings", _MAX_CONTEXT)), _MAX_CONTEXT)


def _side(size: Any) -> int | None:
    side = size.get("shortest_edge") or size.get("height") if isinstance(size, dict) else size
    return None if side is None else int(side)


def _image_size(folder: Path) -> int:
    vision = _read_json(folder / "config.json", {}).get("vision_config", {})
    return int(vision.get("image_size", 224))


def _read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return default
    found: dict[str, Any] = read_json(path, "restore it from where it came")
    return found
