"""Text to token ids through a `tokenizer.json`, without transformers.

The file holds the whole rule: normalization, merges, and the template that adds begin and end. What it does not hold is
how long a sequence is and what fills it; those two come from the manifest. Truncation happens before the template, so
the end token, at which the text tower pools, is never cut off.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.foreign import foreign_code
from mmcompress.manifest import TextProcessing
from mmcompress.strictjson import LARGEST_TOKENIZER, check_size, is_unicode

_one_at_a_time = threading.Lock()
"""A tokenizer refuses to be set up while another thread uses it; a batch is spread over cores in the library."""


def load_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`."""
    if not path.is_file():
        raise UsageError(f"there is no tokenizer {path}", "give a folder that has a tokenizer.json")
    again = "make or download it again"
    check_size(path, again, LARGEST_TOKENIZER)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # it raises bare Exception
        raise CorruptInputError(f"{path} is no tokenizer.json: {error}", again) from error


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], processing: TextProcessing) -> NDArray[np.int32]:
    """B texts -> (B, T) token ids: T is the context, longer texts lose their end but not the end token.

    Raises CorruptInputError for a text that is none, a name of a folder in another encoding say.
    """
    if (broken := next((text for text in texts if not is_unicode(text)), None)) is not None:
        hint = "rename the folder that it names, or mend the text"
        raise CorruptInputError(f"the text {broken!r} has bytes that are no UTF-8", hint)
    tokens: NDArray[np.int32] = np.empty((len(texts), processing.context), dtype=np.int32)
    again = "its tokenizer.json contradicts itself: make or download it again"
    with foreign_code("the tokenizer", again, CorruptInputError), _one_at_a_time:
        tokenizer.enable_truncation(max_length=processing.context)
        tokenizer.enable_padding(length=processing.context, pad_id=processing.pad_token_id)
        for row, encoded in zip(tokens, tokenizer.encode_batch(spelled(texts, processing)), strict=True):
            row[:] = encoded.ids
    return tokens


def spelled(texts: Sequence[str], processing: TextProcessing) -> list[str]:
    """Texts as the tokenizer takes them: in lower case, behind a prefix, where a model wants that."""
    if processing.lowercase:
        # one by one, as the `tokenizers` library does: str.lower() knows a sigma at the end of a word
        texts = ["".join(map(str.lower, text)) for text in texts]
    if processing.prefix:
        texts = [processing.prefix + text.replace(processing.prefix, " ") for text in texts]
    return list(texts)


def attention_mask(tokens: NDArray[Any], processing: TextProcessing) -> NDArray[np.int32]:
    """(B, T) -> (B, T): 1 for a text with its end token and 0 for what fills it up, for graphs that ask for a mask.

    Ones only where the tokenizer masks nothing. Where the end token fills up as well, the first one at the end counts.
    """
    if not processing.mask:
        return np.ones(tokens.shape, dtype=np.int32)
    fills = np.cumprod((tokens == processing.pad_token_id)[:, ::-1], axis=1)[:, ::-1]
    if processing.pad_token_id == processing.eos_token_id:
        fills[:, 1:] *= fills[:, :-1]
        fills[:, 0] = 0
    mask: NDArray[np.int32] = 1 - fills.astype(np.int32)
    return mask


def text_processing(artifact: Artifact) -> TextProcessing:
    """How an artifact prepares texts."""
    if artifact.manifest.tokenizer is None:
        raise UsageError(f"{artifact.path} carries no tokenizer", "it cannot embed text; use its image tower only")
    return artifact.manifest.tokenizer
