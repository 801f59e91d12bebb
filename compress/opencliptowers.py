"""The towers of an open_clip model as modules, and its tokenizer as a `tokenizer.json`.

open_clip cleans a text in Python before its tokenizer sees it: ftfy repairs it, HTML entities become characters, and
white space, case or punctuation go. What of that a `tokenizers.Tokenizer` can do is written in front of the model's
own byte-pair merges, or of its Hugging Face tokenizer, and the result is held against open_clip's on odd texts. What is
left out: text in a broken encoding, which ftfy guesses back, and entities beyond HTML 4's or by number.

Branches that exist for training only (MobileCLIP, RepVGG) are folded into one convolution, as timm does it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html.entities import name2codepoint
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.compress.towers import Towers, tokenizer_like
from mmcompress.errors import UsageError, require
from mmcompress.manifest import TextProcessing

_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENTITIES = {f"&{name};": chr(code) for name, code in name2codepoint.items() if name not in ("amp", "nbsp")}
_ENTITIES |= {"&LT;": "<", "&GT;": ">", "&QUOT;": '"', "&#39;": "'", "&apos;": "'", "&nbsp;": " "}
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st", "Ĳ": "IJ", "ĳ": "ij"}
_WIDTHS = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)}
_C1 = {code: plain for code in range(0x80, 0xA0) if (plain := bytes([code]).decode("cp1252", "ignore"))}
_TERMINAL = r"\x1b\[[0-9;]*[a-zA-Z]"
_CONTROLS = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""


class _Encoding(nn.Module):
    """One of the model's two functions, normalized."""

    def __init__(self, model: nn.Module, function: str) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, given: Tensor) -> Tensor:
        embeddings: Tensor = getattr(self.model, self.function)(given)
        return F.normalize(embeddings.float(), dim=-1)


def open_clip_towers(model: Any, tokenizer: Any, name: str) -> Towers:
    """Of a model as `open_clip.create_model` gives it. UsageError where its tokenizer has no such form."""
    folded = require("timm.utils", "open-clip").reparameterize_model(model)
    text, processing = _text_of(tokenizer, name)
    return Towers(
        _Encoding(folded, "encode_image").eval(),
        _Encoding(folded, "encode_text").eval(),
        tokenizer_like(tokenizer, text, processing, name),
        processing,
        float(model.logit_scale.detach().exp()),
    )


def _text_of(tokenizer: Any, name: str) -> tuple[Tokenizer, TextProcessing]:
    clean = _cleaning_of(tokenizer)
    if hasattr(tokenizer, "bpe_ranks"):
        processing = TextProcessing(
            context=tokenizer.context_length, pad_token_id=0, eos_token_id=tokenizer.eot_token_id
        )
        return _byte_pairs(tokenizer, clean), processing
    wrapped: Any = getattr(tokenizer, "tokenizer", None)
    fast = getattr(wrapped, "backend_tokenizer", None)
    if fast is None:
        raise UsageError(
            f"the tokenizer of {name} is a {type(wrapped or tokenizer).__name__}, which has no tokenizer.json",
            "it can be a teacher to learn from, but no graph that runs by itself",
        )
    copied = Tokenizer.from_str(fast.to_str())
    own = [] if copied.normalizer is None else [copied.normalizer]
    copied.normalizer = normalizers.Sequence([*clean, *own])
    pad = int(wrapped.pad_token_id or 0)
    end = wrapped.eos_token_id if wrapped.eos_token_id is not None else wrapped.sep_token_id
    return copied, TextProcessing(
        context=tokenizer.context_length, pad_token_id=pad, eos_token_id=pad if end is None else int(end)
    )


def _byte_pairs(tokenizer: Any, clean: Sequence[Any]) -> Tokenizer:
    """open_clip's SimpleTokenizer: CLIP's byte-pair encoding with its own names of the two special tokens."""
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    made = Tokenizer(
        models.BPE(
            vocab=tokenizer.encoder,
            merges=[pair for pair in merges if len(pair) == 2],
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    made.normalizer = normalizers.Sequence(list(clean))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (tokenizer.decoder[number] for number in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)],
    )
    made.decoder = decoders.ByteLevel()
    return made


def _cleaning_of(tokenizer: Any) -> list[Any]:
    """What open_clip does to a text first, as normalizers; its function of cleaning says which by its name."""
    function = getattr(tokenizer, "clean_fn", None)
    kind = getattr(function, "__name__", "").removeprefix("_clean_")
    replace = normalizers.Replace
    fixed = [
        *(replace(entity, "&") for _ in range(2) for entity in ("&amp;", "&AMP;")),
        *(replace(entity, plain) for entity, plain in _ENTITIES.items()),
        replace(Regex(_TERMINAL), ""),
        *(replace(chr(code), plain) for code, plain in _C1.items()),
        *(replace(ligature, plain) for ligature, plain in _LIGATURES.items()),
        *(replace(char, plain) for char, plain in _WIDTHS.items()),
        replace(Regex("[\u2018\u2019\u201b\u02bc]"), "'"),
        replace(Regex("[\u201c\u201d\u201f]"), '"'),
        replace(Regex(_CONTROLS), ""),
        normalizers.NFC(),
    ]
    space = [replace(Regex(r"\s+"), " "), normalizers.Strip()]
    lower = [replace(Regex(f"(?<={_CASED})\u03a3(?!{_CASED})"), "\u03c2"), normalizers.Lowercase()]
    if kind == "canonicalize":
        return [*fixed, replace(Regex(_PUNCTUATION), ""), *lower, *space]
    return [*fixed, *space, *(lower if kind == "lower" else [])]
