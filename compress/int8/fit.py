"""Fitting INT8 to a model: every technique that can help is tried, and stays only if it lowers the measured drift.

One after the other, for each tower: SmoothQuant at several strengths, against none; the ranges of the activations, for
each Linear the method with the smallest error of its own output; the weights rounded to nearest, clipped, by GPTQ, or
by GPTQ after a refit to quantized inputs; biases corrected or not. Samples that fit and samples that judge are apart.
Judged is the distance of the tower's embeddings from its own in FP32, with all its Linears as integers for the CPU
graph; the graph for TensorRT is fitted with the same choices, since the two differ in the grid and not in the model.
Left out: trying all combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcompress.compress.int8.ranges import METHODS, Histogram, ranges_of
from mmcompress.compress.int8.rounding import (
    Factor,
    clipping_scales,
    corrected_bias,
    factor_of,
    gptq,
    nearest,
    refit_damping,
    refitted,
)
from mmcompress.compress.int8.simulate import (
    Batches,
    Feeds,
    Moments,
    as_table,
    distance,
    embedded,
    fake_quantized,
    observing,
    quantizing,
    restored,
)
from mmcompress.compress.int8.smooth import NORM_OF, smoothed, tower_factors
from mmcompress.compress.products import product
from mmcompress.config import QuantizeConfig
from mmcompress.int8 import (
    SCALE_TYPES,
    Floats,
    IntegerLinear,
    Linears,
    Range,
    Signedness,
    activation_quantizer,
    dequantize_weight,
    quantize_weight,
)
from mmcompress.model import DualEncoder
from mmcompress.progress import track

KINDS: tuple[Signedness, ...] = ("unsigned", "signed")
JUDGED: Signedness = "unsigned"
ROUNDINGS = ("nearest", "refitted")
"""What `auto` chooses between: clipped scales and GPTQ are parts of a refit."""
_TRIED_INPUTS = 1024
"""Of a Linear, evenly spaced, that the damping of a refit is chosen on."""


def modules(model: DualEncoder, tower: str) -> dict[str, nn.Linear]:
    """The Linears of one tower."""
    return {name: linear for name, linear in model.linears() if name.startswith(f"{tower}.")}


def chosen_smoothing(
    model: DualEncoder, tower: str, fitting: Batches, judging: Batches, reference: Tensor, config: QuantizeConfig
) -> tuple[DualEncoder, dict[str, Any]]:
    """The model at the strength of SmoothQuant that drifts least, possibly none, and what each one cost.

    `reference` is what the tower in float embeds of what judges, (N, D).
    """
    absmax: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        if name.rpartition(".")[2] in NORM_OF:
            largest = x.abs().amax(dim=0)
            absmax[name] = torch.maximum(absmax[name], largest) if name in absmax else largest

    with observing(model, see):
        embedded(model, tower, fitting)
    factors: dict[str, dict[str, Tensor]] = {"off": {}}
    factors |= {str(alpha): tower_factors(model, absmax, tower, alpha) for alpha in config.smooth}
    histograms = histograms_of(model, tower, fitting, factors)
    method = "percentile" if config.method == "auto" else config.method
    drifts = {}
    for strength, of_strength in factors.items():
        candidate = smoothed(model, of_strength)
        ranges = {
            name: ranges_of(histogram, method, config.percentile) for name, histogram in histograms[strength].items()
        }
        with quantizing(candidate, plain(candidate, tower, JUDGED), ranges, JUDGED):
            drifts[strength] = distance(reference, embedded(candidate, tower, judging))
    return smoothed(model, factors[_least(drifts)]), _record(drifts)


def histograms_of(
    model: DualEncoder, tower: str, batches: Batches, factors: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Histogram]]:
    """What would go into every Linear of a tower, smoothed by the factors of each strength, from one pass."""
    unsmoothed = {name: Histogram() for name in modules(model, tower)}
    histograms = {
        strength: {name: Histogram() if name in named else own for name, own in unsmoothed.items()}
        for strength, named in factors.items()
    }

    def see(name: str, x: Tensor) -> None:
        unsmoothed[name].add(x)
        for strength, named in factors.items():
            if name in named:
                histograms[strength][name].add(x / named[name])

    with observing(model, see):
        embedded(model, tower, batches)
    return histograms


def chosen_ranges(
    model: DualEncoder,
    histograms: Mapping[str, Histogram],
    inputs: Mapping[str, Tensor],
    tower: str,
    config: QuantizeConfig,
) -> tuple[dict[str, Range], dict[str, str]]:
    """For each Linear the range whose output error is smallest, over both kinds of graph; and which method it is.

    Errors are of some `inputs` (rows, in), by Linear.
    """
    names = modules(model, tower)
    methods = METHODS if config.method == "auto" else (config.method,)
    candidates = {
        name: {method: ranges_of(histograms[name], method, config.percentile) for method in methods} for name in names
    }
    if len(methods) == 1:
        return {name: by_method[methods[0]] for name, by_method in candidates.items()}, dict.fromkeys(names, methods[0])
    errors = {name: dict.fromkeys(methods, 0.0) for name in names}
    for kind in KINDS:
        for name, stored in plain(model, tower, kind).items():
            rows = inputs[name]
            weight = restored(stored).to(rows)
            exact = product(rows, names[name].weight.detach())
            for method, ends in candidates[name].items():
                entering = fake_quantized(rows, activation_quantizer(ends, kind, SCALE_TYPES[kind]))
                errors[name][method] += float((product(entering, weight) - exact).double().square().mean())
    best = {name: _least(by_method) for name, by_method in errors.items()}
    return {name: candidates[name][method] for name, method in best.items()}, best


def chosen_weights(
    model: DualEncoder,
    ranges: Mapping[str, Range],
    tower: str,
    fitting: Batches,
    judging: Batches,
    reference: Tensor,
    config: QuantizeConfig,
) -> tuple[dict[Signedness, dict[str, IntegerLinear]], dict[str, Any]]:
    """The integers and biases of a tower for each kind of graph, by the rounding and correction that drift least from
    the `reference` in float (N, D).
    """
    names = modules(model, tower)
    moments = moments_of(model, ranges, tower, fitting)

    def drift(linears: Linears) -> float:
        with quantizing(model, linears, ranges, JUDGED):
            return distance(reference, embedded(model, tower, judging))

    def corrected_all(kind: Signedness, linears: Linears) -> dict[str, IntegerLinear]:
        return {name: corrected(linears[name], linear, moments[name], kind) for name, linear in names.items()}

    roundings = ROUNDINGS if config.rounding == "auto" else (config.rounding,)
    candidates: dict[str, dict[Signedness, dict[str, IntegerLinear]]] = {
        rounding: {kind: {} for kind in KINDS} for rounding in roundings
    }
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=partial(torch.set_num_threads, 1)) as pool:
        every = pool.map(lambda name: rounded(names[name], moments[name], roundings), names)
        for name, found in zip(names, track(every, f"rounding the {tower} tower", len(names)), strict=True):
            for rounding, by_kind in found.items():
                for kind, stored in by_kind.items():
                    candidates[rounding][kind][name] = stored
    rounding_drifts = {rounding: drift(by_kind[JUDGED]) for rounding, by_kind in candidates.items()}
    rounding = _least(rounding_drifts)
    chosen = candidates[rounding]
    bias_drifts = {"off": rounding_drifts[rounding]}
    if config.bias_correction and rounding != "refitted":
        bias_drifts["corrected"] = drift(corrected_all(JUDGED, chosen[JUDGED]))
        if _least(bias_drifts) == "corrected":
            chosen = {kind: corrected_all(kind, linears) for kind, linears in chosen.items()}
    return chosen, {"rounding": _record(rounding_drifts), "bias": _record(bias_drifts)}


def moments_of(model: DualEncoder, ranges: Mapping[str, Range], tower: str, batches: Batches) -> dict[str, Moments]:
    """What the Linears of a tower get to see, and what quantizing it leaves."""
    moments = {
        name: Moments({kind: activation_quantizer(ranges[name], kind, SCALE_TYPES[kind]) for kind in KINDS})
        for name in modules(model, tower)
    }
    with observing(model, lambda name, x: moments[name].add(x)):
        embedded(model, tower, batches)
    return moments


def plain(model: DualEncoder, tower: str, kind: Signedness) -> dict[str, IntegerLinear]:
    """Every weight at its nearest step, biases as they are."""
    return {
        name: IntegerLinear(*quantize_weight(weight, kind, SCALE_TYPES[kind]), bias)
        for name, (weight, bias) in ((n, _parameters(linear)) for n, linear in modules(model, tower).items())
    }


def rounded(
    linear: nn.Linear, moments: Moments, roundings: Sequence[str]
) -> dict[str, dict[Signedness, IntegerLinear]]:
    """One Linear as integers of each kind of graph, by rounding; its bias as it is unless the weights were refitted."""
    return rounded_weight(*_parameters(linear), moments, roundings, SCALE_TYPES)


def rounded_weight(
    weight: Floats,
    bias: Floats,
    moments: Moments,
    roundings: Sequence[str],
    scale_types: Mapping[Signedness, type[np.floating[Any]]],
) -> dict[str, dict[Signedness, IntegerLinear]]:
    """(in, out), (out,) as `rounded`, for each kind with scales of a type.

    A refit and its factor serve both kinds: they differ in the noise of their inputs alone, and that of the first is
    taken for both.
    """
    results: dict[str, dict[Signedness, IntegerLinear]] = {rounding: {} for rounding in roundings}
    factor = factor_of(moments.gram) if "gptq" in roundings else None
    refit = refit_of(weight, moments) if "refitted" in roundings else None
    for kind, dtype in scale_types.items():
        if "nearest" in roundings:
            results["nearest"][kind] = IntegerLinear(*quantize_weight(weight, kind, dtype), bias)
        if {"clipped", "gptq"} & set(roundings):
            scales = clipping_scales(weight, kind, moments.power, dtype)
            if "clipped" in roundings:
                results["clipped"][kind] = IntegerLinear(nearest(weight, scales, kind), scales, bias)
            if factor is not None:
                results["gptq"][kind] = IntegerLinear(gptq(weight, scales, kind, factor), scales, bias)
        if refit is not None:
            fitted, fitted_factor = refit
            scales = clipping_scales(fitted, kind, moments.power + moments.noise, dtype)
            stored = IntegerLinear(gptq(fitted, scales, kind, fitted_factor), scales, bias)
            results["refitted"][kind] = corrected_weight(stored, weight, bias, moments, kind)
    return results


def refit_of(weight: Floats, moments: Moments) -> tuple[Floats, Factor]:
    """(in, out) -> `refitted`, by the damping that suits some of the inputs best."""
    every = -(-len(weight) // _TRIED_INPUTS)
    damping = refit_damping(weight[::every], moments.folds(every), moments.noise[::every])
    return refitted(weight, moments.covariance, moments.rows, moments.noise, damping)


def corrected(stored: IntegerLinear, linear: nn.Linear, moments: Moments, kind: Signedness) -> IntegerLinear:
    """The same integers with a bias that leaves no mean error on what was seen."""
    return corrected_weight(stored, *_parameters(linear), moments, kind)


def corrected_weight(
    stored: IntegerLinear, weight: Floats, bias: Floats, moments: Moments, kind: Signedness
) -> IntegerLinear:
    """As `corrected`, for integers of (in, out) and (out,)."""
    restored = dequantize_weight(stored.weight, stored.scales)
    return replace(stored, bias=corrected_bias(weight, bias, moments.mean, restored, moments.mean_quantized(kind)))


def drift_of_both(
    model: DualEncoder,
    judging: Feeds,
    linears: Mapping[Signedness, Linears],
    ranges: Mapping[str, Range],
    table: bool = False,
) -> dict[str, dict[str, float]]:
    """How far each kind of graph moves each tower's embeddings, with the token table in integers as well or not."""
    drifts: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for tower in ("image", "text"):
        reference = embedded(model, tower, judging.of(tower))
        for kind in KINDS:
            with quantizing(model, linears[kind], ranges, kind), as_table(model, table):
                drifts[kind][tower] = distance(reference, embedded(model, tower, judging.of(tower)))
    return drifts


def _parameters(linear: nn.Linear) -> tuple[Floats, Floats]:
    """(in, out) and (out,)."""
    return linear.weight.detach().cpu().numpy().T, linear.bias.detach().cpu().numpy()


def _least(figures: Mapping[str, float]) -> str:
    """The name with the smallest figure, the first of equal ones."""
    return min(figures, key=lambda name: figures[name])


def _record(drifts: Mapping[str, float]) -> dict[str, Any]:
    return {"chosen": _least(drifts), "drift": {name: float(f"{drift:.4g}") for name, drift in drifts.items()}}
