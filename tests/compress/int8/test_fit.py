"""The whole fit on a small encoder: what is observing, what is chosen, and that what is chosen was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import captioned, encoder

from mmcompress.compress.int8.fit import KINDS, ROUNDINGS, drift_of_both, moments_of, plain, rounded_weight
from mmcompress.compress.int8.quantize import calibrate, fit_integers
from mmcompress.compress.int8.ranges import ranges_of
from mmcompress.compress.int8.samples import feeds
from mmcompress.compress.int8.simulate import Moments, embedded, quantizing
from mmcompress.config import DataConfig, QuantizeConfig
from mmcompress.int8 import (
    SCALE_TYPES,
    IntegerLinear,
    Signedness,
    activation_quantizer,
    dequantize_weight,
    fake_quantize,
    linears_from_tensors,
    quantize_activation,
    tensors_from_linears,
)

CONFIG = QuantizeConfig(data=DataConfig(train="none"))


def test_every_linear_of_both_towers_is_seen_as_far_as_the_graphs_compute_it() -> None:
    model, pairs = encoder(depth=1), captioned(1)
    found = calibrate(model, pairs).histograms
    assert set(found) == {f"{t}.blocks.0.{part}" for t in ("image", "text") for part in ("qkv", "out", "fc1", "fc2")}
    entering: dict[str, torch.Tensor] = {}
    for name, linear in model.linears():
        linear.register_forward_pre_hook(lambda _, x, name=name: entering.__setitem__(name, x[0]))
    with torch.no_grad():
        model(pairs[0].pixels, pairs[0].tokens)
    for tower in ("image", "text"):
        assert found[f"{tower}.blocks.0.qkv"].high == entering[f"{tower}.blocks.0.qkv"].max()
        x = entering[f"{tower}.blocks.0.fc2"]
        assert x.shape[1] == 1, "of the last block, the token that is read"
        assert found[f"{tower}.blocks.0.fc2"].high == x.max()
        assert found[f"{tower}.blocks.0.fc2"].counts.sum() == x.numel()


def test_moments_equal_numpy_on_all_inputs_at_once() -> None:
    model, pairs = encoder(), captioned()
    ranges = {name: ranges_of(found, "minmax", 100) for name, found in calibrate(model, pairs).histograms.items()}
    found = moments_of(model, ranges, "image", feeds(pairs).image)["image.blocks.0.fc1"]
    seen: list[torch.Tensor] = []
    model.image.blocks[0].fc1.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    embedded(model, "image", feeds(pairs).image)
    x = torch.cat(seen).double().numpy()
    np.testing.assert_allclose(found.gram.triu(), np.triu(x.T @ x / len(x)), atol=1e-5)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), atol=1e-6)
    for kind in KINDS:
        quantizer = activation_quantizer(ranges["image.blocks.0.fc1"], kind, SCALE_TYPES[kind])
        integers = quantize_activation(x.astype(np.float32), quantizer).astype(float)
        entering = (integers - quantizer.zero_point) * float(quantizer.scale)
        np.testing.assert_allclose(found.mean_quantized(kind), entering.mean(axis=0), atol=1e-5)
        if kind == KINDS[0]:
            np.testing.assert_allclose(found.noise, np.square(entering - x).mean(axis=0), rtol=1e-2)


def test_moments_of_more_inputs_than_are_multiplied_together() -> None:
    x = torch.randn(300, 1100, generator=torch.Generator().manual_seed(0)) + 0.5
    found = Moments({"unsigned": activation_quantizer({"low": -3.0, "high": 3.0, "absmax": 3.0}, "unsigned")})
    with torch.inference_mode():
        for batch in x.split(100):
            found.add(batch)
    every = x.double().numpy()
    for _ in range(2):
        np.testing.assert_allclose(found.gram.triu(), np.triu(every.T @ every / 300), atol=1e-5)
        covariance = np.cov(every, rowvar=False, bias=True)
        np.testing.assert_allclose(found.covariance.triu(), np.triu(covariance), atol=1e-5)
        np.testing.assert_allclose(found.power, np.square(every).mean(axis=0), rtol=1e-5)
    halves = every[[*range(100), *range(200, 300)]], every[100:200]
    for (covariance, rows), half in zip(found.folds(), halves, strict=True):
        assert rows == len(half)
        np.testing.assert_allclose(covariance, np.cov(half, rowvar=False, bias=True), atol=1e-5)
    for (covariance, _), half in zip(found.folds(3), halves, strict=True):
        np.testing.assert_allclose(covariance, np.cov(half[:, ::3], rowvar=False, bias=True), atol=1e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(10.0, 1e-4), (1000.0, 1e-3), (-200.0, 1.0)])
def test_inputs_that_vary_little_about_a_large_mean_are_fitted(mean: float, deviation: float) -> None:
    """As behind a LayerNorm whose gain is small beside its bias; the covariance against numpy's in float64."""
    rng = np.random.default_rng(0)
    ends = {"low": min(mean, 0.0) - 1, "high": max(mean, 0.0) + 1, "absmax": abs(mean) + 1}
    found = Moments({kind: activation_quantizer(ends, kind) for kind in KINDS})
    x = (mean + deviation * (rng.normal(size=(400, 8)) @ rng.normal(size=(8, 96)))).astype(np.float32)
    for batch in torch.from_numpy(x).split(100):
        found.add(batch)
    exact = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    assert np.abs(found.covariance.triu().numpy() - np.triu(exact)).max() < 1e-3 * np.abs(exact).max()
    weight, bias = rng.normal(size=(96, 16)).astype(np.float32), np.zeros(16, np.float32)

    def lost(stored: IntegerLinear, kind: Signedness) -> float:
        """Mean square error of the output, of inputs as a graph quantizes them."""
        entering = fake_quantize(x, activation_quantizer(ends, kind)).astype(np.float64)
        restored = dequantize_weight(stored.weight, stored.scales).astype(np.float64)
        return float(np.square(entering @ restored + stored.bias - x.astype(np.float64) @ weight).mean())

    rounded = rounded_weight(weight, bias, found, ROUNDINGS, SCALE_TYPES)
    for kind in KINDS:
        stored, plainly = rounded["refitted"][kind], rounded["nearest"][kind]
        assert np.isfinite(stored.bias).all()
        # of a millionth nothing passes a step of the inputs: a signed weight is shrunk below float16, and bias is all
        assert np.abs(stored.weight).max() > 0 or (kind == "signed" and deviation <= 1e-6 * mean)
        assert lost(stored, kind) <= 1.001 * lost(plainly, kind)


def test_the_fit_drifts_no_more_than_plain_rounding_and_repeats_to_the_bit() -> None:
    model, pairs = encoder(), captioned(8)
    fitting, judging = feeds(pairs[::2]), feeds(pairs[1::2])
    found, again = (fit_integers(model, fitting, judging, lambda: pairs, CONFIG) for _ in range(2))
    for kind in ("signed", "unsigned"):
        first, second = (tensors_from_linears({kind: one.linears[kind]}) for one in (found, again))  # type: ignore
        assert all(np.array_equal(first[name], second[name]) for name in first)
    assert found.ranges == again.ranges and found.choices == again.choices
    drift = drift_of_both(found.model, judging, found.linears, found.ranges)["unsigned"]
    ranges = {name: ranges_of(one, "percentile", 99.99) for name, one in calibrate(model, pairs).histograms.items()}
    both = plain(model, "image", "unsigned") | plain(model, "text", "unsigned")
    before = drift_of_both(model, judging, {"signed": {}, "unsigned": both}, ranges)["unsigned"]
    for tower in ("image", "text"):
        assert 0 < drift[tower] < before[tower]
        for technique in ("smooth", "rounding", "bias"):
            record = found.choices[tower][technique]  # type: ignore[index]
            assert record["drift"][record["chosen"]] == min(record["drift"].values())


def test_quantizing_nothing_is_the_identity_and_all_of_it_is_undone() -> None:
    model, pairs = encoder(), captioned(1)
    ranges = {name: ranges_of(found, "minmax", 100) for name, found in calibrate(model, pairs).histograms.items()}
    before = embedded(model, "image", feeds(pairs).image)
    with quantizing(model, {}, ranges, "unsigned"):
        assert torch.equal(embedded(model, "image", feeds(pairs).image), before)
    with quantizing(model, plain(model, "image", "unsigned"), ranges, "unsigned"):
        assert not torch.equal(embedded(model, "image", feeds(pairs).image), before)
    assert torch.equal(embedded(model, "image", feeds(pairs).image), before)


def test_integers_survive_a_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = encoder()
    linears = plain(model, "image", "signed")
    save_file(tensors_from_linears({"signed": linears}), tmp_path / "x.safetensors")
    found = linears_from_tensors(load_file(tmp_path / "x.safetensors"), "signed")
    assert set(found) == set(linears)
    for name, linear in linears.items():
        for part in ("weight", "scales", "bias"):
            np.testing.assert_array_equal(getattr(found[name], part), getattr(linear, part))
