"""Integer weights and biases fitted to what a Linear gets to see, in numpy alone.

Rounding each weight to its nearest step is best for the weight, not for the output: inputs are correlated, so the error
of one weight can be cancelled by the next (Frantar et al. 2023, "GPTQ"). Inputs are rounded as well, and a weight that
reads little but the noise of that is better small, so weights may be refitted to noisy inputs before. Scales may clip
the rarest weights for a finer step, by the same output-minded measure. What is left as a mean error of an output
channel goes into its bias (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2, with the means taken from data).

All of it needs moments of the inputs, never the inputs. For unsigned activations two neighbours of one sign stay within
128 in sum, since older x86 CPUs add their products in 16 bits (see `quantize.weight_scales`). There the widest weight
sets the scale and only the few pairs that pass the limit give way, instead of a wider step for all of them. Left out:
GPTQ's order by activation, which would tear the pairs apart, and learned rounding (AdaRound), which needs gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.int8 import SCALE_TYPES, WEIGHT_LIMIT, Floats, Signedness, weight_scales

PAIR_LIMIT = 128
"""Largest sum of two neighbouring weights of one sign: 128 * 255 fits into 16 bits."""
BELOW = PAIR_LIMIT - 2**-10  # rounding noise must not lift a pair over the limit
REFIT_DAMPINGS = (0.001, 0.01, 0.1, 1.0)
"""Of a refit, in mean variances of an input times inputs per row."""
_SHARES = np.linspace(1, 0.5, 21)
_BLOCK = 128
Real = NDArray[np.float64]


def nearest(weight: Floats, scales: Floats, kind: Signedness) -> NDArray[np.int8]:
    """(in, out), (out,) -> int8 (in, out): each weight at its nearest step, pairs within their limit."""
    return np.rint(allowed(weight.astype(np.float64) / scales.astype(np.float64), kind)).astype(np.int8)


def allowed(steps: Real, kind: Signedness) -> Real:
    """(in, out) -> (in, out): the closest that a file of this kind may hold before rounding."""
    steps = np.clip(steps, -WEIGHT_LIMIT, WEIGHT_LIMIT)
    if kind == "signed":
        return steps
    even = len(steps) // 2 * 2
    first, second = steps[0:even:2], steps[1:even:2]
    excess = np.where(first * second > 0, np.maximum(np.abs(first) + np.abs(second) - BELOW, 0), 0) / 2
    steps[0:even:2] = first - np.sign(first) * excess
    steps[1:even:2] = second - np.sign(second) * excess
    return steps


def clipping_scales(
    weight: Floats, kind: Signedness, power: Floats, dtype: type[np.floating[Any]] | None = None
) -> Floats:
    """(in, out) and the mean square of each input (in,) -> (out,): scales with the least output error.

    They are of the type that our own graphs of this kind multiply them in, unless another is given.

    The error of a channel is sum_j E[x_j^2] (w_j - q_j s)^2, which takes inputs as uncorrelated. Candidates are shares
    of the scale that covers every weight.
    """
    widest = weight_scales(weight, kind, dtype or SCALE_TYPES[kind])
    best = widest
    least = np.full(len(widest), np.inf)
    for share in _SHARES:
        scales = np.maximum((widest * share).astype(widest.dtype), np.finfo(widest.dtype).smallest_normal)
        error = power.astype(np.float64) @ (nearest(weight, scales, kind) * scales.astype(np.float64) - weight) ** 2
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    best_scales: Floats = best
    return best_scales


def refitted(weight: Floats, folds: Sequence[tuple[Real, int]], noise: Real) -> Real:
    """(in, out), covariances (in, in) of the inputs x with their number of rows, (in,) mean square of the noise n that
    quantizing puts on x -> (in, out): weights W' with the smallest error of (x + n) W' against x W, biases aside.

    W' = (C + D)^-1 C W, with the noise in D: a Wiener filter, which is ridge regression with a penalty that is known.
    What few rows did not show must not be taken for noise, so C gets a multiple of the identity; how large, is tried on
    the fold that a solution has not seen, and W itself is tried as well. Li et al. 2025, "GPTAQ", also fit to quantized
    inputs, with a matrix of moments between x and x + n that is not kept here. Weights of zero stay zero.
    """
    exact: Real = weight.astype(np.float64)
    if len(folds) < 2:
        return exact

    def error(weights: Real, covariance: Real) -> float:
        lost = exact - weights
        return float((lost * (covariance @ lost)).sum() + noise @ (weights**2).sum(axis=1))

    def unseen(damping: float) -> float:
        pairs = zip(folds, reversed(folds), strict=True)
        return sum(error(_wiener(exact, *seen, noise, damping), other) for seen, (other, _) in pairs)

    errors = {damping: unseen(damping) for damping in REFIT_DAMPINGS}
    best = min(errors, key=lambda damping: errors[damping])
    if errors[best] >= sum(error(exact, covariance) for covariance, _ in folds):
        return exact
    rows = [rows for _, rows in folds]
    pooled = np.average([covariance for covariance, _ in folds], axis=0, weights=rows)
    fitted: Real = np.where(weight == 0, 0.0, _wiener(exact, pooled, sum(rows), noise, best))
    return fitted


def _wiener(weight: Real, covariance: Real, rows: int, noise: Real, damping: float) -> Real:
    """(C + D)^-1 C W, with C damped in proportion to inputs per row."""
    known = covariance + damping * (covariance.trace() / rows or 1.0) * np.eye(len(covariance))
    return np.asarray(np.linalg.solve(known + np.diag(noise), known @ weight), np.float64)


def gptq(weight: Floats, scales: Floats, kind: Signedness, gram: Real, damping: float = 0.01) -> NDArray[np.int8]:
    """(in, out), (out,), (in, in) sum of x x^T -> int8 (in, out) with a small error of the output x @ weight.

    Frantar et al. 2023, algorithm 1: with U^T U the inverse of the damped Gram matrix, round input by input, and
    subtract U[i, i+1:] (w_i - q_i) / U[i, i] from the inputs that are still to come; in blocks, so that most of it is
    one matrix product. A weight of zero stays zero, so that 2:4 sparsity does.
    """
    zero = weight == 0
    steps = weight.astype(np.float64) / scales.astype(np.float64)
    inputs = len(steps)
    mean = gram.diagonal().mean() or 1.0
    upper = np.linalg.cholesky(np.linalg.inv(gram + damping * mean * np.eye(inputs))).T
    integers = np.empty(steps.shape, np.float64)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.empty((end - start, steps.shape[1]))
        for i in range(start, end):
            integers[i] = np.where(zero[i], 0, _rounded(steps, integers, i, kind))
            errors[i - start] = (steps[i] - integers[i]) / upper[i, i]
            steps[i + 1 : end] -= np.outer(upper[i, i + 1 : end], errors[i - start])
        steps[end:] -= upper[start:end, end:].T @ errors
    return integers.astype(np.int8)


def _rounded(steps: Real, integers: Real, i: int, kind: Signedness) -> Real:
    """(out,): the integers of input i; the second of a pair takes what the first has left."""
    if kind == "signed" or (i % 2 == 0 and i + 1 == len(steps)):
        rounded: Real = np.rint(np.clip(steps[i], -WEIGHT_LIMIT, WEIGHT_LIMIT))
    elif i % 2 == 0:
        rounded = np.rint(allowed(steps[i : i + 2].copy(), kind)[0])
    else:
        high = np.minimum(WEIGHT_LIMIT, PAIR_LIMIT - np.maximum(integers[i - 1], 0))
        low = np.maximum(-WEIGHT_LIMIT, -PAIR_LIMIT - np.minimum(integers[i - 1], 0))
        rounded = np.clip(np.rint(steps[i]), low, high)
    return rounded


def corrected_bias(
    weight: Floats, bias: Floats, mean: Floats, restored: Floats, mean_quantized: Floats
) -> NDArray[np.float32]:
    """(in, out), (out,), (in,), (in, out), (in,) -> (out,): the bias that leaves no mean error of the output.

    b + E[x] W - E[x'] W' (Nagel et al. 2019, eq. 17, for weights and activations at once).
    """
    shift: NDArray[Any] = mean @ weight.astype(np.float64) - mean_quantized @ restored.astype(np.float64)
    corrected: NDArray[np.float32] = (bias + shift).astype(np.float32)
    return corrected
