"""A map over its image: grey where nothing speaks for the answer, lit where something does.

Colours run from dark violet to yellow with rising lightness, so that they read in grey and by colour-blind eyes. Each
map is scaled by its own largest value: a picture says where, not how much. What speaks against the text stays dark.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmcompress.measure.retrieval import Floats

_STOPS = np.array([[24, 10, 60], [120, 28, 109], [205, 60, 75], [246, 140, 30], [250, 250, 130]], dtype=np.float32)


def lit(pixels: NDArray[np.uint8], found: Floats, side: int) -> Image.Image:
    """(S, S, 3), (cells, cells) -> an image of this side: its grey, coloured by the map."""
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    strength = np.maximum(found, 0) / max(float(found.max()), np.finfo(np.float32).tiny)
    smooth = Image.fromarray(strength.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    places = np.asarray(smooth).clip(0, 1) * (len(_STOPS) - 1)
    below = np.minimum(places.astype(int), len(_STOPS) - 2)
    part = (places - below)[..., None]
    colours = _STOPS[below] * (1 - part) + _STOPS[below + 1] * part
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.45 * grey + 0.55 * colours).astype(np.uint8))
