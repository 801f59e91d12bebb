"""A user's own sentences, embedded once by the teacher: what images are placed among that nobody has described.

With them a student learns from images alone, and its text tower from the sentences: in each epoch an image stands
beside one of them, drawn from (seed, epoch, key), and all of them are the anchors that images are placed among. No
sentence belongs to an image, so no term that asks which one does can be learned. What the data says of its images is
left aside.

`sentences.safetensors` beside the shards' files holds `texts (K, D)` in FP16 and `said`, the sentences as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmcompress.errors import CorruptInputError
from mmcompress.strictjson import json_from_text, text_from_json

FILE = "sentences.safetensors"


@dataclass(frozen=True)
class Sentences:
    """K different sentences and what one teacher makes of them."""

    said: tuple[str, ...]
    texts: Tensor
    """(K, D) in FP16, mapped into memory."""

    def __len__(self) -> int:
        return len(self.said)

    def spread(self, count: int) -> Tensor:
        """(K', D) in FP32: up to `count` of them, evenly spaced."""
        rows = torch.linspace(0, len(self) - 1, min(len(self), count), dtype=torch.float64).round().long()
        return self.texts[rows].float()

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """(B, D) in FP32 of some of them."""
        return self.texts[list(numbers)].float()


def write_sentences(path: Path, said: Sequence[str], texts: Tensor) -> None:
    """Write the file, whole or not at all: texts (K, D) in FP16."""
    partial = path.with_name(f".{path.name}")
    words = torch.tensor(list(text_from_json(list(said), compact=True).encode()), dtype=torch.uint8)
    save_file({"texts": texts.contiguous(), "said": words}, partial)
    partial.replace(path)


def read_sentences(folder: Path) -> Sentences | None:
    """Those of a teacher's embeddings; None where there are none. CorruptInputError for a file that is no such one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        texts, said = tensors["texts"], json_from_text(tensors["said"].numpy().tobytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CorruptInputError(f"{path} cannot be read as sentences: {error}", "embed the data again") from error
    if len(said) != len(texts) or not torch.isfinite(texts).all():
        raise CorruptInputError(f"{path} has a sentence without finite numbers", "embed the data again")
    return Sentences(tuple(said), texts)
