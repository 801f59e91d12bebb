"""The pairs that a verdict is given on: none of them took part in the calibration.

They are the validation pairs, never the test set, since a graph is chosen by them. Where there are none, or where they
are the very set that calibrated, the training pairs that follow those that the checkpoint says it has seen, in the same
shuffled order, are as new to the ranges and the integers; the student has seen them in training, which moves both sides
of a comparison with FP32. The first caption of each image is taken, and equal captions are one text, which then belongs
to several images. Photos without captions are held against what FP32 itself answers among labels, where a list of them
is given, else among the sentences that ship.
Copies of images that calibrated are left out, under whatever names they lie among the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import VerdictConfig
from mmcompress.data.batches import Batch, batches
from mmcompress.data.fingerprint import fingerprint
from mmcompress.data.layout import read_labels
from mmcompress.data.sample import image_of
from mmcompress.data.spec import is_photos, part_of
from mmcompress.errors import UsageError
from mmcompress.measure.agreement import best
from mmcompress.measure.retrieval import KS, Floats, Ints
from mmcompress.measure.verdict.contest import EMBED_BATCH
from mmcompress.progress import say
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize
from mmcompress.seen import seen_images, seen_pairs

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
    """(N,) index of each image's text; -1 of a photo that is still to be judged by labels"""
    spec: str
    """Where they come from."""
    left_out: int | None = None
    """Images that were looked at and calibrated too, or are copies of such; None where it is not known which did."""
    labels: str | None = None
    """The list that the texts are of; None where they are captions, or sentences that ship."""

    @property
    def captioned(self) -> bool:
        """Whether the texts are of the images; to photos that nobody captioned they are any."""
        return not is_photos(self.spec)

    def judged_by(self, images: Floats, texts: Floats) -> Held:
        """The pairs as they are; of photos without captions, each with the text that FP32 (N, D), (M, D) gives."""
        return self if self.captioned else replace(self, image_group=best(images, texts))


def held_out(source: Artifact, config: VerdictConfig) -> Held:
    """`config.samples` pairs that the checkpoint was not calibrated on, or as many as there are."""
    text = text_processing(source)
    spec, stream = _stream(source, config)
    labels = config.data.labels if is_photos(spec) else None
    if labels is None and config.data.labels is not None:
        say("", "data", f"{config.data.labels} is not used: the pairs of {spec} have captions, and right is their own")
    parts: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    known, left_out = seen_images(source), 0
    seen = known or frozenset()
    for batch in stream:
        rows = [row for row, mark in enumerate(batch.marks) if image_of(mark) not in seen]
        left_out += len(batch.keys) - len(rows)
        parts.append(batch.pixels[rows])
        captions += [batch.captions[row][0] for row in rows]
        if len(captions) >= config.samples:
            break
    if left_out:
        say("", "data", f"{left_out} images of {spec} were calibrated on, or are copies of such: they are left out")
    texts = list(dict.fromkeys(captions[: config.samples]))
    if len(texts) < FEWEST:
        raise UsageError(
            f"{spec} has {len(captions)} photos that the calibration has not seen, {2 * FEWEST} are enough"
            if is_photos(spec)
            else f"{spec} has {len(texts)} different captions that the calibration has not seen, {FEWEST} are needed",
            "give others with --data, or quantize with fewer --samples; of a small set quantize one part, "
            "--data part:3-9/10:SET, and judge on the other, --data part:0-2/10:SET",
        )
    if labels is not None:
        texts = read_labels(labels)
        if len(texts) < FEWEST:
            say("", "data", f"warning: among {len(texts)} labels hardly a hit at 10 is lost; what flips is what counts")
    place = {caption: index for index, caption in enumerate(texts)}
    group = np.array([place.get(caption, -1) for caption in captions[: config.samples]])
    pixels: NDArray[Any] = np.concatenate(parts)[: config.samples]
    return Held(
        pixels,
        tokenize(load_tokenizer(source.file(text.file)), texts, text),
        group,
        spec,
        None if known is None else left_out,
        labels,
    )


def _stream(source: Artifact, config: VerdictConfig) -> tuple[str, Iterator[Batch]]:
    """Where the pairs come from, and the pairs in random order."""
    data, preprocessing = config.data, source.image_processing
    read = partial(batches, batch=EMBED_BATCH, workers=data.workers, max_bad_fraction=data.max_bad_fraction)
    spec = data.validation or data.train
    if spec is None:
        raise UsageError("a verdict needs pairs to measure drift on", "set data.validation, or give --data")
    if not _calibrated_on(source, spec):
        _check_apart(source, spec)
        if data.validation is not None:
            return spec, read(spec, preprocessing, shuffle_seed=config.seed, buffer=SHUFFLED)
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


def _check_apart(source: Artifact, spec: str) -> None:
    """Refuse what shares samples with what calibrated: one set in other parts. Which were seen is not known then."""
    share, whole = part_of(spec)
    fitted = part_of(str((source.manifest.config.get("data") or {}).get("train")))[0]
    same = whole if fitted is None else fitted.of(whole)
    if not _calibrated_on(source, same) or (share is not None and fitted is not None and share.is_apart_from(fitted)):
        return
    raise UsageError(
        f"{spec} shares samples with what {source.path} was calibrated on",
        f"give a part that shares none, or --data {same}: what was not seen of it is taken then",
    )
