"""The pairs that a verdict is given on: none of them took part in the calibration.

They are the validation pairs, never the test set, since a graph is chosen by them. Where there are none, or where they
are the very set that calibrated, the training pairs that follow those that the checkpoint says it has seen, in the same
shuffled order, are as new to the ranges and the integers; the student has seen them in training, which moves both sides
of a comparison with FP32. The first caption of each image is taken, and equal captions are one text, which then belongs
to several images. Photos without captions are held against what FP32 itself answers among the sentences that ship.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import VerdictConfig
from mmcompress.data.batches import Batch, batches
from mmcompress.data.spec import fingerprint, is_photos, part_of
from mmcompress.errors import UsageError
from mmcompress.int8 import seen_pairs
from mmcompress.measure.agreement import best
from mmcompress.measure.retrieval import KS, Floats, Ints
from mmcompress.measure.verdict.contest import EMBED_BATCH
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize

SHUFFLED = 4096
"""Encoded samples that validation pairs are shuffled through."""
FEWEST = 2 * max(KS)
"""Different captions: among fewer, a hit at 10 is hardly ever lost."""


@dataclass(frozen=True)
class Held:
    """Images and the texts that belong to them, as the towers take them but for the normalization."""

    pixels: NDArray[np.uint8]
    """(N, S, S, 3)"""
    tokens: NDArray[np.int32]
    """(M, T), each text once"""
    image_group: Ints
    """(N,) index of each image's text"""
    spec: str
    """Where they come from."""

    @property
    def captioned(self) -> bool:
        """Whether the texts are of the images; to photos that nobody captioned they are any."""
        return not is_photos(self.spec)

    def judged_by(self, images: Floats, texts: Floats) -> Held:
        """The pairs as they are; of photos without captions, each with the text that FP32 (N, D), (M, D) gives."""
        return self if self.captioned else replace(self, image_group=best(images, texts))


def held_out(source: Artifact, config: VerdictConfig) -> Held:
    """`config.samples` pairs that the checkpoint was not calibrated on, or as many as there are."""
    if source.preprocessing is None:
        raise UsageError(f"{source.path} does not say how images are prepared", "make the checkpoint again")
    text = text_processing(source)
    spec, stream = _stream(source, config)
    parts: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for batch in islice(stream, -(-config.samples // EMBED_BATCH)):
        parts.append(batch.pixels)
        captions += [texts[0] for texts in batch.captions]
    texts = list(dict.fromkeys(captions[: config.samples]))
    if len(texts) < FEWEST:
        raise UsageError(
            f"{spec} has {len(captions)} photos that the calibration has not seen, {2 * FEWEST} are enough"
            if is_photos(spec)
            else f"{spec} has {len(texts)} different captions that the calibration has not seen, {FEWEST} are needed",
            "give others with --data, or quantize with fewer --samples; of a small set quantize one part, "
            "--data part:3-9/10:SET, and judge on the other, --data part:0-2/10:SET",
        )
    place = {caption: index for index, caption in enumerate(texts)}
    group = np.array([place[caption] for caption in captions[: config.samples]])
    pixels: NDArray[Any] = np.concatenate(parts)[: config.samples]
    return Held(pixels, tokenize(load_tokenizer(source.file(text.file)), texts, text), group, spec)


def _stream(source: Artifact, config: VerdictConfig) -> tuple[str, Iterator[Batch]]:
    """Where the pairs come from, and the pairs in random order."""
    data, preprocessing = config.data, source.preprocessing
    assert preprocessing is not None
    read = partial(batches, batch=EMBED_BATCH, workers=data.workers, max_bad_fraction=data.max_bad_fraction)
    given = data.validation
    if given is not None and not _calibrated_on(source, given):
        _check_no_part(source, given)
        return given, read(given, preprocessing, shuffle_seed=config.seed, buffer=SHUFFLED)
    spec = given or data.train
    if spec is None:
        raise UsageError("a verdict needs pairs to measure drift on", "set data.validation, or give --data")
    seen = seen_pairs(source)
    if seen.pairs is None:
        raise UsageError(
            f"{source.path} was trained on all of {spec}, so none of its pairs can judge it",
            "give others with --data, or set data.validation",
        )
    skip = -(-seen.pairs // EMBED_BATCH)
    return spec, read(spec, preprocessing, shuffle_seed=seen.seed, buffer=seen.buffer, skip=skip)


def _calibrated_on(source: Artifact, spec: str) -> bool:
    """Whether the integers were fitted on that set, wherever it lies."""
    return source.manifest.parents.get("data.train") == fingerprint(spec)


def _check_no_part(source: Artifact, spec: str) -> None:
    """Refuse a part of a set that calibrated as a whole: which samples of the part were seen is not known."""
    share, whole = part_of(spec)
    if share is not None and _calibrated_on(source, whole):
        raise UsageError(
            f"{spec} is a part of what {source.path} was calibrated on, so it may have been seen",
            f"--data {whole} takes what was not seen; else give others, or quantize on another part",
        )
