"""The range that an activation's 256 levels cover: streaming histograms, and four methods that read one.

Every Linear input keeps one histogram over [-r, r]; when a batch exceeds r, r doubles and neighbouring bins merge, so
the counts stay exact, only their resolution falls, and memory does not grow with the samples. A wider range clips
less and rounds more coarsely; the methods differ in where they stop (Wu et al. 2020, "Integer Quantization for Deep
Learning Inference", section 4.2):

- `minmax` covers everything that was seen.
- `percentile` leaves out the rarest magnitudes.
- `entropy` loses the least information in the sense of Kullback and Leibler (Migacz 2017, "8-bit Inference with
  TensorRT"). Its one cut of the magnitudes serves both ends.
- `mse` has the smallest mean squared error, clipping included, under the very rounding that the runtime does. Signed
  and unsigned ranges are searched apart, and of an unsigned one both ends.

A range is a dict, as `ranges.json` holds it: `absmax` for the signed quantizer, `low` and `high` for the unsigned one.
It is of the input of a Linear, `image.blocks.0.fc1`, or of one of the four operands of the two attention products,
`image.blocks.0.attention.query`. Those are always min-max: clipping them by their own squared error doubled the drift
of the demo's image tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcompress.errors import finite
from mmcompress.int8 import ActivationQuantizer, Range, fake_quantize, signed_from_absmax, unsigned_from_range

BINS = 8192
COUNTED = 1 << 18
"""Values of one tensor up to which all are counted; of a larger one about as many, evenly spaced, and its extremes."""
METHODS = ("minmax", "percentile", "entropy", "mse")
Counts = NDArray[np.float64]
NOTHING: Range = {"low": 0.0, "high": 0.0, "absmax": 0.0}
"""The range before anything was seen."""
_ENTROPY_BINS = 2048
_ENTROPY_LEVELS = 128
_ENTROPY_STRIDE = 8
_SHARES = np.linspace(1, 0.02, 50)
"""Shares of the seen range that the search for the smallest error tries."""


class Histogram:
    """Streaming histogram of a tensor's values over [-limit, limit], with the exact extremes beside it."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, values: Tensor) -> None:
        channels = values.shape[-1] if values.ndim else 1
        values = values.detach().float().flatten()
        low, high = (finite(v.item(), "an activation") for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        if self.limit:
            every = max(1, len(values) // COUNTED)
            while math.gcd(every, channels) > 1:  # of all channels, and not of some of them only
                every += 1
            some = values[::every]
            self.counts += torch.histc(some, BINS, -self.limit, self.limit).double().cpu()

    def _reach(self, magnitude: float) -> None:
        if not self.limit:
            self.limit = magnitude
        while self.limit < magnitude:
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 * 3] = merged
            self.limit *= 2

    def magnitudes(self) -> Counts:
        """(BINS / 2,) counts of |x| over [0, limit]."""
        folded: Counts = (self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)).numpy()
        return folded

    def values(self) -> tuple[NDArray[np.float32], Counts]:
        """The middles of the bins that hold something, and how many values each holds."""
        counts: Counts = self.counts.numpy()
        middles = (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit
        held = counts > 0
        return np.clip(middles[held], self.low, self.high).astype(np.float32), counts[held]


def widened(known: Range, values: Tensor) -> Range:
    """The range that covers values of any shape as well."""
    low, high = (v.item() for v in torch.aminmax(values.detach()))
    low, high = min(known["low"], low), max(known["high"], high)
    return {"low": low, "high": high, "absmax": max(-low, high)}


def ranges_of(histogram: Histogram, method: str, percentile: float) -> Range:
    """`low`, `high` and `absmax` of the values to represent; low <= 0 <= high, as a zero must stay a zero."""
    reach = max(-histogram.low, histogram.high, 0.0)
    if not histogram.limit or method == "minmax":
        return _clipped(histogram, reach)
    if method == "mse":
        return mse_range(histogram)
    cut = percentile_reach if method == "percentile" else lambda counts, _: entropy_reach(counts)
    return _clipped(histogram, min(reach, histogram.limit * cut(histogram.magnitudes(), percentile)))


def _clipped(histogram: Histogram, reach: float) -> Range:
    low, high = max(min(histogram.low, 0.0), -reach), min(max(histogram.high, 0.0), reach)
    return {"low": low, "high": high, "absmax": reach}


def percentile_reach(counts: Counts, percentile: float) -> float:
    """(N,) counts of magnitudes -> the smallest share of their axis that covers `percentile` percent, to one bin."""
    covered = counts.cumsum() / counts.sum()
    return (min(int(np.searchsorted(covered, percentile / 100)), len(counts) - 1) + 1) / len(counts)


def entropy_reach(counts: Counts) -> float:
    """(N,) counts of magnitudes -> the share of their axis with the least KL divergence (Migacz 2017, slides 25-33).

    P is what lies below the cut, with everything above in its last bin; Q is P without that, in 128 levels, each spread
    over the bins that hold something. An empty last bin that takes outliers makes the divergence infinite, and the cut
    is no candidate.
    """
    counts = counts.reshape(_ENTROPY_BINS, -1).sum(axis=1) if len(counts) > _ENTROPY_BINS else counts
    cuts = np.arange(_ENTROPY_LEVELS, len(counts) + 1, _ENTROPY_STRIDE)
    if cuts[-1] != len(counts):
        cuts = np.append(cuts, len(counts))
    divergences = [_divergence(counts, int(cut)) for cut in cuts]
    return float(cuts[int(np.argmin(divergences))]) / len(counts)


def _divergence(counts: Counts, cut: int) -> float:
    """KL(P || Q) in nats, for the first `cut` bins."""
    below = counts[:cut]
    reference = below.copy()
    reference[-1] += counts[cut:].sum()
    starts = np.arange(_ENTROPY_LEVELS) * cut // _ENTROPY_LEVELS
    held = np.maximum(np.add.reduceat((below > 0).astype(np.float64), starts), 1)
    level = np.add.reduceat(below, starts) / held
    spread = np.where(below > 0, np.repeat(level, np.diff(np.append(starts, cut))), 0)
    seen = reference > 0
    if not spread.any() or (spread[seen] == 0).any():
        return float("inf")
    p, q = reference[seen] / reference.sum(), spread[seen] / spread.sum()
    return float((p * np.log(p / q)).sum())


def mse_range(histogram: Histogram) -> Range:
    """The ranges with the smallest mean squared error over the histogram, among 50 shares of what was seen."""
    values, counts = histogram.values()
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(quantizer: ActivationQuantizer) -> float:
        return float((counts * (fake_quantize(values, quantizer) - values).astype(np.float64) ** 2).sum())

    absmax = _best(max(-low, high), lambda end: error(signed_from_absmax(end)))
    found_high = _best(high, lambda end: error(unsigned_from_range(low, end)))
    found_low = _best(low, lambda end: error(unsigned_from_range(end, found_high)))
    return {"low": found_low, "high": found_high, "absmax": absmax}


def _best(end: float, error: Callable[[float], float]) -> float:
    """The share of `end` with the smallest error; the widest of equal ones."""
    if not end:
        return 0.0
    ends: NDArray[Any] = end * _SHARES
    return float(ends[int(np.argmin([error(float(e)) for e in ends]))])
