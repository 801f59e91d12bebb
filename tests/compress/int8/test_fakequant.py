"""Trained integers: gradients against autograd through written-out rounding, values against the simulation and ONNX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_encoder import captioned, encoder
from torch import Tensor

from mmcompress.compress.int8.fakequant import FakeQuantize, TrainedLinear, TrainedLinears
from mmcompress.compress.int8.fit import plain
from mmcompress.compress.int8.quantize import calibrate
from mmcompress.compress.int8.ranges import Range, ranges_of
from mmcompress.compress.int8.samples import feeds
from mmcompress.compress.int8.simulate import embedded, quantizing
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import graph_integers, image_graph, text_graph
from mmcompress.int8 import SCALE_TYPES, IntegerLinear, Linears, dequantize_weight
from mmcompress.model import DualEncoder
from mmcompress.tensornames import hugging_face_from_state

KINDS: Any = ("signed", "unsigned")


def fitted(model: DualEncoder, kind: Any) -> tuple[Linears, dict[str, Range]]:
    ranges = {
        name: ranges_of(found, "percentile", 99.9) for name, found in calibrate(model, captioned(2)).histograms.items()
    }
    return plain(model, "image", kind) | plain(model, "text", kind), ranges


def through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return x + (x.round() - x).detach()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_autograd_through_rounding_as_the_identity(kind: Any) -> None:
    x = torch.linspace(-4, 6, 997).requires_grad_()
    low = torch.tensor(-2.0 if kind == "unsigned" else -3.0 * 128 / 127, dtype=torch.float64, requires_grad=True)
    high = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(1, 2, 997).sin()
    (FakeQuantize.apply(x, low, high, kind, SCALE_TYPES[kind]) * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = x.grad, low.grad, high.grad
    a, b, c = (t.detach().double().requires_grad_() for t in (x, low, high))
    scale = (c - b) / 255
    steps = through(torch.clamp(a, b, c) / scale)
    restored = torch.where(a < b, b, torch.where(a > c, c, steps * scale))
    (restored * weights).sum().backward()
    assert found[0] is not None and a.grad is not None
    inside = (x > low + scale) & (x < high - scale)
    torch.testing.assert_close(found[0][inside], a.grad.float()[inside], atol=0, rtol=0)
    assert not found[0][(x < low - scale) | (x > high + scale)].any()
    # the ends lie on no step exactly, and FP16 scales round: a few values are clipped in one and not in the other
    for ours, exact in zip(found[1:], (b.grad, c.grad), strict=True):
        assert ours is not None and exact is not None
        assert float(ours) == pytest.approx(float(exact), rel=0.05)


def test_a_weights_gradient_passes_its_rounding_unchanged() -> None:
    stored = IntegerLinear(np.array([[100, -3], [5, 4]], np.int8), np.array([0.5, 0.25], np.float32), np.zeros(2))
    linear = TrainedLinear(stored, {"low": -1.0, "high": 1.0, "absmax": 1.0}, "unsigned")
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (linear.weight() * weights).sum().backward()
    (2 * linear.bias()).sum().backward()
    torch.testing.assert_close(linear.weight_moves.grad, weights * torch.tensor([[0.5], [0.25]]))
    torch.testing.assert_close(linear.bias_moves.grad, torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_it_is_the_fit_to_the_bit(kind: Any) -> None:
    model = encoder()
    linears, ranges = fitted(model, kind)
    for name, (stored, found) in TrainedLinears(linears, ranges, kind).stored().items():
        for part in ("weight", "scales", "bias"):
            np.testing.assert_array_equal(getattr(stored, part), getattr(linears[name], part))
        assert all(found[end] == ranges[name][end] for end in (["absmax"] if kind == "signed" else ["low", "high"]))


def moved(linears: Linears, ranges: dict[str, Range], kind: Any) -> TrainedLinears:
    """As training might leave it: weights off their steps, other biases, other ranges."""
    learner = TrainedLinears(linears, ranges, kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return learner


def exactly_scaled(linear: IntegerLinear) -> IntegerLinear:
    """With scales that are powers of two: products of FP16 and of FP32 are then the same."""
    return replace(linear, scales=np.exp2(np.rint(np.log2(linear.scales))).astype(linear.scales.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_equals_the_simulation_and_the_runtime(kind: Any) -> None:
    model, (pairs,) = encoder(), captioned(1)
    linears, ranges = fitted(model, kind)
    kept = frozenset({"image.blocks.1.fc2", "text.blocks.0.qkv"})
    linears = {name: exactly_scaled(linear) for name, linear in linears.items() if name not in kept}
    learner = moved(linears, ranges, kind)
    with torch.no_grad():
        found = learner.embed(model, pairs.pixels, pairs.tokens)
    stored = {name: linear for name, (linear, _) in learner.stored().items()}
    for name, (_, ends) in learner.stored().items():
        scale = float(SCALE_TYPES[kind](ends["absmax"] / 127))  # the graph below has FP32 scales, TensorRT's FP16
        ranges[name] = {**ends, "absmax": 127 * scale}
    fed = feeds([pairs])
    tensors = {n: t.numpy() for n, t in hugging_face_from_state(model.state_dict(), model.config).items()}
    numerics = Numerics(np.float32, kind, ranges, graph_integers(model.config, stored), kept)
    for ours, tower, graph in zip(found, ("image", "text"), (image_graph, text_graph), strict=True):
        exact = embedded(model, tower, fed.of(tower))
        with quantizing(model, stored, ranges, kind):
            simulated = embedded(model, tower, fed.of(tower))
        torch.testing.assert_close(ours, simulated, atol=1e-6, rtol=0)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        proto = graph(model.config, tensors, numerics, 18).SerializeToString()
        session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        inputs = fed.of(tower)[0].numpy()
        (run,) = session.run(None, {session.get_inputs()[0].name: inputs if tower == "image" else inputs.astype("i4")})
        shift = (simulated - exact).abs().mean()
        assert shift > 1e-3, "quantization must show"
        # a value on a tie may fall to the other side and travel on from there
        assert (torch.from_numpy(np.asarray(run)) - ours).abs().mean() < shift / 20


def test_one_linear_equals_the_integer_product_to_one_step() -> None:
    model = encoder()
    linears, ranges = fitted(model, "unsigned")
    learner = moved(linears, ranges, "unsigned")
    (linear, name) = learner.linears[0], learner.names[0]
    assert isinstance(linear, TrainedLinear)
    stored, _ = linear.stored()
    with torch.no_grad():
        weight = linear.weight().numpy().T
    np.testing.assert_allclose(weight, dequantize_weight(stored.weight, stored.scales), atol=1e-7)
    assert np.abs(stored.weight.astype(int) - linears[name].weight).max() >= 1, "the weights have moved"
