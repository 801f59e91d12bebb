"""Images on which a model answers differently from its teacher, small enough to look at.

A flip rate says how many answers changed; the pictures say whether it matters. They are spread over the teacher's
margin, from images that it was sure of to those on which a coin would have done: the latter flip in any two models. The
test set is read once more for them, and nothing but the chosen images is decoded: keeping a thumbnail of every image
until the last row has answered would not fit into memory.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.config import DataConfig
from mmcompress.manifest import Preprocessing
from mmcompress.measure.drift.document import Choice, GalleryEntry
from mmcompress.measure.drift.testset import EvaluationSet
from mmcompress.measure.retrieval import Answers, Bools, Floats, Ints, Matches

SIDE = 96
"""Longest side of a thumbnail, in pixels."""


def chosen_flips(flips: Bools, margin: Floats, most: int) -> Ints:
    """Some of the images that flip, evenly spread over the first model's (N,) margin, its surest first."""
    changed = np.flatnonzero(flips)
    ordered = changed[np.argsort(-margin[changed], kind="stable")]
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(np.int64)
    chosen: Ints = ordered[places]
    return chosen


def gallery(
    pairs: EvaluationSet, chosen: Ints, flips: Bools, answers: tuple[Answers, Answers], row: str, most: int
) -> list[GalleryEntry]:
    """What the first and the last row say of images that flip; `chosen` are those that the answers are of."""
    first, last = answers
    matches = Matches.of(pairs.image_group[chosen], pairs.text_group)
    return [
        GalleryEntry(
            file=f"gallery/{number:03d}.webp",
            key=pairs.keys[chosen[place]],
            truth=tuple(pairs.texts[text] for text in matches.of_query(place)),
            row=row,
            teacher=Choice(text=pairs.texts[first.best[place]], score=float(first.score[place])),
            answer=Choice(text=pairs.texts[last.best[place]], score=float(last.score[place])),
        )
        for number, place in enumerate(chosen_flips(flips, first.margin, most))
    ]


def write_thumbnails(
    entries: Sequence[GalleryEntry], data: DataConfig, preprocessing: Preprocessing, folder: Path
) -> None:
    """The images of the entries, as the model sees them, as WebP files below `folder`."""
    from mmcompress.data.batches import decode, read

    files = {entry.key: folder / entry.file for entry in entries}
    if not files or data.test is None:
        return
    (folder / "gallery").mkdir(exist_ok=True)
    for sample in read(data.test, max_bad_fraction=data.max_bad_fraction, announce=False):
        if (file := files.pop(sample.key, None)) is not None:
            file.write_bytes(thumbnail(decode(sample.image, preprocessing)))
        if not files:
            break


def thumbnail(pixels: NDArray[np.uint8], side: int = SIDE) -> bytes:
    """(S, S, 3) -> WebP of at most `side` pixels."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()
