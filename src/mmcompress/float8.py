"""The arithmetic of FP8, in the format E4M3 without infinities: the scales of tensors, and weights in 8 bits.

E4M3 has 4 bits of exponent and 3 of mantissa and ends at 448 (Micikevicius et al. 2022, "FP8 Formats for Deep
Learning", table 1). A real value r stands for f as r = S f, with S so that the largest value becomes 448: weights with
one scale per output channel, activations with one per tensor, from the same calibrated range as INT8 (`int8.py`). What
INT8 needs beside that (rounding fitted to data, corrected biases) is left out: FP8 rounds relative to each value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import require
from mmcompress.int8 import Floats

LARGEST = 448
"""Of E4M3."""


def float8() -> Any:
    """E4M3 as a numpy type."""
    return require("ml_dtypes", "compress").float8_e4m3fn


def activation_scale(absmax: float, dtype: type[np.floating[Any]]) -> np.floating[Any]:
    """S of a tensor in [-absmax, absmax]; a tensor that is always 0 gets 1."""
    scale = dtype(abs(absmax) / LARGEST) if absmax else dtype(1)
    return max(scale, np.finfo(dtype).smallest_normal)


def quantize_weight(weight: Floats, dtype: type[np.floating[Any]]) -> tuple[NDArray[Any], Floats]:
    """(in, out) -> E4M3 (in, out) and the scales (out,); an all-zero channel gets 1."""
    reach = np.abs(weight).max(axis=0).astype(np.float32)
    scales: Floats = np.where(reach > 0, reach / np.float32(LARGEST), np.float32(1)).astype(dtype)
    scales = np.maximum(scales, np.finfo(dtype).smallest_normal)
    steps = np.clip(weight.astype(np.float32) / scales.astype(np.float32), -LARGEST, LARGEST)
    return steps.astype(float8()), scales
