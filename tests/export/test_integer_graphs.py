"""Graphs of any architecture with integer products, against the same arithmetic in numpy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.export.integers import with_integers
from mmcompress.export.products import Product, arrays_of, folded, products_of
from mmcompress.int8 import (
    IntegerLinear,
    Range,
    Signedness,
    activation_quantizer,
    dequantize_weight,
    fake_quantize,
    quantize_weight,
)

RANGE: Range = {"low": -2.5, "high": 3.0, "absmax": 3.0}
RNG = np.random.default_rng(0)


def model_of(nodes: list[Any], shape: list[Any], opset: int = 18, **constants: NDArray[Any]) -> Any:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return answer


def integers(model: Any, product: Product, kind: Signedness) -> IntegerLinear:
    arrays = arrays_of(model)
    bias = arrays[product.bias] if product.bias else np.zeros(product.size[1], np.float32)
    return IntegerLinear(*quantize_weight(product.matrix(arrays[product.weight]), kind), bias + 0.25)


def convolved(x: NDArray[Any], weight: NDArray[Any], groups: int, stride: int, pad: int) -> NDArray[np.float64]:
    """(B, C, H, W), (O, C / groups, h, w) -> (B, O, …), by the definition."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    outputs, channels, height, width = weight.shape
    rows = (x.shape[2] - height) // stride + 1
    columns = (x.shape[3] - width) // stride + 1
    y = np.zeros((len(x), outputs, rows, columns))
    for o in range(outputs):
        first = o // (outputs // groups) * channels
        for i in range(rows):
            for j in range(columns):
                part = x[:, first : first + channels, i * stride : i * stride + height, j * stride : j * stride + width]
                y[:, o, i, j] = (part * weight[o]).sum(axis=(1, 2, 3))
    return y


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize(
    ("groups", "side", "stride"), [(1, 3, 2), (4, 3, 1), (8, 3, 1), (1, 1, 1)], ids=["dense", "grouped", "depth", "1x1"]
)
def test_a_convolution_multiplies_the_integers_that_numpy_does(
    kind: Signedness, groups: int, side: int, stride: int
) -> None:
    weight = RNG.standard_normal((8, 8 // groups, side, side), dtype=np.float32)
    bias = RNG.standard_normal(8, dtype=np.float32)
    settings = {"group": groups, "strides": [stride] * 2, "pads": [side // 2] * 4}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="/body/Conv", **settings)
    model = model_of([node], ["n", 8, 6, 6], w=weight, b=bias)
    (product,) = products_of(model, "image")
    assert product.name == "image.body.Conv" and product.depthwise == (groups == 8) and product.linear == (side == 1)
    fitted = integers(model, product, kind)
    x = RNG.standard_normal((2, 8, 6, 6), dtype=np.float32)
    answer = run(with_integers(model, [product], {product.name: fitted}, {product.name: RANGE}, kind), x)
    quantizer = activation_quantizer(RANGE, kind)
    restored = (fitted.weight.astype(np.float64) * fitted.scales).reshape(side, side, 8 // groups, 8)
    entering = fake_quantize(x, quantizer)
    expected = convolved(entering, restored.transpose(3, 2, 0, 1), groups, stride, side // 2)
    expected += fitted.bias[None, :, None, None]
    assert np.abs(answer - expected).max() < 1e-4
    assert np.abs(answer - run(model, x)).max() > 0.1, "the fitted bias is another one"


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize("form", ["gemm", "gemm transposed", "gemm alone", "matmul", "matmul added"])
def test_a_linear_multiplies_the_integers_that_numpy_does(kind: Signedness, form: str) -> None:
    weight, bias = RNG.standard_normal((6, 5), dtype=np.float32), RNG.standard_normal(5, dtype=np.float32)
    op, biased = form.split()[0], "alone" not in form and form != "matmul"
    if op == "gemm":
        stored = np.ascontiguousarray(weight.T) if "transposed" in form else weight
        inputs = ["x", "w", "b"] if biased else ["x", "w"]
        nodes = [helper.make_node("Gemm", inputs, ["y"], name="p", transB=int("transposed" in form))]
        shape = [3, 6]
    else:
        stored, shape = weight, [2, 3, 6]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m" if biased else "y"], name="p")]
        nodes += [helper.make_node("Add", ["b", "m"], ["y"])] if biased else []
    model = model_of(nodes, ["n", *shape[1:]], w=stored, **({"b": bias} if biased else {}))
    (product,) = products_of(model, "text")
    assert (product.name, product.size) == ("text.p", (6, 5)) and (product.bias == "b") == biased
    fitted = integers(model, product, kind)
    x = RNG.standard_normal(shape, dtype=np.float32)
    answer = run(with_integers(model, [product], {"text.p": fitted}, {"text.p": RANGE}, kind), x)
    restored = dequantize_weight(fitted.weight, fitted.scales)
    expected = fake_quantize(x, activation_quantizer(RANGE, kind)) @ restored + (fitted.bias if biased else 0)
    assert np.abs(answer - expected).max() < 1e-5


def test_onnxruntime_computes_in_integers_what_is_written_so(tmp_path: Path) -> None:
    """A Gemm, and a convolution where its output is quantized too."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("ReduceMean", ["c", "axes"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "v", "b"], ["y"], name="gemm"),
    ]
    weight, matrix = RNG.standard_normal((8, 4, 3, 3), dtype=np.float32), RNG.standard_normal((8, 8), dtype=np.float32)
    bias = RNG.standard_normal(8, dtype=np.float32)
    model = model_of(nodes, ["n", 4, 6, 6], w=weight, v=matrix, b=bias, axes=np.array([2, 3]))
    products = products_of(model, "image")
    linears = {product.name: integers(model, product, "unsigned") for product in products}
    ranges = {
        "image.conv": RANGE,
        "image.gemm": RANGE,
        "image.conv.output": {"low": -40.0, "high": 40.0, "absmax": 40.0},
    }

    def compiled(outputs: tuple[str, ...]) -> Counter[str]:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "compiled.onnx")
        options.log_severity_level = 3
        written = with_integers(model, products, linears, ranges, "unsigned", outputs)
        onnxruntime.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(tmp_path / "compiled.onnx").graph.node)

    plain, quantized = compiled(()), compiled(("image.conv",))
    assert plain["MatMulIntegerToFloat"] == quantized["MatMulIntegerToFloat"] == 1 and not plain["Gemm"]
    assert quantized["QLinearConv"] == 1 and not plain["QLinearConv"]


def test_products_of_one_tensor_share_its_integers() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["q"], name="q"),
        helper.make_node("MatMul", ["x", "b"], ["k"], name="k"),
        helper.make_node("MatMul", ["q", "k"], ["y"], name="scores"),
    ]
    matrix = RNG.standard_normal((6, 6), dtype=np.float32)
    model = model_of(nodes, ["n", 6, 6], a=matrix, b=2 * matrix)
    products = products_of(model, "image")
    assert [product.name for product in products] == ["image.q", "image.k"], "a product of activations is none"
    linears = {product.name: integers(model, product, "signed") for product in products}
    written = with_integers(model, products, linears, dict.fromkeys(linears, RANGE), "signed")
    ops = Counter(node.op_type for node in written.graph.node)
    assert ops == {"MatMul": 3, "QuantizeLinear": 1, "DequantizeLinear": 3}
    assert {tensor.data_type for tensor in written.graph.initializer if tensor.name.endswith("weight")} == {3}
    one = with_integers(model, products, {"image.k": linears["image.k"]}, {"image.k": RANGE}, "signed")
    assert one.graph.initializer[0].name == "a", "what is not quantized keeps its weight"


def test_folding_leaves_one_convolution_of_convolution_batch_norm_and_scale(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "g", "h", "m", "v"], ["n"], name="norm"),
        helper.make_node("Mul", ["n", "s"], ["y"], name="scale"),
    ]
    weight = RNG.standard_normal((4, 3, 3, 3), dtype=np.float32)
    channels = {name: RNG.uniform(0.5, 2, 4).astype(np.float32) for name in "ghmv"}
    scale = RNG.uniform(0.5, 2, (4, 1, 1)).astype(np.float32)
    model = model_of(nodes, ["n", 3, 5, 5], w=weight, s=scale, **channels)
    onnx.save(model, tmp_path / "given.onnx")
    made = folded(tmp_path / "given.onnx", tmp_path / "made.onnx")
    assert [node.op_type for node in made.graph.node] == ["Conv"]
    x = RNG.standard_normal((2, 3, 5, 5), dtype=np.float32)
    assert np.abs(run(made, x) - run(model, x)).max() < 1e-4
    assert {opset.domain for opset in made.opset_import} == {""}
    (product,) = products_of(made, "image")
    assert product.torn and product.bias is not None


def test_what_cannot_be_folded_says_why(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptInputError, match="onnxruntime cannot load"):
        folded(tmp_path / "no.onnx", tmp_path / "made.onnx")
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], ["n", 3], opset=12), tmp_path / "old.onnx")
    with pytest.raises(UsageError, match="needs 13"):
        folded(tmp_path / "old.onnx", tmp_path / "made.onnx")
