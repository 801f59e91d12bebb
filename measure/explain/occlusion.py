"""Occlusion: what a model's answer loses where a part of the image is hidden (Zeiler and Fergus 2014, section 4.2).

It asks nothing of a model but its answers, so it works on delivered graphs and engines, in INT8 as in FP32, whatever
their towers are made of. What is hidden is not painted over but blurred (Fong and Vedaldi 2017, "Interpretable
Explanations of Black Boxes"): a grey square on an empty background is an object of its own. It costs `PASSES` images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mmcompress.measure.retrieval import Floats

CELLS = 8
"""Of a map, a side."""
WINDOW = 2
"""Cells a side that are hidden together."""
_PLACES = [(row, column) for row in range(CELLS - WINDOW + 1) for column in range(CELLS - WINDOW + 1)]
PASSES = len(_PLACES) + 1
"""Images that a map takes through the model."""


def occlusion(
    embed: Callable[[NDArray[np.uint8]], Floats], pixels: NDArray[np.uint8], text: Floats
) -> tuple[float, Floats]:
    """(S, S, 3) as the model sees it, (D,) -> their cosine, and (CELLS, CELLS) what it loses while a cell is hidden.

    `embed` takes (B, S, S, 3) to (B, D) of unit norm.
    """
    hidden = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(pixels.shape[0] / CELLS)))
    edges = np.linspace(0, pixels.shape[0], CELLS + 1).round().astype(int)
    shown = np.repeat(pixels[None], PASSES, axis=0)
    for image, (row, column) in zip(shown[1:], _PLACES, strict=True):
        part = (slice(edges[row], edges[row + WINDOW]), slice(edges[column], edges[column + WINDOW]))
        image[part] = hidden[part]
    whole, *others = embed(shown) @ text
    lost, times = np.zeros((2, CELLS, CELLS), dtype=np.float32)
    for score, (row, column) in zip(others, _PLACES, strict=True):
        part = (slice(row, row + WINDOW), slice(column, column + WINDOW))
        lost[part] += whole - score
        times[part] += 1
    return float(whole), lost / times
