"""Fitting INT8 to the products of a graph: the techniques of `fit.py`, as far as a graph shows what they need.

Ranges come from histograms of what every product reads, and are chosen by the error of its output, convolutions
included. GPTQ, the refit and corrected biases need the moments of a product's inputs, which only Linears over the
channels have in a size that can be held: other convolutions are rounded to nearest, with clipped scales where the
Linears beside them get these or better, and their biases are corrected by what their outputs miss in the mean (Nagel et
al. 2019, equation 17, on samples). Judged is what the whole graph embeds with all its products as integers.

Left out: SmoothQuant, which needs to know which norm stands before a Linear, and cross-layer equalisation, as a scale
per channel already holds what BatchNorm leaves uneven in the weights (Q60).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcompress.compress.int8.fit import JUDGED, KINDS, ROUNDINGS, corrected_weight, rounded_weight
from mmcompress.compress.int8.graphtower import Feeds, GraphTower, computed, paired, plain, rows_of, unpaired
from mmcompress.compress.int8.ranges import METHODS, NOTHING, Histogram, ranges_of, widened
from mmcompress.compress.int8.rounding import clipping_scales, nearest
from mmcompress.compress.int8.simulate import Moments, distance, fake_quantized
from mmcompress.config import FitConfig
from mmcompress.export.integers import OUTPUT
from mmcompress.export.products import Product
from mmcompress.export.sums import ends_of
from mmcompress.int8 import IntegerLinear, Linears, Range, Signedness, activation_quantizer, dequantize_weight
from mmcompress.progress import track

_COMPARED = 2
"""Inputs of a batch that the methods of a range are compared on."""
_CORRECTED = 64
"""Inputs in all that the biases of convolutions are corrected by."""
_ROWS = 4096
"""Rows of a batch that moments are taken of."""
_MOMENTS_BYTES = 1 << 28
"""Of the moments that are held at a time."""


@dataclass(frozen=True)
class FittedTower:
    """Everything that one tower needs to become INT8."""

    ranges: Mapping[str, Range]
    linears: Mapping[Signedness, Linears]
    choices: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What calibration saw of a tower."""

    histograms: Mapping[str, Histogram]
    """By tensor, of what products read."""
    powers: Mapping[str, np.ndarray[Any, Any]]
    """By tensor, mean square of each channel, of what convolutions read."""
    outputs: Mapping[str, Range]
    """By `NAME.output`, of what convolutions give."""


def fit_tower(
    tower: GraphTower,
    samples: Iterable[Feeds],
    fitting: Sequence[Feeds],
    judging: Sequence[Feeds],
    config: FitConfig,
    given: Mapping[str, Range] | None = None,
) -> FittedTower:
    """Calibrate and round one tower, each technique where it lowers the drift; ranges are found unless `given`."""
    seen = calibrated(tower, samples)
    if given is not None:
        linears, chosen = chosen_weights(tower, seen, given, fitting, judging, config)
        return FittedTower(given, linears, chosen)
    ranges, methods = chosen_ranges(tower, seen, fitting, config)
    linears, chosen = chosen_weights(tower, seen, ranges, fitting, judging, config)
    return FittedTower({**ranges, **seen.outputs}, linears, {"ranges": methods, **chosen})


def calibrated(tower: GraphTower, samples: Iterable[Feeds]) -> Seen:
    """One pass over the samples."""
    histograms = {name: Histogram() for name in tower.by_input}
    convolved = {product.input for product in tower.products if product.op == "Conv"}
    given = {tower.output_of(product): f"{product.name}.{OUTPUT}" for product in tower.products if product.op == "Conv"}
    if tower.sums:
        ends = {one.name: tower.model.graph.node[one.node].output[0] for one in ends_of(tower.model, tower.products)}
        given = {ends.get(name.removesuffix(f".{OUTPUT}"), x): name for x, name in given.items()}
    outputs: dict[str, Range] = {}
    sums: dict[str, tuple[np.ndarray[Any, Any], int]] = {}

    def see(name: str, x: Tensor) -> None:
        if name in histograms:
            histograms[name].add(x)
        if name in given:
            outputs[given[name]] = widened(outputs.get(given[name], NOTHING), x)
        if name in convolved:
            total, count = sums.get(name, (0, 0))
            sums[name] = total + x.square().sum(dim=(0, 2, 3), dtype=torch.float64).numpy(), count + x[:, 0].numel()

    tower.show([*dict.fromkeys([*histograms, *given])], samples, see)
    return Seen(histograms, {name: total / count for name, (total, count) in sums.items()}, outputs)


def chosen_ranges(
    tower: GraphTower, seen: Seen, fitting: Sequence[Feeds], config: FitConfig
) -> tuple[dict[str, Range], dict[str, str]]:
    """For each product the range whose output error is smallest, over both kinds of graph; and which method it is.

    Products that read one tensor share a range, as they share its integers.
    """
    methods = METHODS if config.method == "auto" else (config.method,)
    candidates = {
        name: {method: ranges_of(histogram, method, config.percentile) for method in methods}
        for name, histogram in seen.histograms.items()
    }
    best = dict.fromkeys(candidates, methods[0])
    if len(methods) > 1:
        errors = _output_errors(tower, candidates, fitting)
        best = {name: min(by_method, key=by_method.__getitem__) for name, by_method in errors.items()}
    named = {product.name: product.input for product in tower.products}
    return (
        {name: candidates[x][best[x]] for name, x in named.items()},
        {name: best[x] for name, x in named.items()},
    )


def _output_errors(
    tower: GraphTower, candidates: Mapping[str, Mapping[str, Range]], fitting: Sequence[Feeds]
) -> dict[str, dict[str, float]]:
    """By tensor and method: relative square error of what reads it, of a few inputs of each batch."""
    errors = {name: dict.fromkeys(methods, 0.0) for name, methods in candidates.items()}
    readers = tower.by_input

    def see(name: str, x: Tensor) -> None:
        for product in readers[name]:
            node, (weight, bias) = tower.model.graph.node[product.node], tower.parameters[product.name]
            exact = computed(product, node, x, weight)
            power = float(exact.double().square().mean()) or 1.0
            for kind in KINDS:
                stored = plain(product, weight, bias, kind)
                restored = dequantize_weight(stored.weight, stored.scales)
                for method, ends in candidates[name].items():
                    entering = fake_quantized(x, activation_quantizer(ends, kind))
                    error = computed(product, node, entering, restored) - exact
                    errors[name][method] += float(error.double().square().mean()) / power

    tower.show(list(candidates), [_first(fitting, _COMPARED)], see)
    return errors


def _first(batches: Sequence[Feeds], count: int) -> Feeds:
    """The first inputs of each batch, as one batch."""
    return {name: np.concatenate([feeds[name][:count] for feeds in batches]) for name in batches[0]}


def chosen_weights(
    tower: GraphTower,
    seen: Seen,
    ranges: Mapping[str, Range],
    fitting: Sequence[Feeds],
    judging: Sequence[Feeds],
    config: FitConfig,
) -> tuple[dict[Signedness, Linears], dict[str, Any]]:
    """The integers and biases for each kind of graph, by the rounding and correction that drift least."""
    reference = tower.embedded(tower.model, judging)

    def drift(linears: Linears) -> float:
        return distance(reference, tower.embedded(tower.quantized(linears, ranges, JUDGED), judging))

    roundings = ROUNDINGS if config.rounding == "auto" else (config.rounding,)
    candidates = rounded_all(tower, seen, ranges, fitting, JUDGED, roundings)
    drifts = {rounding: drift(candidates[rounding, False]) for rounding in roundings}
    rounding = min(drifts, key=drifts.__getitem__)
    possible = rounding != "refitted" or any(product.bias and not product.linear for product in tower.products)
    correcting = (False, True) if config.bias_correction and possible else (False,)
    biases = {correct: drifts[rounding] if not correct else drift(candidates[rounding, True]) for correct in correcting}
    correct = min(biases, key=biases.__getitem__)
    linears: dict[Signedness, Linears] = {
        kind: (candidates if kind == JUDGED else rounded_all(tower, seen, ranges, fitting, kind, (rounding,)))[
            rounding, correct
        ]
        for kind in KINDS
    }
    told = {"corrected" if name else "off": _figure(value) for name, value in biases.items()}
    return linears, {
        "rounding": {"chosen": rounding, "drift": {name: _figure(value) for name, value in drifts.items()}},
        "bias": {"chosen": "corrected" if correct else "off", "drift": told},
    }


def _figure(value: float) -> float:
    return float(f"{value:.4g}")


def rounded_all(
    tower: GraphTower,
    seen: Seen,
    ranges: Mapping[str, Range],
    fitting: Sequence[Feeds],
    kind: Signedness,
    roundings: Sequence[str],
) -> dict[tuple[str, bool], dict[str, IntegerLinear]]:
    """Every product by rounding, and by whether its bias is corrected.

    A refit needs a bias, without one it is GPTQ; it makes its own, so only convolutions beside it are corrected then.
    """
    results: dict[tuple[str, bool], dict[str, IntegerLinear]] = {
        (rounding, correct): {} for rounding in roundings for correct in (False, True)
    }
    for rounding in roundings:
        convolved = {
            product.name: _convolution(tower, product, seen, kind, rounding)
            for product in tower.products
            if not product.linear
        }
        results[rounding, False] |= convolved
        results[rounding, True] |= convolved | _corrected(tower, convolved, ranges, fitting, kind)
    groups = list(_groups(tower))
    for group in track(groups, f"rounding the {tower.name} tower", len(groups)):
        moments = _moments_of(tower, group, ranges, fitting, kind)
        for product in (product for name in group for product in tower.by_input[name] if product.linear):
            weight, bias = tower.parameters[product.name]
            possible = {r: "gptq" if r == "refitted" and product.bias is None else r for r in roundings}
            found = rounded_weight(weight, bias, moments[product.input], list(possible.values()), {kind: np.float32})
            for rounding in roundings:
                stored = found[possible[rounding]][kind]
                results[rounding, False][product.name] = stored
                if product.bias and rounding != "refitted":
                    stored = corrected_weight(stored, weight, bias, moments[product.input], kind)
                results[rounding, True][product.name] = stored
    return results


def _convolution(tower: GraphTower, product: Product, seen: Seen, kind: Signedness, rounding: str) -> IntegerLinear:
    """A convolution whose outputs read several places: at its nearest steps, of scales that may clip."""
    weight, bias = tower.parameters[product.name]
    if rounding == "nearest":
        return plain(product, weight, bias, kind)
    channels = seen.powers[product.input].reshape(product.groups, -1).mean(axis=0)
    power = np.tile(channels, len(weight) // len(channels))[:, None]
    weight = paired(product, weight)
    scales = clipping_scales(weight, kind, paired(product, power)[:, 0], np.float32)
    return IntegerLinear(unpaired(product, nearest(weight, scales, kind)), scales, bias)


def _corrected(
    tower: GraphTower, stored: Linears, ranges: Mapping[str, Range], fitting: Sequence[Feeds], kind: Signedness
) -> dict[str, IntegerLinear]:
    """Those of the convolutions that have a bias, with what their outputs miss in the mean added to it."""
    missed: dict[str, list[Tensor]] = {}
    readers = {
        name: [product for product in products if product.name in stored and product.bias]
        for name, products in tower.by_input.items()
    }

    def see(name: str, x: Tensor) -> None:
        for product in readers[name]:
            node, (weight, _) = tower.model.graph.node[product.node], tower.parameters[product.name]
            restored = dequantize_weight(stored[product.name].weight, stored[product.name].scales)
            entering = fake_quantized(x, activation_quantizer(ranges[product.name], kind))
            error = computed(product, node, x, weight) - computed(product, node, entering, restored)
            missed.setdefault(product.name, []).append(error.double().mean((2, 3)))

    some = _first(fitting, max(1, _CORRECTED // len(fitting)))
    tower.show([name for name, products in readers.items() if products], [some], see)
    return {
        name: replace(stored[name], bias=(stored[name].bias + torch.cat(parts).mean(0).numpy()).astype(np.float32))
        for name, parts in missed.items()
    }


def _groups(tower: GraphTower) -> Iterator[list[str]]:
    """Tensors that Linears read, as many at a time as their moments fit into memory."""
    group: list[str] = []
    held = 0
    for name, products in tower.by_input.items():
        linears = [product for product in products if product.linear]
        if not linears:
            continue
        size = 3 * 8 * linears[0].size[0] ** 2  # two folds, and one product on the way
        if group and held + size > _MOMENTS_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _moments_of(
    tower: GraphTower, group: Sequence[str], ranges: Mapping[str, Range], fitting: Sequence[Feeds], kind: Signedness
) -> dict[str, Moments]:
    """Of some tensors, over the batches, which alternate between the two folds."""
    first = {name: next(product for product in tower.by_input[name] if product.linear) for name in group}
    moments = {
        name: Moments({kind: activation_quantizer(ranges[product.name], kind)}) for name, product in first.items()
    }
    held: dict[str, list[Tensor]] = {name: [] for name in group}

    def see(name: str, x: Tensor) -> None:
        rows = rows_of(first[name], x)
        held[name].append(rows[:: max(1, len(rows) * _batch(fitting) // (_ROWS * len(x)))].clone())

    def seen() -> None:
        for name, parts in held.items():
            moments[name].add(torch.cat(parts))
            parts.clear()

    tower.show(group, fitting, see, seen)
    return moments


def _batch(batches: Sequence[Feeds]) -> int:
    return len(next(iter(batches[0].values())))
