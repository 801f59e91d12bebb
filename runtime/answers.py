"""What is asked of a model: which label fits an image, and which images fit a text."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.data.images import passed_over
from mmcompress.data.layout import check_template, prompts, read_labels
from mmcompress.data.spec import images_in
from mmcompress.data.tally import Tally
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.progress import say, track
from mmcompress.runtime.encoder import BATCH, Encoder
from mmcompress.runtime.frames import ANY_SIZE, IMAGE_SUFFIXES, read_pixels
from mmcompress.runtime.session import Tower
from mmcompress.runtime.trimmed import warn_of_lost_letters

IMAGE_ALONE: tuple[Tower, ...] = ("image",)
"""What a classification by the labels inside a graph needs."""
_READ = ", ".join(IMAGE_SUFFIXES)


def classify(
    encoder: Encoder, image: Path | str, labels: Sequence[str] | None = None, template: str = "{}"
) -> list[tuple[str, float]]:
    """Labels with their probabilities, the likeliest first: softmax over the labels, so they sum to 1.

    The labels are those that the image graph holds where none are given; the text tower is not needed then.
    """
    check_classify(image, labels, template)
    if labels is None:
        logits = encoder.image_logits(image).astype(np.float64)
        bank = encoder.artifact.manifest.bank
        assert bank is not None
        labels = bank.labels
    else:
        labels = list(dict.fromkeys(labels))  # a label that is said twice would share with itself
        embedding = encoder.image_files([image])[0]
        encoder.warn_by_chance()
        warn_of_lost_letters(encoder.artifact, labels)
        texts = encoder.texts(prompts(labels, [template]))
        logits = encoder.logit_scale * (texts @ embedding).astype(np.float64)
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")
    return [(labels[i], float(probabilities[i])) for i in order]


def labels_in(said: str | None) -> list[str] | None:
    """`cat, dog`, or what a file lists, as `drift` reads it -> the labels; None for those inside the graph."""
    if said is None:
        return None
    if os.path.isfile(said) or said.startswith("demo:"):  # noqa: PTH113, as Path raises for what is too long for a name
        return read_labels(said)
    return [label.strip() for label in said.split(",") if label.strip()]


def opened(artifact: Artifact, backend: Backend | None, labels: Sequence[str] | None) -> Encoder:
    """What `classify` asks; labels that are given take the text tower too."""
    return Encoder.open(artifact, backend, towers=IMAGE_ALONE if labels is None else ("image", "text"))


def check_classify(image: Path | str, labels: Sequence[str] | None, template: str) -> None:
    """Raise UsageError for what cannot be answered, whatever the model is, or CorruptInputError for a file that is no
    image; before a model is converted for it."""
    if labels is None and template != "{}":
        raise UsageError(f"the template {template!r} stands around labels, and none are given", "give --labels too")
    if labels is not None and len(set(labels)) < 2:
        one = f"{labels[0]!r} is the only label, and would get 100% of any image" if labels else "there are no labels"
        raise UsageError(one, "give at least two labels: --labels cat,dog")
    check_template(template)
    read_pixels(Path(image), ANY_SIZE)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) -> (N,)"""
    exponentials = np.exp(logits - logits.max())
    return cast(NDArray[np.float64], exponentials / exponentials.sum())


def search(
    encoder: Encoder, images: Path | str, text: str | None = None, top: int = 5, image: Path | None = None
) -> list[tuple[Path, float]]:
    """The images under a folder whose embeddings are closest to a text or to an image, with their cosines, best first.

    Files that are no whole images are skipped and counted, the first of them by name, those of other formats by their
    endings. What is held is a batch, the `top` so far, and the paths.
    """
    check_query(text, image, top)
    check_folder(images)
    folder, wanted = Path(images), None
    tally = Tally(str(images), max_bad_fraction=1.0)
    best: list[tuple[float, int, str]] = []
    """A heap with the worst in front: cosines, where an image was before others, and paths."""
    for paths, embeddings in _embedded(encoder, folder, tally):
        if wanted is None:  # behind the first images: what is wrong with a tower is said of one of those
            wanted = query(encoder, text, image)
        for path, cosine in zip(paths, embeddings @ wanted, strict=True):
            one = (float(cosine), -tally.good, path)
            tally.good += 1
            if len(best) < top:
                heapq.heappush(best, one)
            else:
                heapq.heappushpop(best, one)
    if not best:
        raise _no_image(folder, tally.bad)
    tally.finish()
    return [(Path(path), cosine) for cosine, _, path in sorted(best, reverse=True)]


def query(encoder: Encoder, text: str | None, image: Path | None = None) -> NDArray[np.float32]:
    """(D,): what is looked for, a text or what an image shows."""
    encoder.warn_by_chance()
    if image is not None:
        return cast(NDArray[np.float32], encoder.image_files([image])[0])
    assert text is not None
    warn_of_lost_letters(encoder.artifact, [text])
    return cast(NDArray[np.float32], encoder.texts([text])[0])


def check_query(text: str | None, image: Path | None, top: int) -> None:
    """As `check_classify`."""
    if (text is None) == (image is None):
        said = "there is nothing to look for" if text is None else f"{text!r} and --image {image} are both looked for"
        raise UsageError(said, "give a text, 'a red car', or --image FILE")
    if text is not None and not text.strip():
        raise UsageError(f"{text!r} says nothing to look for", "describe an image: 'a red car'")
    if top < 1:
        raise UsageError(f"--top {top} asks for no results", "give 1 or more")
    if image is not None:
        read_pixels(image, ANY_SIZE)


def check_folder(images: Path | str) -> None:
    """As `check_classify`."""
    if not Path(images).is_dir():
        raise UsageError(f"there is no folder {images}", "give a folder with images")
    if not any(map(_is_image, images_in(Path(images)))):
        raise _no_image(Path(images), sum(1 for _ in images_in(Path(images))))


def _is_image(path: Path) -> bool:
    try:
        read_pixels(path, ANY_SIZE)
    except (CorruptInputError, OSError):
        return False
    return True


def _no_image(folder: Path, tried: int) -> UsageError:
    return UsageError(
        f"{folder} has no image that can be read ({tried} files tried)",
        f"give a folder with files that end in {_READ}",
    )


def _embedded(encoder: Encoder, folder: Path, tally: Tally) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
    """Paths and (B, D) of the whole images under a folder in the order of their names, a batch at a time."""
    count, kinds = passed_over(folder)
    if count:
        say("search", folder.name, f"{count} images were skipped: {kinds}; read are {_READ}")
    files = sorted(map(str, images_in(folder)))
    step = 1 if encoder.prepares else BATCH  # whole photos are large
    paths: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for path in track(files, "embedding", len(files)):
        try:
            pixels.append(encoder.read(path))
            paths.append(path)
        except (CorruptInputError, UsageError, OSError) as error:
            tally.add_bad(os.path.relpath(path, folder), str(error))
        if len(pixels) == step:
            yield paths, encoder.as_read(pixels, paths)
            paths, pixels = [], []
    if pixels:
        yield paths, encoder.as_read(pixels, paths)
