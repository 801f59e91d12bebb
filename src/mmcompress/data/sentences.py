"""Sentences that ship, for images that nobody has described: what a text tower is calibrated on where data brings none.

They are plain captions of everyday photos, from two words to thirty, written for this package. A sentence says nothing
about the image that it is read with.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

SENTENCES = "sentences that ship with mmcompress"
"""What a manifest and a page call them."""


@functools.cache
def sentences() -> tuple[str, ...]:
    """All of them, in order."""
    return tuple(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines())


def sentence_for(key: str) -> str:
    """The one that stands in for the caption of a sample, the same in every run."""
    return sentences()[zlib.crc32(key.encode()) % len(sentences())]
