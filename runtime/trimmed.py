"""Texts that a trimmed vocabulary has lost the letters of, which a model answers all the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders

from mmcompress.artifact import Artifact
from mmcompress.manifest import VOCABULARY
from mmcompress.progress import say
from mmcompress.runtime.tokenize import load_tokenizer, spelled, text_processing
from mmcompress.strictjson import json_from_text, text_from_json

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PART_OF_A_LETTER = "\ufffd"


def warn_of_lost_letters(artifact: Artifact, texts: Sequence[str]) -> None:
    """Say how many texts an artifact with a trimmed vocabulary has no tokens for; nothing of a whole vocabulary."""
    facts = artifact.manifest.facts.get(VOCABULARY)
    if not isinstance(facts, Mapping):
        return
    processing, unique = text_processing(artifact), list(dict.fromkeys(texts))
    tokenizer = load_tokenizer(artifact.file(processing.file))
    read = zip(unique, spelled(unique, processing), strict=True)
    scripts, lost_in = tuple(facts.get("scripts") or ()), _lost_letters(tokenizer)
    lost = [text for text, spelt in read if not _is_of(scripts, spelt) or lost_in(spelt)]
    if lost:
        what = f"{len(lost)} of {len(unique)} texts have letters that the trimmed vocabulary has no tokens for"
        say("", artifact.path.name, f"warning: {what}, such as {lost[0][:40]!r}: answers to them may be worth nothing")


def _is_of(scripts: tuple[str, ...], text: str) -> bool:
    """Whether all letters are of the scripts that were kept; those of a corpus are not known."""
    letters = (letter for letter in text if unicodedata.category(letter)[0] == "L")
    return not scripts or all(unicodedata.name(letter, "").startswith(scripts) for letter in letters)


def _lost_letters(tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Says whether a text has letters that are read as unknown or byte by byte."""
    body = json_from_text(tokenizer.to_str())
    unknown, decoder = _unknown(body["model"]), decoders.ByteLevel()
    byte_level = '"ByteLevel"' in text_from_json(body["pre_tokenizer"], compact=True)
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def lost(token: str) -> bool:
        if token == unknown or _BYTE.fullmatch(token):
            return True
        return byte_level and _PART_OF_A_LETTER in decoder.decode([token.replace("</w>", "")])

    return lambda text: any(map(lost, tokenizer.encode(text, add_special_tokens=False).tokens))


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token for what has none."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")
