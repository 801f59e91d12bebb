"""The streaming histogram against numpy on all values at once, and each method against a plain search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmcompress.compress.int8.ranges import (
    BINS,
    COUNTED,
    METHODS,
    Histogram,
    entropy_reach,
    mse_range,
    percentile_reach,
    ranges_of,
)


def filled(parts: list[torch.Tensor]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_matches_numpy_to_one_bin(percentile: float) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(5000) * scale for scale in (0.1, 1.0, 3.0, 0.5)]
    histogram = filled(parts)
    exact = np.percentile(torch.cat(parts).abs().numpy(), percentile, method="inverted_cdf")
    found = histogram.limit * percentile_reach(histogram.magnitudes(), percentile)
    assert found == pytest.approx(exact, abs=3 * histogram.limit * 2 / BINS)


def test_extremes_are_exact_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(100) * s for s in (0.01, 5.0, 1.0)]
    forward, backward = filled(parts), filled(parts[::-1])
    for histogram in (forward, backward):
        assert histogram.low == torch.cat(parts).min() and histogram.high == torch.cat(parts).max()
        assert histogram.counts.sum() == 300
    assert ranges_of(forward, "minmax", 100) == ranges_of(backward, "minmax", 100)


@pytest.mark.parametrize("channels", [6, 64, 96])
def test_of_a_large_tensor_every_channel_is_counted_as_often(channels: int) -> None:
    x = torch.zeros(6 * COUNTED // channels, channels)
    for channel in range(channels):
        x[:, channel] = channel + 1
    histogram = filled([x])
    held = histogram.counts[histogram.counts > 0]
    assert len(held) == channels and 0.5 * COUNTED < held.sum() < 2 * COUNTED
    assert held.max() - held.min() < 0.01 * held.mean()


def test_memory_does_not_grow_with_samples() -> None:
    histogram = filled([torch.randn(10) for _ in range(500)])
    assert histogram.counts.numel() == BINS


def test_ranges_hold_zero_and_follow_the_method() -> None:
    positive = filled([torch.linspace(1, 2, 1000)])
    assert ranges_of(positive, "minmax", 100) == {"low": 0.0, "high": 2.0, "absmax": 2.0}
    spiky = filled([torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([50.0])])])
    assert ranges_of(spiky, "minmax", 100)["absmax"] == 50
    assert ranges_of(spiky, "percentile", 99.99)["absmax"] == pytest.approx(1.0, abs=0.02)
    for method in METHODS:
        assert ranges_of(filled([torch.zeros(8)]), method, 99.99) == {"low": 0.0, "high": 0.0, "absmax": 0.0}
        assert ranges_of(spiky, method, 99.99)["high"] <= 50


def divergence_by_loops(counts: list[float], cut: int, levels: int) -> float:
    """Migacz 2017, slide 33, bin by bin."""
    reference = counts[:cut]
    reference[-1] += sum(counts[cut:])
    total, spread = sum(reference), [0.0] * cut
    for level in range(levels):
        own = range(level * cut // levels, (level + 1) * cut // levels)
        held = [i for i in own if counts[i] > 0]
        for i in held:
            spread[i] = sum(counts[j] for j in own) / len(held)
    if any(p > 0 and not q for p, q in zip(reference, spread, strict=True)):
        return math.inf
    pairs = [(p / total, q / sum(spread)) for p, q in zip(reference, spread, strict=True) if p > 0]
    return sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize("seed", range(4))
def test_entropy_cuts_where_a_search_bin_by_bin_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.abs(np.concatenate([rng.normal(size=20_000), rng.normal(size=40) * 6]))
    counts = np.histogram(values, 512, (0, values.max()))[0].astype(np.float64)
    cuts = list(range(128, 513, 8))
    found = [divergence_by_loops(list(counts), cut, 128) for cut in cuts]
    assert entropy_reach(counts) == cuts[int(np.argmin(found))] / 512
    assert entropy_reach(counts) < 1, "outliers are cut off"


@pytest.mark.parametrize("kind", ["gauss", "gelu", "outliers"])
def test_mse_range_is_as_good_as_a_search_over_the_values_themselves(kind: str) -> None:
    torch.manual_seed(0)
    values = torch.randn(30_000)
    if kind == "gelu":
        values = torch.nn.functional.gelu(2 * values)
    elif kind == "outliers":
        values[:20] *= 30
    x = values.double().numpy()
    found = mse_range(filled([values]))

    def error(low: float, high: float, levels: int) -> float:
        step = (high - low) / levels
        bottom = round(low / step)
        return float(((np.clip(np.round(x / step), bottom, bottom + levels) * step - x) ** 2).mean())

    shares = np.linspace(0.01, 1, 120)
    reach = np.abs(x).max()
    best = min(error(-r, r, 254) for r in reach * shares)
    assert error(-found["absmax"], found["absmax"], 254) <= 1.03 * best
    low, high = min(x.min(), 0), x.max()
    best = min(error(low * a, high * b, 255) for a in shares[19::20] for b in shares)
    assert error(found["low"], found["high"], 255) <= 1.05 * best
    assert best < 1.001 * error(low, high, 255), "never worse than covering everything"
