"""SmoothQuant must leave the FP32 function alone, and even the channels out."""

from __future__ import annotations

import pytest
import torch
from tiny_encoder import captioned, encoder

from mmcompress.compress.int8.fit import histograms_of
from mmcompress.compress.int8.samples import feeds
from mmcompress.compress.int8.smooth import smoothed, smoothing_factors, tower_factors


def test_factors_follow_the_paper() -> None:
    """Xiao et al. 2023, eq. 4; figure 5's example has alpha 0.5: sqrt(16 / 1) and sqrt(1 / 4) for two channels."""
    found = smoothing_factors(torch.tensor([16.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 4.0, 2.0, 0.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([4.0, 0.5, 1.0, 1.0]))


@pytest.mark.parametrize("alpha", [0.25, 0.75])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_function_stays_and_the_outlier_shrinks(tower: str, alpha: float) -> None:
    model, (batch, *_) = encoder(), captioned(1)
    with torch.no_grad():
        norm = model.get_submodule(f"{tower}.blocks.0.norm1")
        assert isinstance(norm.weight, torch.Tensor)
        norm.weight[5] *= 40
    entering: dict[str, torch.Tensor] = {}
    for name, linear in model.linears():
        linear.register_forward_pre_hook(lambda _, x, name=name: entering.__setitem__(name, x[0].flatten(0, 1)))
    with torch.no_grad():
        before = model(batch.pixels, batch.tokens)
        absmax = {name: x.abs().amax(dim=0) for name, x in entering.items()}
        found = smoothed(model, tower_factors(model, absmax, tower, alpha))
        after = found(batch.pixels, batch.tokens)
    for expected, embedding in zip(before, after, strict=True):
        torch.testing.assert_close(embedding, expected, atol=2e-5, rtol=0)
    assert entering[f"{tower}.blocks.0.qkv"].abs().max() < 0.7 * absmax[f"{tower}.blocks.0.qkv"].max()
    weights = [model.get_submodule(f"{tower}.blocks.0.qkv").weight, found.get_submodule(f"{tower}.blocks.0.qkv").weight]
    assert not torch.equal(*weights)  # type: ignore[arg-type]


def test_one_pass_shows_what_enters_each_smoothed_model() -> None:
    model, pairs = encoder(), captioned(2)
    factors: dict[str, dict[str, torch.Tensor]] = {"off": {}}
    for alpha in (0.25, 0.75):
        absmax = {name: torch.full((linear.in_features,), 2.0) for name, linear in model.linears()}
        factors[str(alpha)] = tower_factors(model, absmax, "image", alpha)
    found = histograms_of(model, "image", feeds(pairs).image, factors)
    for strength, of_strength in factors.items():
        candidate = smoothed(model, of_strength)
        assert (candidate is model) == (strength == "off")
        expected = histograms_of(candidate, "image", feeds(pairs).image, {"off": {}})["off"]
        for name, histogram in expected.items():
            assert abs(found[strength][name].high - histogram.high) < 1e-4 * (histogram.high - histogram.low)
            assert abs(found[strength][name].low - histogram.low) < 1e-4 * (histogram.high - histogram.low)
            moved = (found[strength][name].counts - histogram.counts).abs().sum() / histogram.counts.sum()
            assert moved < 0.02, "but for values at the edge of a bin"
