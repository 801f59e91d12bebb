"""Where a text is read, and how much of it the embedding depends on: `TextTower.ends` and `reach` in numpy.

Ids behind the reach of all texts of a batch need not be computed, and say nothing of a calibration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.architecture import TextConfig

Ids = NDArray[np.integer[Any]]


def read_at(tokens: Ids, text: TextConfig) -> Ids:
    """(B, T) -> (B,): the token that is read."""
    if text.pooling == "end":
        return np.asarray((tokens == text.eos_token_id).argmax(axis=1))
    if text.pooling == "largest":
        return np.asarray(tokens.argmax(axis=1))
    return np.full(len(tokens), tokens.shape[1] - 1 if text.pooling == "last" else 0)


def reach(tokens: Ids, text: TextConfig) -> Ids:
    """(B, T) -> (B,): the last token that the embedding depends on."""
    if text.attention == "causal":
        return read_at(tokens, text)
    seen = tokens != text.pad_token_id if text.attention == "masked" else np.ones_like(tokens, dtype=bool)
    return np.asarray(np.where(seen, np.arange(tokens.shape[1]), 0).max(axis=1))
