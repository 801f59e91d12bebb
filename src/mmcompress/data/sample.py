"""A sample: an image as it was stored, and what is said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

MARK_BYTES = 16
_HALF = MARK_BYTES // 2


@dataclass(frozen=True)
class Sample:
    """An image as it was stored, and what is said of it."""

    key: str
    """Unique within the data: the shard's or the class's name and the name in it, or the path in a table."""
    image: bytes
    captions: tuple[str, ...]
    label: str | None
    seen: bool
    """False for a class that was kept out of training."""

    @property
    def mark(self) -> bytes:
        """See `mark_of`."""
        return mark_of(self.image, self.captions)

    def stored(self) -> bytes:
        """The image file's bytes, which are held already."""
        return self.image


def mark_of(image: bytes, captions: Sequence[str]) -> bytes:
    """16 bytes that tell samples of one key apart: 8 are of the image file, 8 of the captions in their order.

    What was computed from a sample is stored with its mark, since keys say nothing: every set may number its own.
    """
    said = "".join(f"{len(caption)}:{caption}" for caption in captions).encode()
    return hashlib.blake2b(image, digest_size=_HALF).digest() + hashlib.blake2b(said, digest_size=_HALF).digest()


def image_of(mark: bytes) -> bytes:
    """The half of a mark that is of the image file alone: equal for copies under whatever names."""
    return mark[:_HALF]


def difference(mark: bytes, other: bytes) -> str | None:
    """In what two samples of one key differ, as words; None where they are the same."""
    halves = ("another image", slice(_HALF)), ("other captions", slice(_HALF, None))
    return " and ".join(words for words, half in halves if mark[half] != other[half]) or None
