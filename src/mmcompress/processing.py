"""What a Hugging Face folder says of its inputs: pixels and token ids, read from it and written into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcompress.errors import UsageError
from mmcompress.manifest import Preprocessing, TextProcessing
from mmcompress.strictjson import read_json, text_from_json


def save_tokenizer_config(
    folder: Path, context: int, *, bos: str | None, eos: str | None, pad: str | None, add_prefix_space: bool
) -> None:
    """Tell `AutoTokenizer` that `tokenizer.json` is all there is; unasked, it would switch the prefix space off."""
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": context,
        "add_prefix_space": add_prefix_space,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(text_from_json(written, indent=2) + "\n", encoding="utf-8")


_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_CONTEXT = 77


def image_processing(folder: Path, trust_remote_code: bool = False) -> Preprocessing:
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


def save_image_processing(folder: Path, target: Path, size: int, trust_remote_code: bool = False) -> Preprocessing:
    """Write a `preprocessor_config.json` for a student of this input side, normalized as the teacher is."""
    teacher = image_processing(folder, trust_remote_code)
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


def save_text_processing(folder: Path, target: Path, trust_remote_code: bool = False) -> TextProcessing:
    """Write the teacher's tokenizer as `tokenizer.json` into `target`, and say how texts become ids.

    What ends a text is found by encoding one: the last id that the tokenizer itself appends.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=trust_remote_code)
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
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    context = text_context(config)
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


def text_context(config: Any) -> int:
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
    settings: dict[str, Any] = read_json(path, "restore it from where it came")
    return settings
