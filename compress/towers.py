"""A teacher's two towers as torch modules, with the tokenizer that a device can run: what a graph can be traced from.

A `Teacher` is two functions, which is enough to learn from. Whoever wants graphs of it gives its towers as well. The
tokenizer has to be a `tokenizers.Tokenizer`, since that is what runs on a device without the teacher's own code; where
the teacher has another one, `tokenizer_like` holds the two against each other and refuses what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmcompress.errors import UsageError
from mmcompress.export.oddities import odd_texts
from mmcompress.manifest import TextProcessing
from mmcompress.runtime.tokenize import tokenize


@dataclass(frozen=True, eq=False)
class Towers:
    """Two modules into one space, and how texts become what the second takes."""

    image: nn.Module
    """(B, 3, S, S) normalized float -> (B, D)"""
    text: nn.Module
    """(B, T) int32 -> (B, D)"""
    tokenizer: Tokenizer
    processing: TextProcessing
    """With the tokenizer, how texts become (B, T)."""
    logit_scale: float
    """What cosines are multiplied with before a softmax."""
    files: tuple[Path, ...] = ()
    """What they were read from beside what their teacher was."""
    running: Callable[[], AbstractContextManager[None]] = nullcontext
    """What both modules are run within; that of a teacher of one's own is set here."""

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, T) int32."""
        return torch.from_numpy(tokenize(self.tokenizer, texts, self.processing))


def tokenizer_like(
    own: Callable[[Sequence[str]], Any], tokenizer: Tokenizer, processing: TextProcessing, name: str
) -> Tokenizer:
    """The tokenizer, if it gives the ids that the teacher's `own` gives on odd texts; else UsageError."""
    texts = odd_texts()
    wanted = np.asarray(own(list(texts)))
    given = tokenize(tokenizer, texts, processing)
    if wanted.shape != given.shape:
        raise UsageError(
            f"the tokenizer of {name} gives {wanted.shape[-1]} ids a text, and its tokenizer.json {given.shape[-1]}",
            "it can be a teacher to learn from, but no graph that runs by itself",
        )
    for text, one, other in zip(texts, wanted, given, strict=True):
        if not np.array_equal(one, other):
            raise UsageError(
                f"the tokenizer of {name} gives other ids than a tokenizer.json can: for {text[:40]!r}",
                "it can be a teacher to learn from, but no graph that runs by itself",
            )
    return tokenizer
