"""A smaller vocabulary: the tokens that some texts or languages need, and what every text can be spelled with.

A table of token embeddings is most of a text tower's bytes, and an application reads few of its rows. What is kept is
what the texts are read as, special tokens, and what anything can still be spelled with: bytes where a tokenizer has
them, else single characters. Texts that need nothing more are read as before, token by token:

- BPE keeps every merge on the way to a kept token. Of the merges that were applied none is missing, and none is
  applied earlier than it was, as those that are gone came later or led elsewhere (Sennrich et al. 2016, section 3.2).
- Unigram takes the likeliest way to cut a text; it is among those that are left (Kudo 2018, section 3.1).
- WordPiece and whole words take the longest token there is, which is kept.

Other texts are read in smaller pieces, or in other ones. How many those are is measured: a vocabulary made from nine
tenths of the texts reads the last tenth. Ids keep their order, so that the largest one stays the largest.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders

from mmcompress.errors import GateFailedError, UsageError
from mmcompress.manifest import TextProcessing
from mmcompress.runtime.tokenize import spelled, tokenize
from mmcompress.strictjson import json_from_text, text_from_json

Ids = NDArray[np.int64]
SCRIPTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        [
            "cs",
            "da",
            "de",
            "en",
            "es",
            "fi",
            "fr",
            "hr",
            "hu",
            "id",
            "it",
            "nb",
            "nl",
            "pl",
            "pt",
            "ro",
            "sk",
            "sv",
            "tr",
            "vi",
        ],
        ("LATIN",),
    ),
    **dict.fromkeys(["bg", "ru", "sr", "uk"], ("CYRILLIC",)),
    **dict.fromkeys(["ar", "fa", "ur"], ("ARABIC",)),
    **dict.fromkeys(["hi", "mr", "ne"], ("DEVANAGARI",)),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ta": ("TAMIL",),
    "th": ("THAI",),
    "zh": ("CJK",),
}
"""By language, the begin of the Unicode names of its letters."""
HELD_OUT = 10
"""One text in so many is read by a vocabulary that was made without it."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with fewer tokens."""

    tokenizer: Tokenizer
    kept: Ids
    """(K,) rising: the ids that these tokens had."""

    def new(self, ids: Any) -> Any:
        """The ids that kept ones have now; any shape."""
        return np.searchsorted(self.kept, ids)

    def processing(self, before: TextProcessing) -> TextProcessing:
        """How texts are read with it."""
        ends = {name: int(self.new(getattr(before, name))) for name in ("pad_token_id", "eos_token_id")}
        return before.model_copy(update=ends)


def languages_in(said: str) -> tuple[str, ...] | None:
    """`en,zh` -> its codes; None for what names a corpus. Raises UsageError for a code that is not known."""
    if not re.fullmatch(r"[a-z]{2}(,[a-z]{2})*", said):
        return None
    codes = tuple(said.split(","))
    for code in codes:
        if code not in SCRIPTS:
            raise UsageError(f"there is no language {code!r}", f"known are {', '.join(sorted(SCRIPTS))}; or give texts")
    return codes


def ids_of_texts(tokenizer: Tokenizer, texts: Sequence[str], processing: TextProcessing) -> set[int]:
    """What some texts are read as, with what is beyond the context: an application may cut them elsewhere."""
    ends = set(np.unique(tokenize(tokenizer, [""], processing)).tolist())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return ends.union(*(encoded.ids for encoded in tokenizer.encode_batch(spelled(texts, processing))))


def ids_of_languages(tokenizer: Tokenizer, codes: Iterable[str]) -> set[int]:
    """Tokens without a letter of another script than these languages have."""
    scripts = tuple({script for code in codes for script in SCRIPTS[code]})
    byte_level = _is_byte_level(json_from_text(tokenizer.to_str()))

    def readable(token: str) -> str:
        plain = token.replace("</w>", "").removeprefix("##")
        return str(decoders.ByteLevel().decode([plain])) if byte_level else plain

    def theirs(text: str) -> bool:
        letters = (letter for letter in text if unicodedata.category(letter)[0] in "LM")
        return _UNREADABLE not in text and all(unicodedata.name(letter, "").startswith(scripts) for letter in letters)

    return {id for token, id in tokenizer.get_vocab().items() if theirs(readable(token))}


def trimmed(tokenizer: Tokenizer, used: Iterable[int], also: Iterable[int] = ()) -> Vocabulary:
    """The tokenizer with the tokens that are used and those that they and all other texts are spelled with.

    `also` are ids that are kept whether they are a token or not, as a config names them.
    Raises UsageError for a kind of tokenizer that is not known.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    body = json_from_text(tokenizer.to_str())
    ids, model = tokenizer.get_vocab(), body["model"]
    names = {id: token for token, id in ids.items()}
    kept = {names[id] for id in (*used, *also) if id in names} | {token["content"] for token in body["added_tokens"]}
    kept |= {token for token in ids if _BYTE.fullmatch(token)} | {model.get("unk_token")} - {None}
    if model["type"] == "BPE":
        kept |= _ancestors(model, kept) | _alphabet(model, ids, _is_byte_level(body))
    elif model["type"] in ("Unigram", "WordPiece"):
        kept |= {token for token in ids if len(token.removeprefix("##")) == 1}
        if model["type"] == "Unigram" and model.get("unk_id") is not None:
            kept.add(model["vocab"][model["unk_id"]][0])
    elif model["type"] != "WordLevel":
        raise UsageError(f"a tokenizer of the kind {model['type']!r} cannot be trimmed", "leave trim_vocab out")
    old = np.array(sorted({ids[token] for token in kept} | set(also)), dtype=np.int64)
    new = {token: int(np.searchsorted(old, ids[token])) for token in kept}
    made = Tokenizer.from_str(text_from_json(_rewritten(body, new)))
    if made.get_vocab() != new:
        raise UsageError("the tokenizer numbers its tokens in a way that is not known", "leave trim_vocab out")
    return Vocabulary(made, old)


def _is_byte_level(body: Mapping[str, Any]) -> bool:
    """Whether letters stand for bytes."""
    return '"ByteLevel"' in text_from_json(body["pre_tokenizer"], compact=True)


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Of each merge its two parts and what it makes."""
    prefix = model.get("continuing_subword_prefix") or ""
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    return [(left, right, left + right.removeprefix(prefix)) for left, right in merges]


def _ancestors(model: Mapping[str, Any], tokens: Iterable[str]) -> set[str]:
    """All that tokens are merged from, themselves included."""
    parts: dict[str, list[str]] = {}
    for left, right, whole in _pairs(model):
        parts.setdefault(whole, []).extend((left, right))
    found, open_ = set(tokens), list(tokens)
    while open_:
        fresh = set(parts.get(open_.pop(), ())) - found
        found |= fresh
        open_ += fresh
    return found


def _alphabet(model: Mapping[str, Any], ids: Iterable[str], byte_level: bool) -> set[str]:
    """What no merge makes; where a tokenizer falls back to bytes, characters need not be kept."""
    if model.get("byte_fallback") and not byte_level:
        return set()
    return set(ids) - {whole for _, _, whole in _pairs(model)}


def _rewritten(body: dict[str, Any], new: Mapping[str, int]) -> dict[str, Any]:
    model = body["model"]
    if model["type"] == "Unigram":
        places = [place for place, (token, _) in enumerate(model["vocab"]) if token in new]
        vocab: Any = [model["vocab"][place] for place in places]
        changed: dict[str, Any] = {"unk_id": None if model.get("unk_id") is None else places.index(model["unk_id"])}
    else:
        vocab = {token: new[token] for token in model["vocab"] if token in new}
        changed = {}
    if model["type"] == "BPE":
        changed["merges"] = [
            [left, right] for left, right, whole in _pairs(model) if {left, right, whole} <= new.keys()
        ]
    added = [{**token, "id": new[token["content"]]} for token in body["added_tokens"]]
    behind = _renumbered(body["post_processor"], new)
    return {**body, "added_tokens": added, "post_processor": behind, "model": {**model, "vocab": vocab, **changed}}


def _renumbered(part: Any, new: Mapping[str, int]) -> Any:
    """A post-processor with the new ids: templates list them beside their tokens, those of BERT are pairs."""
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], new[part[0]]]
        return [_renumbered(each, new) for each in part]
    if not isinstance(part, dict):
        return part
    if {"ids", "tokens"} <= part.keys():
        return {**part, "ids": [new[token] for token in part["tokens"]]}
    return {key: _renumbered(value, new) for key, value in part.items()}


def read_otherwise(
    tokenizer: Tokenizer, texts: Sequence[str], processing: TextProcessing, vocabulary: Vocabulary
) -> list[str]:
    """The texts that a trimmed vocabulary reads otherwise than the whole one."""
    before = tokenize(tokenizer, texts, processing)
    after = tokenize(vocabulary.tokenizer, texts, vocabulary.processing(processing))
    same = (vocabulary.kept[after] == before).all(axis=1)
    return [text for text, equal in zip(texts, same, strict=True) if not equal]


def vocabulary_of_texts(
    tokenizer: Tokenizer, texts: Sequence[str], processing: TextProcessing, also: Iterable[int]
) -> tuple[Vocabulary, float | None]:
    """The vocabulary of some texts, and the share of texts that one made without them reads otherwise; None of few.

    Raises GateFailedError where a text of theirs is read otherwise.
    """
    unique = list(dict.fromkeys(texts))
    held, rest = unique[::HELD_OUT], [text for i, text in enumerate(unique) if i % HELD_OUT]
    share = None
    if len(rest) >= HELD_OUT:
        without = trimmed(tokenizer, ids_of_texts(tokenizer, rest, processing), also)
        share = len(read_otherwise(tokenizer, held, processing, without)) / len(held)
    vocabulary = trimmed(tokenizer, ids_of_texts(tokenizer, unique, processing), also)
    if others := read_otherwise(tokenizer, unique, processing, vocabulary):
        raise GateFailedError(
            f"the smaller vocabulary reads {others[0][:60]!r} otherwise than the whole one",
            "this is a fault of trimming: please report it with the tokenizer.json",
        )
    return vocabulary, share
