"""What is asked of a model: which label fits an image, and which images fit a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mmcompress.data.layout import check_template, prompts
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.progress import say
from mmcompress.runtime.encoder import BATCH, IMAGE_SUFFIXES, Encoder, check_image, read_pixels


def classify(
    encoder: Encoder, image: Path | str, labels: Sequence[str], template: str = "{}"
) -> list[tuple[str, float]]:
    """Labels with their probabilities, the likeliest first: softmax over the labels given, so they sum to 1."""
    check_classify(image, labels, template)
    labels = list(dict.fromkeys(labels))  # a label that is said twice would share with itself
    embedding = encoder.image_files([image])[0]
    encoder.warn_by_chance()
    texts = encoder.texts(prompts(labels, [template]))
    probabilities = softmax(encoder.logit_scale * (texts @ embedding).astype(np.float64))
    order = np.argsort(-probabilities, kind="stable")
    return [(labels[i], float(probabilities[i])) for i in order]


def check_classify(image: Path | str, labels: Sequence[str], template: str) -> None:
    """Raise UsageError for what cannot be answered, whatever the model is; before one is converted for it."""
    if len(set(labels)) < 2:
        one = f"{labels[0]!r} is the only label, and would get 100% of any image" if labels else "there are no labels"
        raise UsageError(one, "give at least two labels: --labels cat,dog")
    check_template(template)
    check_image(Path(image))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) -> (N,)"""
    exponentials = np.exp(logits - logits.max())
    return cast(NDArray[np.float64], exponentials / exponentials.sum())


def search(encoder: Encoder, images: Path | str, text: str, top: int = 5) -> list[tuple[Path, float]]:
    """The images under a folder whose embeddings are closest to the text, with their cosines, best first.

    Files that are no whole images are named and skipped.
    """
    check_search(images, top)
    paths, embeddings = embed_folder(encoder, Path(images))
    encoder.warn_by_chance()
    scores = embeddings @ encoder.texts([text])[0]
    order = np.argsort(-scores, kind="stable")[:top]
    return [(paths[i], float(scores[i])) for i in order]


def check_search(images: Path | str, top: int) -> None:
    """As `check_classify`."""
    if top < 1:
        raise UsageError(f"--top {top} asks for no results", "give 1 or more")
    if not Path(images).is_dir():
        raise UsageError(f"there is no folder {images}", "give a folder with images")


def embed_folder(encoder: Encoder, folder: Path) -> tuple[list[Path], NDArray[np.float32]]:
    """(paths, (N, D)) of the whole images under a folder, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    paths: list[Path] = []
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(files), BATCH):
        pixels: list[NDArray[np.uint8]] = []
        for path in files[start : start + BATCH]:
            try:
                pixels.append(read_pixels(path, encoder.preprocessing))
                paths.append(path)
            except (CorruptInputError, OSError) as error:
                say("search", path.name, f"skipped: {error}")
        if pixels:
            parts.append(encoder.pixels(np.stack(pixels), paths[-len(pixels) :]))
    if not parts:
        raise UsageError(
            f"{folder} has no image that can be read ({len(files)} files tried)",
            f"give a folder with files that end in {', '.join(IMAGE_SUFFIXES)}",
        )
    return paths, np.concatenate(parts)
