"""How a checkpoint's folder says to transformers what its inputs are: the two configs that are written beside weights.

What a teacher's folder says is read in `export/pixels.py` and `export/texts.py`, through transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmcompress.manifest import Preprocessing
from mmcompress.strictjson import text_from_json


def save_tokenizer_config(
    folder: Path,
    context: int,
    *,
    bos: str | None,
    eos: str | None,
    pad: str | None,
    add_prefix_space: bool,
    mask: bool = True,
) -> None:
    """Tell `AutoTokenizer` that `tokenizer.json` is all there is; unasked, it would switch the prefix space off."""
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": context,
        "add_prefix_space": add_prefix_space,
        "model_input_names": ["input_ids", *(["attention_mask"] if mask else [])],
    }
    (folder / "tokenizer_config.json").write_text(text_from_json(written, indent=2) + "\n", encoding="utf-8")


def save_student_preprocessing(
    teacher: Preprocessing, target: Path, size: int, colours: Mapping[str, Any] | None = None
) -> Preprocessing:
    """Write and return the rule of a student of this input side: the teacher's in all else, its margins in scale.

    `colours` are the mean and std of a tower that was trained with others than the teacher's.
    """
    scaled = round(teacher.resize * size / teacher.size)
    student = teacher.model_copy(update={"size": size, "resize": scaled, **(colours or {})})
    save_preprocessing(student, target)
    return student


def save_preprocessing(student: Preprocessing, target: Path) -> None:
    """Write the `preprocessor_config.json` that transformers reads."""
    square = {"height": student.resize, "width": student.resize}
    written = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if student.squash else {"shortest_edge": student.resize},
        "do_center_crop": not student.squash or student.resize != student.size,
        "crop_size": {"height": student.size, "width": student.size},
        "resample": Image.Resampling[student.interpolation.upper()].value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": student.mean,
        "image_std": student.std,
        "do_convert_rgb": True,
    }
    (target / "preprocessor_config.json").write_text(text_from_json(written, indent=2) + "\n", encoding="utf-8")
