"""What lies in a model's folder and changes what the model computes, and is read by nobody here: refused by name.

transformers opens the weights beside an adapter as if there was none, or, where `peft` is installed, other weights than
those in the folder. What sentence-transformers puts behind a model is not in the model's own class. Without a word
either would be another teacher than the user has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcompress.errors import UsageError
from mmcompress.strictjson import LARGEST_BYTES, LARGEST_TOKENIZER, check_size, read_json

_ADAPTERS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
)
_OF_TOKENIZERS = ("tokenizer", "vocab")
_MODULES = "modules.json"
_NOTHING_MORE = ("CLIPModel", "Transformer", "Normalize")
"""Modules of sentence-transformers that compute nothing but the model and a unit norm."""
_RESTORE = "restore it from where the weights are from"


def check_side_files(folder: Path) -> None:
    """Raise UsageError for a folder that is more than its model, or an adapter of another one; CorruptInputError for a
    JSON in it that is larger than any, which would be parsed for minutes."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        check_size(path, _RESTORE, LARGEST_TOKENIZER if path.stem in _OF_TOKENIZERS else LARGEST_BYTES)
    if (name := next((name for name in _ADAPTERS if (folder / name).is_file()), None)) is not None:
        raise UsageError(
            f"{folder} holds an adapter ({name}{_base(folder)}), whose weights nothing here adds to the model's",
            "merge it with peft: PeftModel.from_pretrained(MODEL, FOLDER).merge_and_unload().save_pretrained(NEW); put "
            "the model's processor and tokenizer files beside, and give NEW",
        )
    if (folder / _MODULES).is_file():
        _check_modules(folder)


def check_float(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UsageError for the config of a model whose weights are quantized, by whatever library."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        if stated := part.get("quantization_config"):
            method = stated.get("quant_method") if isinstance(stated, Mapping) else None
            raise UsageError(
                f"the weights in {folder} are quantized{f' by {method}' if method else ''} (quantization_config of its "
                "config.json), and a teacher is read in float",
                "give the model in float that it was made from",
            )


def _base(folder: Path) -> str:
    """The model that an adapter says it is of."""
    stated = folder / _ADAPTERS[0]
    said = read_json(stated, _RESTORE) if stated.is_file() else None
    base = said.get("base_model_name_or_path") if isinstance(said, Mapping) else None
    return f", of {base}" if isinstance(base, str) else ""


def _check_modules(folder: Path) -> None:
    """Of a folder of sentence-transformers."""
    listed = read_json(folder / _MODULES, _RESTORE)
    rows = [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []
    for row in rows:
        kind = str(row.get("type", "")).rpartition(".")[2]
        if kind not in _NOTHING_MORE:
            raise UsageError(
                f"{folder} is a model of sentence-transformers with a {kind or 'module'} behind it ({_MODULES}), which "
                "nothing here computes",
                "wrap the whole as file.py:function: docs/teachers.md says how",
            )
    own = next(
        (path for row in rows if (path := str(row.get("path", ""))) and (folder / path / "config.json").is_file()), None
    )
    if own is not None and not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is a folder of sentence-transformers, and its model is in {own}", f"give {folder / own}"
        )
