"""SigLIP's tokenizer, which exists in Python over SentencePiece alone, as a `tokenizer.json`.

`transformers.SiglipTokenizer` lowers a text, cuts it at special tokens, and of each part takes the punctuation and the
surplus white space away before SentencePiece sees it. The latter are normalizers of the `tokenizers` library; lowering
and the space before a text, but not before what follows a special token, come before it (`TextProcessing`). The pieces
with their scores, and the table of the Unicode normalization, are those of the model file.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors

from mmcompress.errors import UsageError, require

SPACE = "▁"
"""What SentencePiece writes for a space (U+2581)."""
_UNIGRAM = 1


def siglip_tokenizer(slow: Any) -> Tokenizer:
    """The `tokenizer.json` of a `SiglipTokenizer`, for texts that were lowered and have SPACE as their prefix."""
    require("sentencepiece", "sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(slow.vocab_file).read_bytes())
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise UsageError(f"{slow.vocab_file} is no unigram model", "SigLIP's own spiece.model is one")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    table = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),  # Python counts the four separators as white space
            normalizers.Replace(Regex("^ "), ""),  # of what follows a special token: a text begins with SPACE
            *([normalizers.Precompiled(table)] if table else []),
            normalizers.Replace(Regex(f"[ {SPACE}]+"), SPACE),
            normalizers.Replace(Regex(f"{SPACE}$"), ""),
            *_swallowed(slow.unk_token, pieces, proto.trainer_spec.byte_fallback),
        ]
    )
    tokenizer.add_special_tokens(list(slow.added_tokens_decoder.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {slow.eos_token}", special_tokens=[(slow.eos_token, slow.eos_token_id)]
    )
    return tokenizer


def _swallowed(unknown: str, pieces: Sequence[tuple[str, float]], byte_fallback: bool) -> list[normalizers.Normalizer]:
    """What is lost because the class writes `unknown` before each part, and cuts as many pieces off as that alone has.

    SentencePiece makes one piece of unknown characters in a row. Where the last one of "<unk>" is unknown itself, those
    that a part begins with go with it. The published model knows ">".
    """
    known = {piece for piece, _ in pieces if len(piece) == 1}
    if byte_fallback or unknown[-1] in known:
        return []
    return [normalizers.Replace(Regex(f"^[^{re.escape(''.join(sorted(known)))}]+"), "")]
