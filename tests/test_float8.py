"""FP8 arithmetic against ONNX's own reference of E4M3."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mmcompress import float8


def test_weights_are_what_onnx_quantizes_them_to() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    weight[:, 3] = 0
    stored, scales = float8.quantize_weight(weight, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=1),
            helper.make_node("Cast", ["q"], ["y"], to=1),
        ],
        "one",
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 12])],
        [
            onnx.numpy_helper.from_array(scales, "s"),
            onnx.numpy_helper.from_array(np.zeros(12, float8.float8()), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (expected,) = ReferenceEvaluator(model).run(None, {"w": weight})
    np.testing.assert_array_equal(stored.astype(np.float32), expected)
    assert np.abs(stored.astype(np.float32)).max() == float8.LARGEST and scales[3] == 1


def test_the_error_is_relative_to_each_value() -> None:
    """3 bits of mantissa: half a step is at most 1/16 of a normal value."""
    weight = np.linspace(0.02, 1, 500, dtype=np.float32)[:, None]
    stored, scales = float8.quantize_weight(weight, np.float32)
    assert (np.abs(stored.astype(np.float32) * scales - weight) <= weight / 16 + 1e-6).all()


def test_scales_of_activations() -> None:
    assert float8.activation_scale(448.0, np.float16) == 1
    assert float8.activation_scale(0.0, np.float16) == 1
    assert float8.activation_scale(1e-6, np.float16) == np.finfo(np.float16).smallest_normal
