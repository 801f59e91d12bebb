"""Fitted integers: against plain rounding, against the output error they are meant to lower, within 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmcompress.compress.int8.rounding import (
    PAIR_LIMIT,
    clipping_scales,
    corrected_bias,
    factor_of,
    gptq,
    nearest,
    refit_damping,
    refitted,
)
from mmcompress.int8 import SCALE_TYPES, dequantize_weight, quantize_weight, weight_scales

Floats = np.ndarray[Any, np.dtype[np.float64]]
KINDS = ("signed", "unsigned")


def weight_of(inputs: int = 48, outputs: int = 32, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Heavy tails, so that clipping has something to do."""
    return np.random.default_rng(seed).standard_t(4, (inputs, outputs)).astype(np.float32)


def inputs_of(inputs: int = 48, rows: int = 2000, seed: int = 1) -> Floats:
    """Correlated, with a mean, as what follows a GELU is."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 8)) @ rng.normal(size=(8, inputs)) + 0.3 * rng.normal(size=(rows, inputs)) + 0.2


def output_error(x: Floats, weight: Any, integers: Any, scales: Any) -> float:
    return float(((x @ (dequantize_weight(integers, scales).astype(np.float64) - weight)) ** 2).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [48, 47])
def test_gptq_on_uncorrelated_inputs_is_plain_rounding(kind: Any, inputs: int) -> None:
    weight = weight_of(inputs)
    scales = weight_scales(weight, kind)
    np.testing.assert_array_equal(gptq(weight, scales, kind, factor_of(np.eye(inputs))), nearest(weight, scales, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_to_nearest_with_the_covering_scale_is_quantize_weight(kind: Any) -> None:
    weight = weight_of()
    integers, scales = quantize_weight(weight, kind)
    np.testing.assert_array_equal(nearest(weight, scales, kind), integers)


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_and_clipping_lower_the_output_error(kind: Any) -> None:
    weight, x = weight_of(300), inputs_of(300)
    integers, covering = quantize_weight(weight, kind, SCALE_TYPES[kind])
    plain = output_error(x, weight, integers, covering)
    power = (x**2).mean(axis=0)
    scales = clipping_scales(weight, kind, power)
    assert (scales <= covering).all()
    independent = np.random.default_rng(3).normal(size=(4000, 300)) * np.sqrt(power)
    clipped = output_error(independent, weight, nearest(weight, scales, kind), scales)
    assert clipped <= 1.001 * output_error(independent, weight, integers, covering)
    assert kind == "signed" or (scales < covering).any(), "pairs give way instead of the step"
    fitted = gptq(weight, scales, kind, factor_of(x.T @ x / len(x)))
    assert output_error(x, weight, fitted, scales) < 0.5 * plain


def test_gptq_equals_the_algorithm_without_blocks() -> None:
    """Frantar et al. 2023, algorithm 1 with a block of one, written with the inverse Hessian updated in each step."""
    weight, x = weight_of(200, 16), inputs_of(200)
    gram = x.T @ x / len(x)
    scales = weight_scales(weight, "signed")
    steps = weight / scales.astype(np.float64)
    inverse = np.linalg.inv(gram + 0.01 * gram.diagonal().mean() * np.eye(200))
    expected = np.empty(steps.shape)
    for i in range(200):
        expected[i] = np.clip(np.rint(steps[i]), -127, 127)
        error = (steps[i] - expected[i]) / inverse[i, i]
        steps -= np.outer(inverse[:, i], error)
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    found = gptq(weight, scales, "signed", factor_of(gram))
    assert (found != expected).mean() < 1e-3 and np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("inputs", [64, 63])
@pytest.mark.parametrize("fitted", [False, True])
def test_pairs_stay_within_16_bits_however_far_the_scale_clips(inputs: int, fitted: bool) -> None:
    weight, x = weight_of(inputs, 128), inputs_of(inputs)
    scales = weight_scales(weight, "signed") * np.float32(0.4)
    gram = x.T @ x / len(x)
    found = (
        gptq(weight, scales, "unsigned", factor_of(gram)) if fitted else nearest(weight, scales, "unsigned")
    ).astype(int)
    assert np.abs(found).max() <= 127
    first, second = found[: inputs // 2 * 2 : 2], found[1 : inputs // 2 * 2 : 2]
    sums = np.abs(first + second)[first * second > 0]
    assert sums.max() == PAIR_LIMIT and PAIR_LIMIT * 255 < 2**15


def test_a_channel_of_zeros_and_inputs_that_never_fire_are_no_trouble() -> None:
    weight = weight_of()
    weight[:, 3] = 0
    for gram in (np.zeros((48, 48)), np.diag([0.0] * 24 + [1.0] * 24)):
        for kind in KINDS:
            scales = clipping_scales(weight, kind, gram.diagonal())
            assert np.isfinite(scales).all() and not gptq(weight, scales, kind, factor_of(gram))[:, 3].any()


def test_bias_correction_removes_the_mean_error() -> None:
    weight, x = weight_of(), inputs_of()
    bias = np.random.default_rng(2).normal(size=32).astype(np.float32)
    restored = dequantize_weight(*quantize_weight(weight, "signed"))
    clipped = np.clip(x, -1.0, 1.0)
    corrected = corrected_bias(weight, bias, x.mean(axis=0), restored, clipped.mean(axis=0))
    exact = x @ weight + bias
    assert np.abs((clipped @ restored + bias - exact).mean(axis=0)).max() > 0.05
    np.testing.assert_allclose((clipped @ restored + corrected - exact).mean(axis=0), 0, atol=1e-5)


def folds_of(x: Floats) -> list[tuple[Floats, int]]:
    return [(np.cov(half, rowvar=False, bias=True), len(half)) for half in (x[::2], x[1::2])]


def refit(weight: Floats, folds: list[tuple[Floats, int]], noise: Floats) -> Floats:
    rows = sum(rows for _, rows in folds)
    covariance = sum((covariance * (own / rows) for covariance, own in folds), np.zeros(()))
    return refitted(weight, covariance, rows, noise, refit_damping(weight, folds, noise))[0]


def test_a_refit_without_noise_changes_nothing() -> None:
    weight = weight_of()
    np.testing.assert_allclose(refit(weight, folds_of(inputs_of()), np.zeros(48)), weight, rtol=1e-6)
    np.testing.assert_array_equal(refit(weight, folds_of(inputs_of())[:1], np.ones(48)), weight)


def test_a_refit_is_the_least_squares_fit_to_noisy_inputs() -> None:
    """Against numpy's lstsq on the noisy inputs themselves; noise as rounding makes it, uniform within a step."""
    weight, x, step = weight_of(), inputs_of(rows=100_000), 1.5
    noisy = x + np.random.default_rng(5).uniform(-step / 2, step / 2, x.shape)
    found = refit(weight, folds_of(x), np.full(48, step**2 / 12))
    centred = noisy - noisy.mean(axis=0), (x - x.mean(axis=0)) @ weight
    expected = np.linalg.lstsq(*centred)[0]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()

    def lost(fitted: Any) -> float:
        return float(((centred[0] @ fitted - centred[1]) ** 2).mean())

    assert lost(found) < 1.001 * lost(expected) < 0.5 * lost(weight)


@pytest.mark.parametrize("rows", [20, 60, 200, 2000])
def test_few_rows_are_not_taken_for_all_there_is(rows: int) -> None:
    """On inputs that it has not seen a refit is no worse than the weights it started from."""
    weight, step, x = weight_of(), 0.5, inputs_of(rows=50_000)
    unseen = np.cov(x[2000:], rowvar=False, bias=True)
    found = refit(weight, folds_of(x[:rows]), np.full(48, step**2 / 12))
    moved = found - weight
    lost = float((moved * (unseen @ moved)).sum() + step**2 / 12 * (found**2).sum())
    assert lost <= step**2 / 12 * float((weight.astype(float) ** 2).sum()) * 1.001


def test_a_refit_keeps_zeros() -> None:
    weight = weight_of()
    weight[::3] = 0
    assert not refit(weight, folds_of(inputs_of()), np.full(48, 0.1))[::3].any()
