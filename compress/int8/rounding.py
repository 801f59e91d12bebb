"""Integer weights and biases fitted to what a Linear gets to see: numpy in and out, torch's factorizations inside.

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

A tower of true size has Linears of 3,072 inputs, where all this is most of `quantize`. So matrices of moments, which
are symmetric and positive, are factorized by Cholesky, and what is only tried is tried on some of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcompress.errors import finite
from mmcompress.int8 import SCALE_TYPES, WEIGHT_LIMIT, Floats, Signedness, weight_scales

PAIR_LIMIT = 128
"""Largest sum of two neighbouring weights of one sign: 128 * 255 fits into 16 bits."""
BELOW = PAIR_LIMIT - 2**-10  # rounding noise must not lift a pair over the limit
REFIT_DAMPINGS = (0.001, 0.01, 0.1, 1.0)
"""Of a refit, in mean variances of an input times inputs per row."""
_TRIED_OUTPUTS = 128
"""Output channels, evenly spaced, that a damping is chosen on."""
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
_AT_A_TIME = 64
"""Output channels whose scales are searched together."""
_FINER = (0.05, 0.025)
"""Shares of the scale that covers every weight, and the steps around the best of them."""
_FEW = 8
"""Inputs that are rounded one after the other, without a matrix product between."""
Real = NDArray[np.float64]
Moment = NDArray[Any] | Tensor
"""A mean over the rows that a Linear reads, or a matrix of them."""
Factor = Tensor
"""(in, in) upper triangular, float32; see `factor_of`."""


def nearest(weight: Floats, scales: Floats, kind: Signedness) -> NDArray[np.int8]:
    """(in, out), (out,) -> int8 (in, out): each weight at its nearest step, pairs within their limit."""
    integers: NDArray[np.int8] = allowed(_double(weight) / _double(scales), kind).round_().to(torch.int8).numpy()
    return integers


def allowed(steps: Tensor, kind: Signedness) -> Tensor:
    """(in, out) -> (in, out): the closest that a file of this kind may hold before rounding."""
    steps = steps.clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
    if kind == "signed":
        return steps
    even = len(steps) // 2 * 2
    first, second = steps[0:even:2], steps[1:even:2]
    excess = (first.abs() + second.abs() - BELOW).clamp_(min=0).mul_(first * second > 0).div_(2)
    first -= first.sign() * excess
    second -= second.sign() * excess
    return steps


def clipping_scales(
    weight: Floats, kind: Signedness, power: Floats, dtype: type[np.floating[Any]] | None = None
) -> Floats:
    """(in, out) and the mean square of each input (in,) -> (out,): scales with the least output error.

    They are of the type that our own graphs of this kind multiply them in, unless another is given.

    The error of a channel is sum_j E[x_j^2] (w_j - q_j s)^2, which takes inputs as uncorrelated. Candidates are shares
    of the scale that covers every weight: first some that are far apart, then those around a channel's best.
    """
    starts = range(0, weight.shape[1], _AT_A_TIME)
    parts = [_clipping_scales(weight[:, i : i + _AT_A_TIME], kind, power, dtype or SCALE_TYPES[kind]) for i in starts]
    found: Floats = np.concatenate(parts)
    return found


def _clipping_scales(weight: Floats, kind: Signedness, power: Floats, dtype: type[np.floating[Any]]) -> Floats:
    """As `clipping_scales`, for a few channels: what is tried with them stays in the CPU's cache."""
    widest = weight_scales(weight, kind, dtype)
    exact, powers = _single(weight), _single(power)

    def scales_of(shares: Real) -> Floats:
        scales: Floats = np.maximum((widest * shares).astype(widest.dtype), np.finfo(widest.dtype).smallest_normal)
        return scales

    def errors(shares: Real) -> Real:
        scales = _single(scales_of(shares))
        lost = allowed(exact / scales, kind).round_().mul_(scales).sub_(exact)
        found: Real = (powers @ lost.square_()).double().numpy()
        return found

    best = np.ones(len(widest))
    least = errors(best)

    def attempt(shares: Real) -> None:
        nonlocal best, least
        found = errors(shares)
        best, least = np.where(found < least, shares, best), np.minimum(found, least)

    for share in _SHARES:
        attempt(np.full(len(widest), share))
    for step in _FINER:
        around = best
        for shares in (around - step, around + step):
            attempt(np.clip(shares, _SHARES[-1], 1))
    return scales_of(best)


def refitted(
    weight: Floats, covariance: Moment, rows: int, noise: Moment, damping: float
) -> tuple[NDArray[np.float32], Factor]:
    """(in, out), covariance (in, in) of the inputs x, read on and above the diagonal, over so many rows, (in,) mean
    square of the noise n that quantizing puts on x -> (in, out): weights W' with the smallest error of (x + n) W'
    against x W, biases aside; and the factor of the covariance of x + n, for `gptq`.

    W' = (C + D)^-1 C W, with the noise in D: a Wiener filter, which is ridge regression with a penalty that is known.
    What few rows did not show must not be taken for noise, so C gets a multiple of the identity, `damping`; of infinite
    damping W stays as it is. Li et al. 2025, "GPTAQ", also fit to quantized inputs, with a matrix of moments between x
    and x + n that is not kept here. Weights of zero stay zero.
    """
    exact, penalty, power = _single(weight), _single(noise), _single(covariance).clone()
    shift = 0.0 if damping == math.inf else _shift(power, rows, damping)
    power.diagonal().add_(penalty)
    if damping == math.inf:
        return exact.numpy(), factor_of(power)
    upper = factor_of(power, shift)
    inner = torch.linalg.solve_triangular(upper, penalty[:, None] * exact, upper=True)
    lost = torch.linalg.solve_triangular(upper.T, inner, upper=False)
    return (exact - lost).masked_fill_(exact == 0, 0).numpy(), upper


def refit_damping(weight: Floats, folds: Sequence[tuple[Moment, int]], noise: Moment) -> float:
    """The damping of `refitted` with the smallest error on the fold that a solution has not seen, tried on some of the
    outputs; infinite where W itself has, or where there is one fold only.

    Errors fall to the best damping and rise behind it, so those on one side of the middle are not tried.
    """
    if len(folds) < 2:
        return math.inf
    tried, penalty = _single(weight[:, :: -(-weight.shape[1] // _TRIED_OUTPUTS)]), _single(noise)
    (first, rows), (second, _) = folds
    seen, unseen = _single(first), _single(second)

    @cache
    def error(damping: float) -> float:
        lost = torch.zeros_like(tried) if damping == math.inf else _filtered_out(tried, seen, rows, penalty, damping)
        return float((lost * (unseen @ lost)).sum() + penalty @ (tried - lost).square_().sum(dim=1))

    low, high = len(REFIT_DAMPINGS) // 2 - 1, len(REFIT_DAMPINGS) // 2
    side = REFIT_DAMPINGS[:high] if error(REFIT_DAMPINGS[low]) < error(REFIT_DAMPINGS[high]) else REFIT_DAMPINGS[high:]
    return min((math.inf, *side), key=error)


def _filtered_out(weight: Tensor, covariance: Tensor, rows: int, noise: Tensor, damping: float) -> Tensor:
    """(in, out): W - (C + D)^-1 C W = (C + D)^-1 D W, with C damped in proportion to inputs per row."""
    power = covariance.clone()
    power.diagonal().add_(noise + _shift(covariance, rows, damping))
    return torch.cholesky_solve(noise[:, None] * weight, _cholesky(power))


def _shift(covariance: Tensor, rows: int, damping: float) -> float:
    return damping * (float(covariance.trace()) / rows or 1.0)


def factor_of(gram: Moment, shift: float | None = None) -> Factor:
    """(in, in) mean of x x^T, read on and above the diagonal -> upper triangular R (in, in), with R R^T the Gram
    matrix, its diagonal raised by `shift`: a hundredth of its mean if not given (Frantar et al. 2023, section 3.3)."""
    backwards = _single(gram).flip(0, 1)
    mean = float(backwards.diagonal().mean()) or 1.0
    backwards.diagonal().add_(0.01 * mean if shift is None else shift)
    factor: Factor = _cholesky(backwards).flip(0, 1)
    return factor


def _cholesky(matrix: Tensor) -> Tensor:
    """(n, n) positive, read on and below the diagonal -> lower triangular (n, n), float32. Moments are sums in float32
    of thousands of rows, so its digits are all that they have. Where these do not suffice, the diagonal is raised by as
    much as they leave open, and by ten times that, until they do.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    raised = torch.finfo(torch.float32).eps * (finite(float(matrix.diagonal().abs().max()), "a moment") or 1.0)
    while failed:
        exact = matrix.double()
        exact.diagonal().add_(raised)
        factor, failed = torch.linalg.cholesky_ex(exact)
        raised *= 10
    lower: Tensor = factor.float()
    return lower


def gptq(weight: Floats, scales: Floats, kind: Signedness, factor: Factor) -> NDArray[np.int8]:
    """(in, out), (out,), `factor_of` the inputs -> int8 (in, out) with a small error of the output x @ weight.

    The result of Frantar et al. 2023, algorithm 1, found from the front of the Gram matrix instead of its inverse (Chen
    et al. 2025, "The Geometry of LLM Quantization": it is Babai's nearest plane). The error of the output is
    |R^T (w - q)|, whose row i reads no later input: so q_i rounds w_i + sum_k<i R[k, i] / R[i, i] (w_k - q_k). A half
    tells the other half of its errors once it is done, and so on down to a few inputs, so that nearly all of it is
    matrix products. A weight of zero stays zero, so that 2:4 does.
    """
    zero = weight == 0
    exact = (weight / scales.astype(np.float64)).astype(np.float32, order="C")
    steps = exact.copy()
    told = factor / factor.diagonal()
    carried: NDArray[np.float32] = told.numpy()
    integers, lost = np.empty_like(steps), np.empty_like(steps)
    ahead, behind = torch.from_numpy(steps), torch.from_numpy(lost)

    def settle(start: int, end: int) -> None:
        if end - start > _FEW:
            middle = start + (end - start) // 4 * 2  # even, as pairs settle together
            settle(start, middle)
            ahead[middle:end].addmm_(told[start:middle, middle:end].T, behind[start:middle])
            settle(middle, end)
            return
        for i in range(start, end):
            integers[i] = np.where(zero[i], 0, _rounded(steps, integers, i, kind))
            lost[i] = exact[i] - integers[i]
            steps[i + 1 : end] += np.outer(carried[i, i + 1 : end], lost[i])

    settle(0, len(steps))
    rounded: NDArray[np.int8] = integers.astype(np.int8)
    return rounded


def _rounded(steps: Floats, integers: Floats, i: int, kind: Signedness) -> Floats:
    """(out,): the integers of input i; the second of a pair takes what the first has left."""
    if kind == "signed" or (i % 2 == 0 and i + 1 == len(steps)):
        rounded: Floats = np.rint(np.clip(steps[i], -WEIGHT_LIMIT, WEIGHT_LIMIT))
    elif i % 2 == 0:
        rounded = np.rint(allowed(torch.from_numpy(steps[i : i + 2]), kind)[0].numpy())
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


def _double(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64))


def _single(values: NDArray[Any] | Tensor) -> Tensor:
    """Shares memory with a tensor of that type."""
    return values.float() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
