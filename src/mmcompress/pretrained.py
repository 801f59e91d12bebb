"""Loading somebody else's model through transformers: the one entry for the teacher and for the baseline.

transformers fills with random numbers whatever it does not find, and only logs that it did. So its load report is read
here, and a tensor that is missing, unexpected or of another shape is an error, before anything is embedded. Whatever
the library, or code from the model's own folder, raises on the way becomes one error that says what to do.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mmcompress.errors import CorruptInputError, MissingRequirementError, MMCompressError, UsageError, require
from mmcompress.families import check_states_end
from mmcompress.foreign import place_of, said
from mmcompress.sidefiles import check_float, check_side_files
from mmcompress.strictjson import read_json

T = TypeVar("T")
TWO_TOWERS = "vision-text-dual-encoder"
"""`model_type` of `VisionTextDualEncoderModel`, any two networks of transformers with a projection each."""
OLDEST = (4, 56)
"""The first transformers that takes `dtype` and knows MetaCLIP 2."""
_TRUST = (
    "if you trust its author: --set teacher.trust_remote_code=true; a command without --set, classify say, takes the"
    " DIR that `mmcompress export TEACHER --set teacher.trust_remote_code=true --out DIR` made"
)
_HARMLESS = re.compile(r"(^|\.)position_ids$")
"""Buffers that old versions saved and new ones compute."""


def load_model(folder: Path, trust_remote_code: bool = False, attention: str | None = None) -> Any:
    """The model of a Hugging Face folder, whole, in float32 and evaluation mode, with both feature functions.

    `attention` is transformers' `attn_implementation`. Raises CorruptInputError for weights that are damaged or do not
    belong to the config, UsageError for a model that is no teacher, MissingRequirementError for an absent package.
    """
    check_folder(folder, trust_remote_code)
    transformers = require("transformers", "compress")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": require("torch", "compress").float32}
    if attention is not None:
        options["attn_implementation"] = attention
    model, report = opened(
        lambda: transformers.AutoModel.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
        f"the model in {folder}",
        trust_remote_code,
    )
    check_report(report, folder, model)
    if not all(callable(getattr(model, name, None)) for name in ("get_image_features", "get_text_features")):
        raise UsageError(
            f"the model in {folder} ({type(model).__name__}) does not embed both images and texts",
            "give a CLIP, SigLIP, Chinese-CLIP or MetaCLIP model, or wrap it: docs/teachers.md says how",
        )
    if model.config.model_type == TWO_TOWERS:
        _check_pools(model.text_model, folder)
    return model.eval()


def _check_pools(text: Any, folder: Path) -> None:
    """Of two towers the embedding of a text is the pooled output, which not every network has."""
    if not hasattr(text, "pooler") and not hasattr(text, "text_model"):
        raise UsageError(
            f"the text tower in {folder} is a {text.config.model_type!r} model, which pools no text, so transformers"
            " itself embeds none with it",
            "take a text tower with a pooler, a BERT or RoBERTa, or wrap the model: docs/teachers.md says how",
        )


def image_features(model: Any, pixels: Any) -> Any:
    """(B, 3, S, S) normalized -> (B, D), not of unit norm: what the teacher is taken to say of images, in torch.

    For any two towers what its function should do: it projects (B, C, 1, 1) as a ResNet pools it, and fails.
    """
    if model.config.model_type != TWO_TOWERS:
        return model.get_image_features(pixel_values=pixels)
    return model.visual_projection(model.vision_model(pixel_values=pixels)[1].flatten(1))


def text_features(model: Any, encoded: Mapping[str, Any]) -> Any:
    """`input_ids`, and where the model takes it `attention_mask`, (B, T) -> (B, D), as `image_features`.

    For Chinese-CLIP what its function should do: that of transformers 4.57 projects a pooler that was never built.
    """
    if model.config.model_type != "chinese_clip":
        return model.get_text_features(**encoded)
    return model.text_projection(model.text_model(**encoded).last_hidden_state[:, 0])


def model_type_of(folder: Path) -> str | None:
    """What a folder's config.json says it is; None where it says nothing that can be read."""
    try:
        config = read_json(folder / "config.json", "")
    except (MMCompressError, OSError):
        return None
    family = config.get("model_type") if isinstance(config, dict) else None
    return family if isinstance(family, str) else None


def check_folder(folder: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """The config.json of a folder that can be a teacher, as far as can be seen without loading it, or an error."""
    transformers = require("transformers", "compress")
    _check_version(transformers.__version__)
    check_side_files(folder)
    restore = "restore it from where the weights are from"
    config = read_json(folder / "config.json", restore)
    if not isinstance(config, dict) or not (isinstance(config.get("model_type"), str) or "auto_map" in config):
        raise CorruptInputError(f"{folder / 'config.json'} names no model_type", restore)
    check_float(config, folder)
    if config.get("model_type") == "siglip2":
        raise UsageError(
            f"{folder} is a NaFlex SigLIP 2, which takes images as patches of any aspect ratio",
            "give one of fixed size, such as google/siglip2-base-patch16-224",
        )
    if "auto_map" not in config and (family := config["model_type"]) not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"transformers {transformers.__version__} does not know the model_type {family!r} of {folder}",
            "a newer transformers may, or wrap the model as file.py:function",
        )
    check_states_end(folder / "config.json", config)
    if "auto_map" in config and not trust_remote_code:
        raise UsageError(
            f"{folder} brings Python code of its own, which does not run unasked",
            _TRUST,
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        others = sorted(path.name for suffix in ("safetensors", "bin") for path in folder.glob(f"*model*.{suffix}"))
        raise CorruptInputError(
            f"{folder} has no weights of a name that is read{f', but {others[0]}' if others else ''}",
            f"expected one of {', '.join(_WEIGHTS)}{'; rename a variant such as fp16' if others else ''}",
        )
    return config


def check_report(report: Mapping[str, Any], folder: Path, model: Any) -> None:
    """Raise CorruptInputError where transformers' load report names a tensor that is not as the config wants it."""
    missing = sorted(report["missing_keys"])
    unexpected = sorted(key for key in report["unexpected_keys"] if not _HARMLESS.search(key))
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if missing:
        raise CorruptInputError(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]!r}; they would be random",
            _prefix_hint(missing, unexpected) or "the weights do not belong to this config: restore both",
        )
    if mismatched:
        expected = tuple(model.state_dict()[mismatched[0]].shape)
        raise CorruptInputError(
            f"{folder}: {len(mismatched)} tensors have another shape than the config says, the first is "
            f"{mismatched[0]!r}, expected {expected}",
            "the weights do not belong to this config: restore both",
        )
    if unexpected:
        raise CorruptInputError(
            f"{folder}: {len(unexpected)} tensors belong to nothing in the model, the first is {unexpected[0]!r}",
            "the config names another model than these weights are of: restore both",
        )


def _prefix_hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What all names in the file begin with, where the rest of them is what is missing; else nothing."""
    parts = unexpected[0].split(".")[:-1] if unexpected else []
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count]) + "."
        if all(name.startswith(prefix) for name in unexpected) and unexpected[0].removeprefix(prefix) in missing:
            return f"every tensor that was found starts with {prefix!r}: save the weights without it"
    return ""


def _check_version(version: str) -> None:
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingRequirementError(
            f"transformers {version} is too old, expected {oldest} or newer", f"pip install 'transformers>={oldest},<5'"
        )


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what transformers, optimum and torch log and warn of: what they make is judged by us."""
    loggers = [logging.getLogger(name) for name in ("transformers", "optimum", "torch", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def opened(read: Callable[[], T], what: str, trusted: bool) -> T:
    """What a call into transformers returns; whatever it raises says that `what` cannot be opened."""
    try:
        with quiet():
            return read()
    except MMCompressError:
        raise
    except ImportError as error:
        raise MissingRequirementError(
            f"{what} needs a package that cannot be imported: {said(error)}",
            "install what it names; pip install 'mmcompress[sentencepiece]' brings what SigLIP's tokenizer reads",
        ) from error
    except (Exception, SystemExit) as error:  # safetensors, `tokenizers` and the folder's own code raise anything
        if not trusted and "trust_remote_code" in str(error):
            raise UsageError(
                f"{what} has code of its own, which does not run unasked",
                _TRUST,
            ) from error
        place = place_of(error)
        raise CorruptInputError(
            f"{what} cannot be opened{f', in {place}' if place else ''}: {said(error)}",
            "check that the folder is whole, and that this version of transformers knows its classes",
        ) from error
