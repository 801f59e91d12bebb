"""A teacher's two towers as torch modules, with the tokenizer that a device can run: what a graph can be traced from.

A `Teacher` is two functions, which is enough to learn from. Whoever wants graphs of it gives its towers as well. The
tokenizer has to be a `tokenizers.Tokenizer`, since that is what runs on a device without the teacher's own code; where
the teacher has another one, `tokenizer_like` holds the two against each other and refuses what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmcompress.errors import UsageError
from mmcompress.manifest import TextProcessing
from mmcompress.runtime.tokenize import tokenize

ODD_TEXTS = (
    "a photo of a cat",
    "A Photo of TWO Dogs, running!",
    "",
    " ",
    "  leading and   inner\tspaces \n and lines\n",
    "it's the cat's; they're, we'll, I'd, I'm, you've, don't",
    "IT'S",
    "semi-colon; dash - em\u2014dash, ellipsis\u2026 \u201cquoted\u201d \u2018single\u2019",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u00df \u1e9e \u0130stanbul",
    "\u4e00\u53ea\u732b\u5750\u5728\u684c\u5b50\u4e0a",
    "\u0438 \u043a\u043e\u0448\u043a\u0430 \u0393\u03ac\u03c4\u03b1",
    "\u0642\u0637\u0629 \u732b\u304c\u3044\u308b \ud55c\uad6d\uc5b4",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f emoji",
    "12345 3.14 1,000,000 50% $9.99 #tag @user a_b",
    "http://example.com/a?b=c&d=e",
    "&amp; &lt;b&gt; &quot;html&quot; &amp;amp;",
    "<b>bold</b> <|startoftext|> <|endoftext|> end",
    "\u200bzero\u200bwidth\ufeff \u00a0nbsp\u3000wide",
    "\uff21\uff22\uff23 \u2460 \ufb01 \u00bd",
    "...!!!???",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "word " * 500,
    "x" * 300,
)
"""Texts on which tokenizers differ, if they do."""


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

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, T) int32."""
        return torch.from_numpy(tokenize(self.tokenizer, texts, self.processing))


def tokenizer_like(
    own: Callable[[Sequence[str]], Any], tokenizer: Tokenizer, processing: TextProcessing, name: str
) -> Tokenizer:
    """The tokenizer, if it gives the ids that the teacher's `own` gives on odd texts; else UsageError."""
    wanted = np.asarray(own(list(ODD_TEXTS)))
    given = tokenize(tokenizer, ODD_TEXTS, processing)
    if wanted.shape != given.shape:
        raise UsageError(
            f"the tokenizer of {name} gives {wanted.shape[-1]} ids a text, and its tokenizer.json {given.shape[-1]}",
            "it can be a teacher to learn from, but no graph that runs by itself",
        )
    for text, one, other in zip(ODD_TEXTS, wanted, given, strict=True):
        if not np.array_equal(one, other):
            raise UsageError(
                f"the tokenizer of {name} gives other ids than a tokenizer.json can: for {text[:40]!r}",
                "it can be a teacher to learn from, but no graph that runs by itself",
            )
    return tokenizer
