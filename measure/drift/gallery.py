"""Images on which a model answers differently from its teacher, small enough to look at.

A flip rate says how many answers changed; the pictures say whether it matters. They are spread over the teacher's
margin, from images that it was sure of to those on which a coin would have done: the latter flip in any two models. The
test set is read once more for them, and nothing but the chosen images is decoded: keeping a thumbnail of every image
until the last row has answered would not fit into memory.

Beside an image stand the maps of both models (`measure/explain/occlusion.py`), each for its own answer. All of them
together cost no more than the test set does once more, so on a small set only some images have them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmcompress.artifact import Artifact
from mmcompress.config import Backend, DataConfig
from mmcompress.data.decoding import decode
from mmcompress.manifest import Kind
from mmcompress.measure.drift.document import Choice, GalleryEntry
from mmcompress.measure.drift.testset import EvaluationSet, prompt_embeddings
from mmcompress.measure.explain.heat import lit
from mmcompress.measure.explain.occlusion import PASSES, occlusion
from mmcompress.measure.retrieval import Answers, Bools, Floats, Ints, Matches
from mmcompress.runtime.encoder import Encoder

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


def mapped(entries: Sequence[GalleryEntry], images: int) -> list[GalleryEntry]:
    """The entries, with names for the maps of as many as `images` more images a model pay for, evenly spread."""
    affordable = min(len(entries), images // PASSES)
    chosen = set(np.linspace(0, len(entries) - 1, affordable).round().astype(int).tolist())
    named = []
    for place, entry in enumerate(entries):
        stem = entry.file.removesuffix(".webp")
        maps = {
            field: getattr(entry, field).model_copy(update={"map": f"{stem}-{field}.webp"})
            for field in ("teacher", "answer")
            if place in chosen
        }
        named.append(entry.model_copy(update=maps))
    return named


def write_pictures(
    entries: Sequence[GalleryEntry],
    models: tuple[Artifact, Artifact],
    backend: Backend | None,
    data: DataConfig,
    templates: Sequence[str],
    folder: Path,
) -> None:
    """Below `folder`, as WebP: the images of the entries as the first model sees them, and the maps that they name.

    Graphs run on the `backend`, engines on their own.
    """
    from mmcompress.data.batches import read

    wanted = {entry.key: entry for entry in entries}
    if not wanted or data.test is None:
        return
    (folder / "gallery").mkdir(exist_ok=True)
    shown = read(data.test, max_bad_fraction=data.max_bad_fraction, announce=False)
    images = {sample.key: sample.image for sample in shown if sample.key in wanted}
    for field, model in zip(("teacher", "answer"), models, strict=True):
        with Encoder.open(model, backend if model.manifest.kind is Kind.ONNX else None) as encoder:
            for key, entry in wanted.items():
                pixels = decode(images[key], encoder.preprocessing)
                if field == "teacher":
                    (folder / entry.file).write_bytes(thumbnail(Image.fromarray(pixels)))
                choice: Choice = getattr(entry, field)
                if choice.map is not None:
                    text = prompt_embeddings(encoder, [choice.text], templates)[0]
                    found = occlusion(encoder.pixels, pixels, text)[1]
                    (folder / choice.map).write_bytes(thumbnail(lit(pixels, found, SIDE)))


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """WebP of at most `side` pixels."""
    buffer = io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()
