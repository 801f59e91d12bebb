"""What the calibration or the training of integers has seen: how far in an order, and which images.

Samples are told apart by their place in a shuffled order, so that a verdict on the same set can go on behind them. And
images by the bytes of their files: photos lie about in copies under other names, and validation data is often cut from
what calibrates. An image that was stored anew is another one here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.frozen import Config
from mmcompress.places import MANIFEST
from mmcompress.wrong import first_wrong

SEEN = "seen"
"""The fact of a quantized checkpoint that says which training pairs it has seen."""
SEEN_IMAGES = "seen-images.bin"
"""The file of what is quantized with 8 bytes of each image that was seen, one after the other."""
JUDGED_ON = "judged_on"
"""The fact of what is quantized that says which samples its cost was measured on."""
JudgedOn = Literal["validation", "unfitted", "seen"]
"""Other samples; some that had a say in the ranges only; or some that weights were fitted to."""
_IMAGE_BYTES = 8


class Seen(Config):
    """The training pairs that calibration or training of integers saw: the first ones of a shuffled order."""

    pairs: int | None
    """How many; null for all."""
    seed: int
    """Of the order."""
    buffer: int
    """Encoded samples that the order is shuffled through."""


def seen_pairs(quantized: Artifact) -> Seen:
    """Which training pairs a quantized checkpoint has seen. Raises UsageError if it does not say."""
    if SEEN not in quantized.manifest.facts:
        raise UsageError(
            f"{quantized.path} does not say which training pairs it was calibrated on",
            "give others: --data PAIRS, or quantize it again",
        )
    try:
        return Seen.model_validate(quantized.manifest.facts[SEEN])
    except ValidationError as error:
        said = f"{quantized.path / MANIFEST}{first_wrong(error, 'facts', SEEN)}"
        raise CorruptInputError(said, "quantize it again") from error


def write_seen_images(folder: Path, images: Iterable[bytes]) -> None:
    """`images` are what `image_of` of `data/sample.py` tells of each."""
    (folder / SEEN_IMAGES).write_bytes(b"".join(sorted(images)))


def seen_images(artifact: Artifact) -> frozenset[bytes] | None:
    """The images that a quantized artifact has seen; None where it does not say, as of a float one."""
    if SEEN_IMAGES not in artifact.manifest.files:
        return None
    content = artifact.file(SEEN_IMAGES).read_bytes()
    return frozenset(content[i : i + _IMAGE_BYTES] for i in range(0, len(content), _IMAGE_BYTES))
