"""The streaming histogram against numpy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmcompress.architecture import DualEncoderConfig
from mmcompress.compress.calibrate import BINS, Histogram, calibrate, ranges_of
from mmcompress.model import DualEncoder, initialize


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
    assert histogram.magnitude(percentile) == pytest.approx(exact, abs=3 * histogram.limit * 2 / BINS)


def test_extremes_are_exact_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(100) * s for s in (0.01, 5.0, 1.0)]
    forward, backward = filled(parts), filled(parts[::-1])
    for histogram in (forward, backward):
        assert histogram.low == torch.cat(parts).min() and histogram.high == torch.cat(parts).max()
        assert histogram.counts.sum() == 300
    assert ranges_of(forward, "minmax", 100) == ranges_of(backward, "minmax", 100)


def test_memory_does_not_grow_with_samples() -> None:
    histogram = filled([torch.randn(10) for _ in range(500)])
    assert histogram.counts.numel() == BINS


def test_ranges_hold_zero_and_follow_the_method() -> None:
    positive = filled([torch.linspace(1, 2, 1000)])
    assert ranges_of(positive, "minmax", 100) == {"low": 0.0, "high": 2.0, "absmax": 2.0}
    spiky = filled([torch.cat([torch.linspace(-1, 1, 100_000), torch.tensor([50.0])])])
    assert ranges_of(spiky, "minmax", 100)["absmax"] == 50
    assert ranges_of(spiky, "percentile", 99.99)["absmax"] == pytest.approx(1.0, abs=0.02)
    assert ranges_of(filled([torch.zeros(8)]), "percentile", 99.99) == {"low": 0.0, "high": 0.0, "absmax": 0.0}


def test_every_linear_of_both_towers_is_seen() -> None:
    tower = {"width": 32, "head_dim": 16, "heads": (2,), "mlp": (64,)}
    config = DualEncoderConfig.model_validate(
        {
            "embed_dim": 16,
            "image": {**tower, "image_size": 16, "patch": 8},
            "text": {**tower, "vocab": 20, "context": 6, "eos_token_id": 19},
        }
    )
    model = initialize(DualEncoder(config), 0)
    samples = [(torch.randn(2, 3, 16, 16), torch.randint(0, 20, (3, 6)))]
    found = calibrate(model, samples, torch.device("cpu"))
    expected = {f"{t}.blocks.0.{part}" for t in ("image", "text") for part in ("qkv", "out", "fc1", "fc2")}
    assert set(found) == expected
    with torch.no_grad():
        entering = model.image.norm_pre(
            torch.cat([model.image.class_token.expand(2, 1, -1), model.image.patch(samples[0][0]).flatten(2).mT], 1)
            + model.image.positions
        )
        normed = model.image.blocks[0].norm1(entering)
    assert found["image.blocks.0.qkv"].high == normed.max() and found["image.blocks.0.qkv"].low == normed.min()
