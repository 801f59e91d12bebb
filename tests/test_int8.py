"""Our quantization arithmetic against ONNX Runtime's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompress import int8 as q


def runtime_round_trip(
    values: np.ndarray[Any, Any], scale: Any, zero_point: Any, axis: int = 1
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Integers and restored values, as ONNX Runtime computes them without fusing anything."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
    ]
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
    integers = {np.dtype(np.int8): TensorProto.INT8, np.dtype(np.uint8): TensorProto.UINT8}
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [helper.make_tensor_value_info("x", kinds[values.dtype], values.shape)],
        [
            helper.make_tensor_value_info("q", integers[np.asarray(zero_point).dtype], values.shape),
            helper.make_tensor_value_info("y", kinds[values.dtype], values.shape),
        ],
        [numpy_helper.from_array(np.asarray(scale), "s"), numpy_helper.from_array(np.asarray(zero_point), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    integers_found, restored = session.run(["q", "y"], {"x": values})
    return np.asarray(integers_found), np.asarray(restored)


def spread(dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Values inside and outside of the range, and exact halves of a step."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 2, 4000), np.linspace(-9, 9, 999), [0.0, -0.0]]).astype(dtype)[None]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 6.0), (-4.0, -1.0), (0.5, 7.0), (-1e-3, 1e-3)])
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_activations_equal_onnx_runtime(kind: Any, low: float, high: float, dtype: Any) -> None:
    entry = {"low": low, "high": high, "absmax": max(-low, high)}
    quantizer = q.activation_quantizer(entry, kind, dtype)
    values = spread(dtype)
    integers, restored = runtime_round_trip(values, quantizer.scale, quantizer.dtype(quantizer.zero_point))
    ours = q.quantize_activation(values, quantizer)
    assert ours.dtype == integers.dtype
    # ONNX Runtime may multiply by 1 / scale: a value within an ulp of a tie then falls to the other side
    apart = np.abs(ours.astype(int) - integers.astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() < (0.002 if dtype is np.float32 else 0.02)
    np.testing.assert_array_equal(q.dequantize_activation(integers, quantizer), restored)


def test_ties_go_to_even_and_the_ends_saturate() -> None:
    quantizer = q.ActivationQuantizer(np.float32(0.5), 0, "signed")
    values = np.array([0.25, 0.75, -0.25, -0.75, 1.25, 1000, -1000], dtype=np.float32)
    assert q.quantize_activation(values, quantizer).tolist() == [0, 2, 0, -2, 2, 127, -128]
    integers, _ = runtime_round_trip(values[None], quantizer.scale, np.int8(0))
    assert integers[0].tolist() == [0, 2, 0, -2, 2, 127, -128]


@pytest.mark.parametrize(("kind", "dtype"), [("signed", np.float32), ("signed", np.float16), ("unsigned", np.float32)])
def test_weights_equal_onnx_runtime_per_channel(kind: Any, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    weight = (rng.normal(size=(64, 33)) * np.logspace(-4, 1, 33)).astype(np.float32)
    weight[:, 7] = 0
    integers, scales = q.quantize_weight(weight, kind, dtype)
    assert integers.dtype == np.int8 and scales.shape == (33,) and scales.dtype == dtype
    assert np.abs(integers).max() == 127 and integers.min() >= -127
    assert scales[7] == 1 and not integers[:, 7].any()
    if dtype is np.float32:
        found, restored = runtime_round_trip(weight, scales, np.zeros(33, np.int8))
        apart = np.abs(integers.astype(int) - found.astype(int))
        assert apart.max() <= 1 and (apart > 0).mean() < 0.002
        np.testing.assert_array_equal(q.dequantize_weight(found, scales), restored)
    error = np.abs(q.dequantize_weight(integers, scales).astype(np.float32) - weight)
    assert (error <= 0.55 * scales.astype(np.float32)).all(), "no weight moves by more than half a step (FP16 rounding)"


@pytest.mark.parametrize("rows", [64, 63])
def test_pairs_of_products_fit_16_bits_where_the_activations_are_unsigned(rows: int) -> None:
    weight = np.random.default_rng(2).normal(size=(rows, 256)).astype(np.float32)
    integers, _ = q.quantize_weight(weight, "unsigned")
    products = 255 * integers[: rows // 2 * 2].astype(int)
    for half in (np.maximum(products, 0), np.minimum(products, 0)):
        sums = half[0::2] + half[1::2]
        assert sums.min() >= -(2**15) and sums.max() < 2**15
    assert sums.min() < -0.9 * 2**15, "no more of the range is given away than this needs"


def test_zero_is_exact_and_the_range_is_covered() -> None:
    for low, high in ((-0.3, 5.0), (-7.0, 0.1), (-1.0, 1.0), (2.0, 3.0), (-3.0, -2.0)):
        quantizer = q.unsigned_from_range(low, high)
        zero = np.zeros(1, np.float32)
        assert q.fake_quantize(zero, quantizer)[0] == 0
        ends = np.array([low, high], np.float32)
        assert np.abs(q.fake_quantize(ends, quantizer) - ends).max() <= quantizer.scale * 1.001


def test_a_tensor_that_is_always_zero_stays_zero() -> None:
    for quantizer in (q.unsigned_from_range(0.0, 0.0), q.signed_from_absmax(0.0)):
        assert quantizer.scale == 1 and quantizer.zero_point == 0
        assert q.fake_quantize(np.zeros(3, np.float32), quantizer).tolist() == [0, 0, 0]


def test_scales_never_underflow_in_half_precision() -> None:
    assert q.signed_from_absmax(1e-9, np.float16).scale > 0
    assert (q.weight_scales(np.full((2, 2), 1e-9, np.float32), "signed", np.float16) > 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ranges_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        q.signed_from_absmax(bad)
    with pytest.raises(ValueError, match="low <= high"):
        q.unsigned_from_range(1.0, -1.0)
