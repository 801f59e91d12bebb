"""`mmcompress explain`: which parts of an image a model's answer to a text rests on, for several models side by side.

A float checkpoint is asked through the gradients of its attention (`relevance.py`, torch), anything else by hiding
parts of the image (`occlusion.py`), which works on what is delivered: INT8 graphs, engines, convolutional towers. Maps
of two methods cannot be compared, so all models of one picture are asked in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmcompress.artifact import Artifact
from mmcompress.config import Backend
from mmcompress.data.preprocess import normalize
from mmcompress.errors import UsageError
from mmcompress.measure.explain.occlusion import occlusion
from mmcompress.measure.retrieval import Floats
from mmcompress.runtime.encoder import Encoder
from mmcompress.runtime.frames import ANY_SIZE, read_pixels
from mmcompress.runtime.tokenize import load_tokenizer, text_processing, tokenize

Method = Literal["relevance", "occlusion"]
Asked = Callable[[NDArray[np.uint8], str], tuple[float, Floats]]
"""(S, S, 3) as the model sees it, and a text -> their cosine, and a map (cells, cells) of what adds to it."""


@dataclass(frozen=True)
class Explanation:
    """What one model makes of an image and a text."""

    name: str
    cosine: float
    pixels: NDArray[np.uint8]
    """(S, S, 3) as the model sees it."""
    map: Floats
    """(cells, cells): what each part adds to the cosine; below 0 where it speaks against the text."""


METHODS = get_args(Method)


def says_nothing(found: Floats) -> bool:
    """Whether a map (cells, cells) is the same everywhere, so that it points at no cell."""
    return bool(found.min() == found.max())


def check_asked(image: Path, text: str) -> None:
    """Raise for what cannot be answered, whatever the model is, before one is converted for it."""
    if not text.strip():
        raise UsageError(f"{text!r} says nothing to look for", "describe what is in the image: 'a red car'")
    read_pixels(image, ANY_SIZE)


def explained(
    models: Mapping[str, Artifact], image: Path, text: str, method: Method, backend: Backend | None = None
) -> list[Explanation]:
    """Each model's map of one image file, by what it is called."""
    rows = []
    for name, model in models.items():
        with asking(model, method, backend) as asked:
            pixels = read_pixels(image, model.image_processing)
            cosine, found = asked(pixels, text)
            rows.append(Explanation(name, cosine, pixels, found))
    return rows


@contextmanager
def asking(model: Artifact, method: Method, backend: Backend | None = None) -> Iterator[Asked]:
    """A model that is opened once and asked many times."""
    if method == "relevance":
        yield _through_gradients(model)
        return
    with Encoder.open(model, backend) as encoder:
        encoder.warn_by_chance()

        def asked(pixels: NDArray[np.uint8], text: str) -> tuple[float, Floats]:
            return occlusion(encoder.pixels, pixels, encoder.texts([text])[0])

        yield asked


def _through_gradients(model: Artifact) -> Asked:
    import torch

    from mmcompress.huggingface import dual_encoder_from_checkpoint
    from mmcompress.measure.explain.relevance import relevance
    from mmcompress.model import ImageTower

    model.model.transformer_image("relevance", "say --method occlusion")
    towers, rule = dual_encoder_from_checkpoint(model.path, model.model), model.image_processing
    image = towers.image
    assert isinstance(image, ImageTower)
    processing = text_processing(model)
    tokenizer = load_tokenizer(model.file(processing.file))

    def asked(pixels: NDArray[np.uint8], text: str) -> tuple[float, Floats]:
        images = torch.from_numpy(normalize(pixels[None], rule))
        with torch.no_grad():
            texts = towers.encode_text(torch.from_numpy(tokenize(tokenizer, [text], processing)))
        cosine, found = relevance(image, images, texts)
        return float(cosine[0]), found[0].numpy()

    return asked
