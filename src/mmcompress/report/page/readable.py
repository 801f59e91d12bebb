"""Which tokenizers JavaScript reads as Python does, and what it is given of one.

`site/texts.js` uses @huggingface/tokenizers, which does not repeat everything that a tokenizer.json may say: it takes a
SentencePiece normalizer for another one, and a split that keeps its separator for one that does not. So a rule passes
where the tests have held it against Python, letter for letter; any other one is refused by name, before a page is made.
The template around a text is not left to it: begin and end are worked out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from mmcompress.errors import UsageError
from mmcompress.strictjson import json_from_text

_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ANY = None
_NOTHING: tuple[object, ...] = (None, False, "")
Kind = Mapping[str, tuple[object, ...] | None]
"""By key, the values that pass, or None for all; a key that is not here has to be null, false or empty."""
KINDS: Mapping[str, Mapping[str, Kind]] = {
    "normalizer": {
        "Sequence": {"normalizers": _ANY},
        "NFC": {},
        "NFKC": {},
        "Lowercase": {},
        "Replace": {"pattern": ({"Regex": r"\s+"},), "content": (" ",)},
        "BertNormalizer": {
            "clean_text": (True,),
            "handle_chinese_chars": (True, False),
            "strip_accents": (None, True, False),
            "lowercase": (True, False),
        },
    },
    "pre_tokenizer": {
        "Sequence": {"pretokenizers": _ANY},
        "ByteLevel": {"add_prefix_space": (True, False), "trim_offsets": _ANY, "use_regex": (True,)},
        "Split": {"pattern": ({"Regex": _CLIP_WORDS},), "behavior": ("Removed",), "invert": (True,)},
        "BertPreTokenizer": {},
        "Metaspace": {"replacement": ("▁",), "prepend_scheme": ("always",), "split": (True,)},
    },
    "model": {
        "BPE": {
            "vocab": _ANY,
            "merges": _ANY,
            "unk_token": _ANY,
            "end_of_word_suffix": _ANY,
        },
        "WordPiece": {
            "vocab": _ANY,
            "unk_token": _ANY,
            "continuing_subword_prefix": _ANY,
            "max_input_chars_per_word": _ANY,
        },
        "Unigram": {"vocab": _ANY, "unk_id": _ANY},
    },
}


def readable(tokenizer: Tokenizer, where: str) -> dict[str, Any]:
    """What the page reads texts by. Raises UsageError for a rule that JavaScript does not repeat."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    body: dict[str, Any] = json_from_text(tokenizer.to_str())
    for part in KINDS:
        for rule in _flat(body[part]):
            if why := _refused(part, rule):
                raise UsageError(
                    f"{where} has the {part.replace('_', '-')} {why}, which is not read in a browser as it is in"
                    " Python",
                    "read are the tokenizers of CLIP, of BERT, and BPE on bytes; see docs/page.md",
                )
    for token in body["added_tokens"]:
        if token["single_word"]:
            raise UsageError(
                f"{where} has the token {token['content']!r} with single_word, which is not read in a browser as it is"
                " in Python",
                "a page takes tokens that may stand inside a word",
            )
    return {**body, "truncation": None, "padding": None, "post_processor": None, "decoder": None}


def ends(tokenizer: Tokenizer, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that are set before and after every text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    whole = tokenizer.encode("a")
    own = tokenizer.encode("a", add_special_tokens=False).ids
    added = whole.special_tokens_mask
    before = next((i for i, one in enumerate(added) if not one), len(added))
    begin, end = tuple(whole.ids[:before]), tuple(whole.ids[before + len(own) :])
    if [*begin, *own, *end] != whole.ids:
        raise UsageError(f"{where} sets more around a text than ids before and after it", "a page takes no such one")
    return begin, end


def _flat(rule: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A rule, and those that it is a sequence of."""
    if rule is None:
        return
    yield rule
    for inner in rule.get("normalizers") or rule.get("pretokenizers") or ():
        yield from _flat(inner)


def _refused(part: str, rule: Mapping[str, Any]) -> str | None:
    """The rule's name, with what does not pass of it; None where it passes."""
    kind, name = KINDS[part].get(rule["type"]), str(rule["type"])
    if kind is None:
        return name
    for key, value in rule.items():
        allowed = kind.get(key, _NOTHING)
        if key != "type" and allowed is not None and value not in allowed:
            return f"{name} with {key} {value!r}"
    return None
