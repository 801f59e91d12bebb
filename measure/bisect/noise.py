"""Signal and noise of a module: what was measured, and what 8 bits have to make there. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmcompress.export.graph import Array
from mmcompress.int8 import Signedness, fake_quantize, signed_from_absmax, unsigned_from_range

FLOOR = 1e-7
"""Noise to signal (70 dB) that a module in floating point may have: what half precision makes of one tensor."""
LIMIT_DB = 200.0
"""Stands for no noise at all, and with a minus for noise without bounds, since JSON has no infinity."""
RANGES = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Parts of the full range of a tensor among which the best is the one that 8 bits are measured by."""
PRODUCT_ROWS = 256
"""Rows of a batch that the product is computed for."""


@dataclass
class Sums:
    """Signal and noise of one tensor or module, over all samples so far."""

    signal: float = 0.0
    noise: float = 0.0
    cosines: float = 0.0
    rows: int = 0

    def add(self, reference: Array, other: Array) -> None:
        """(R, F), (R, F)"""
        a, b = reference.astype(np.float64), other.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            noise = float(((b - a) ** 2).sum())
            norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
            cosines = np.where(norms > 0, (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny), 1.0)
        self.signal += float((a * a).sum())
        self.noise += noise if math.isfinite(noise) else math.inf
        self.cosines += float(np.nan_to_num(cosines, nan=0.0, posinf=0.0, neginf=0.0).sum())
        self.rows += len(a)

    @property
    def ratio(self) -> float:
        """Noise to signal."""
        return self.noise / self.signal if self.signal else math.inf if self.noise else 0.0

    @property
    def cosine(self) -> float:
        return self.cosines / self.rows if self.rows else 1.0


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within the limits that stand for infinity."""
    if not noise or math.isinf(signal):
        return LIMIT_DB
    return max(-LIMIT_DB, min(LIMIT_DB, 10 * math.log10(signal / noise))) if signal and noise < math.inf else -LIMIT_DB


def rows_of(tensor: Array, mask: NDArray[np.bool_] | None) -> Array:
    """(N, D), (N, T, W) or (N, H, T, d) -> a row for each token (R, F), of those that the mask (N, T) names."""
    if tensor.ndim == 4:
        tensor = np.moveaxis(tensor, 2, 1)
    if mask is not None and tensor.ndim > 2 and tensor.shape[1] == mask.shape[1]:
        tensor = tensor[mask]
        return tensor.reshape(len(tensor), -1)
    tokens = tensor.shape[0] * (tensor.shape[1] if tensor.ndim > 2 else 1)
    return tensor.reshape(tokens, -1)


def needed_noise(inputs: Array, weight: Array, fitted: Array, kind: Signedness) -> float:
    """(R, in), (in, out) and the same from integers -> energy of the error that 8 bits make of the product.

    The range of the inputs is the part of their full range that leaves the least error, as a calibration would choose.
    The products are those of some of the rows.
    """
    low, high = float(min(inputs.min(), 0)), float(max(inputs.max(), 0))
    tried = []
    for part in RANGES:
        signed = kind == "signed"
        quantizer = (
            signed_from_absmax(max(-low, high) * part) if signed else unsigned_from_range(low * part, high * part)
        )
        tried.append(fake_quantize(inputs, quantizer))
    best = min(tried, key=lambda quantized: float(((quantized - inputs) ** 2).sum()))
    every = -(-len(inputs) // PRODUCT_ROWS)
    error = (best[::every] @ fitted - inputs[::every] @ weight).astype(np.float64)
    return float((error**2).sum() * len(inputs) / len(error))
