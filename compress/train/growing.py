"""Images that grow while a model is trained: at half the side a step costs a third or less, and teaches nearly as much.

Progressive resizing, as in Tan and Le 2021 ("EfficientNetV2", section 4) without its growing augmentation. The side
grows patch by patch, in equal parts of the first steps, from a half to the whole; positions are interpolated between
those of the whole image (`ImageTower`), which therefore are learned from the first step on. The last steps see whole
images, as the model will. Which side a step sees is a function of the step, so a resumed run sees the same.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from mmcompress.architecture import ImageConfig


def sides(config: ImageConfig) -> list[int]:
    """Sides of the images in the order that they are shown in, in pixels: multiples of a patch, and the whole last."""
    whole, patch = config.image_size, config.patch
    smallest = math.ceil(whole / 2 / patch) * patch
    return [*range(smallest, whole - patch + 1, patch), whole]


def grown(pixels: Tensor, config: ImageConfig, done: float, growing: float) -> Tensor:
    """(B, 3, S, S) -> (B, 3, s, s), what a step sees when so much of the training is done.

    `growing` is the share of the steps that see smaller images, 0 for none.
    """
    if done >= growing:
        return pixels
    *smaller, _ = sides(config)
    side = smaller[int(done / growing * len(smaller))] if smaller else config.image_size
    if side == pixels.shape[-1]:
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
