"""What transformers opens of a teacher's folder: config, image processor and tokenizer.

What is absent is refused and never replaced by a default: an image processor of another model embeds without complaint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcompress.errors import CorruptInputError, UsageError, require
from mmcompress.pretrained import opened
from mmcompress.strictjson import read_json

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_PIECES = "*.model"
"""Vocabularies of SentencePiece, which transformers reads with a package of its own."""
_NEWER = {"TokenizersBackend": False, "Siglip2Tokenizer": True}
"""Classes that transformers 5 writes, which are a `tokenizer.json` and nothing else; and whether they lower texts."""


def config_of(folder: Path, trust_remote_code: bool = False) -> Any:
    """The model's config."""
    transformers = require("transformers", "compress")
    return opened(
        lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code),
        f"the config.json in {folder}",
        trust_remote_code,
    )


def image_processor_of(folder: Path, trust_remote_code: bool = False) -> Any:
    """The folder's image processor, in the form that resizes with Pillow; UsageError where it has none."""
    transformers = require("transformers", "compress")
    nested = folder / "processor_config.json"
    if not (folder / "preprocessor_config.json").is_file() and not (
        nested.is_file() and "image_processor" in read_json(nested, "restore it from where it came")
    ):
        raise UsageError(
            f"{folder} does not say how its images are prepared: there is neither a preprocessor_config.json nor a"
            " processor_config.json with an image_processor",
            "put the model's own one there; sizes, means and filters differ between models of one family",
        )
    return opened(
        lambda: transformers.AutoImageProcessor.from_pretrained(
            folder, use_fast=False, trust_remote_code=trust_remote_code
        ),
        f"the image processor in {folder}",
        trust_remote_code,
    )


def tokenizer_of(folder: Path, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer; UsageError where it has none, MissingRequirementError where SentencePiece is needed."""
    transformers = require("transformers", "compress")
    stated = folder / "tokenizer_config.json"
    described = read_json(stated, "restore it from where it came") if stated.is_file() else {}
    name = described.get("tokenizer_class") or "" if isinstance(described, dict) else None
    if not isinstance(name, str):
        raise CorruptInputError(f"{stated} names no tokenizer_class: {name!r}", "restore it from where it came")
    if not any((folder / vocabulary).is_file() for vocabulary in _VOCABULARIES) and not any(folder.glob(_PIECES)):
        file = "spiece.model" if name == "SiglipTokenizer" else "tokenizer.json"
        raise UsageError(f"{folder} has no tokenizer", f"put the model's {file} and tokenizer_config.json there")
    if not (folder / "tokenizer.json").is_file() and any(folder.glob(_PIECES)):
        for package in ("sentencepiece", "google.protobuf"):
            require(package, "sentencepiece")
    newer = name in _NEWER and not hasattr(transformers, name) and (folder / "tokenizer.json").is_file()
    opener = transformers.PreTrainedTokenizerFast if newer else transformers.AutoTokenizer
    tokenizer = opened(
        lambda: opener.from_pretrained(folder, trust_remote_code=trust_remote_code),
        f"the tokenizer in {folder}",
        trust_remote_code,
    )
    if not callable(tokenizer):  # AutoTokenizer answers False where its SentencePiece file cannot be read
        raise CorruptInputError(
            f"the tokenizer in {folder} cannot be opened: transformers makes nothing of its vocabulary",
            "restore its files from where they came",
        )
    if newer and _NEWER[name]:
        from tokenizers import normalizers

        backend = tokenizer.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer
