"""Text to token ids through a `tokenizer.json`, without transformers.

The file holds the whole rule: normalization, merges, and the template that adds begin and end. What it does not hold is
how long a sequence is and what fills it; those two come from the manifest. Truncation happens before the template, so
the end token, at which the text tower pools, is never cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.manifest import TextProcessing


def load_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`."""
    if not path.is_file():
        raise UsageError(f"there is no tokenizer {path}", "give a folder that has a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # it raises bare Exception
        raise CorruptInputError(f"{path} is no tokenizer.json: {error}", "make or download it again") from error


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], processing: TextProcessing) -> NDArray[np.int32]:
    """B texts -> (B, T) token ids: T is the context, longer texts lose their end but not the end token."""
    tokenizer.enable_truncation(max_length=processing.context)
    tokenizer.enable_padding(length=processing.context, pad_id=processing.pad_token_id)
    if processing.lowercase:
        texts = [text.lower() for text in texts]
    tokens: NDArray[np.int32] = np.empty((len(texts), processing.context), dtype=np.int32)
    for row, encoded in zip(tokens, tokenizer.encode_batch(list(texts)), strict=True):
        row[:] = encoded.ids
    return tokens


def attention_mask(tokens: NDArray[Any], processing: TextProcessing) -> NDArray[np.int32]:
    """(B, T) -> (B, T): 1 up to the first end token and 0 behind it, for graphs that ask for a mask."""
    ends = tokens == processing.eos_token_id
    after_end = np.cumsum(ends, axis=1) - ends
    mask: NDArray[np.int32] = (after_end == 0).astype(np.int32)
    return mask


def text_processing(artifact: Artifact) -> TextProcessing:
    """How an artifact prepares texts."""
    if artifact.manifest.tokenizer is None:
        raise UsageError(f"{artifact.path} carries no tokenizer", "it cannot embed text; use its image tower only")
    return artifact.manifest.tokenizer
