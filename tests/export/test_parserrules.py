"""Each rule of TensorRT's parser is caught by us, with the layer's name; TensorRT-RTX's parser is the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges

from mmcompress.errors import MMCompressError, UsageError
from mmcompress.export import engine as engines
from mmcompress.export.export import specs
from mmcompress.export.graph import Numerics
from mmcompress.export.parserrules import RULES, Read, check_graph
from mmcompress.export.towers import image_graph, text_graph

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
node = helper.make_node
LOG = trt.Logger(trt.Logger.ERROR)
BUILDER = trt.Builder(LOG)
NETWORK = BUILDER.create_network(0)
PARSER = trt.OnnxParser(NETWORK, LOG)
NAME = "image.blocks.0.odd"


def tensor(name: str, kind: int, dims: list[int], value: float = 0) -> Any:
    return helper.make_tensor(name, kind, dims, [value] * int(np.prod(dims)))


def value(name: str, kind: int, dims: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def model(nodes: list[Any], constants: Any = (), x: Any = None, y: Any = None, more: Any = (), **given: Any) -> Any:
    inputs = [x or value("x", T.FLOAT, ["batch", 8]), *more]
    graph = helper.make_graph(nodes, "odd", inputs, [y or value("y", T.FLOAT, None)], list(constants))
    opsets = given.get("opsets") or [helper.make_opsetid("", given.get("opset", 19))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def quantized(
    kind: int = T.INT8, zero: float = 0, scale: float = 0.1, stored: int = T.INT8, scales: int = 8, axis: int = 1
) -> Any:
    """DQ(Q(x)) @ DQ(w), with one thing odd: the activation is `kind`, the weight `stored`."""
    of_input = kind != T.INT8 or zero or scale <= 0
    return model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"], name=NAME if of_input else "quantize"),
            node("DequantizeLinear", ["q", "s", "z"], ["d"], name="restore"),
            node("DequantizeLinear", ["w", "t", "o"], ["v"], name="weight" if of_input else NAME, axis=axis),
            node("MatMul", ["d", "v"], ["y"], name="product"),
        ],
        [
            tensor("s", T.FLOAT, [], scale),
            tensor("z", kind, [], zero),
            tensor("t", T.FLOAT, [scales], 0.01),
            tensor("o", stored, [8]),
            tensor("w", stored, [8, 8], 1),
        ],
    )


def one(op: str, *inputs: str, constants: Any = (), **given: Any) -> Any:
    shaped = {key: given.pop(key) for key in ("x", "y", "more", "opset", "opsets") if key in given}
    return model([node(op, list(inputs), ["y"], name=NAME, **given)], constants, **shaped)


def half(op: str, *inputs: str, **given: Any) -> Any:
    """A node that reads `h`, FP16, beside FP32."""
    constants = [tensor("w", T.FLOAT, [8, 8], 1), tensor("g", T.FLOAT, [8], 1)]
    nodes = [node("Cast", ["x"], ["h"], to=T.FLOAT16), node(op, list(inputs), ["y"], name=NAME, **given)]
    return model(nodes, constants)


def cast(op: str, kind: int, *inputs: str, constants: Any = ()) -> Any:
    """A node that reads `k`, the input in another type."""
    nodes = [
        node("Cast", ["x"], ["k"], to=kind),
        node(op, list(inputs), ["m"], name=NAME),
        node("Cast", ["m"], ["y"], to=T.FLOAT),
    ]
    return model(nodes, constants)


SCALE = tensor("s", T.FLOAT, [], 1)
PIXELS = value("x", T.FLOAT, ["batch", 3, 8, 8])
IMAGE_BYTES = value("x", T.UINT8, ["batch", 8])
FOREIGN = [helper.make_opsetid("", 19), helper.make_opsetid("com.acme", 1)]
BROKEN: dict[str, tuple[str, Callable[[], Any]]] = {
    "zero point of an activation": ("zero point is 3", lambda: quantized(zero=3)),
    "unsigned weights": ("unsigned 8-bit", lambda: quantized(stored=T.UINT8)),
    "integer bias": (
        "integers of INT32",
        lambda: one("DequantizeLinear", "b", "s", constants=[tensor("b", T.INT32, [8], 1), SCALE]),
    ),
    "zero scale": ("not positive", lambda: quantized(scale=0)),
    "negative scale": ("not positive", lambda: quantized(scale=-0.1)),
    "scales and zero points": ("4 scales and 8 zero points", lambda: quantized(scales=4)),
    "axis": ("its axis is 5", lambda: quantized(axis=5)),
    "QLinearMatMul": (
        "operator on integers",
        lambda: model(
            [
                node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
                node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["r"], name=NAME),
                node("DequantizeLinear", ["r", "s", "z"], ["y"], name="restore"),
            ],
            [tensor("s", T.FLOAT, [], 0.1), tensor("z", T.INT8, []), tensor("w", T.INT8, [8, 8], 1)],
        ),
    ),
    "MatMulInteger": (
        "operator on integers",
        lambda: cast("MatMulInteger", T.INT8, "k", "w", constants=[tensor("w", T.INT8, [8, 8], 1)]),
    ),
    "DynamicQuantizeLinear": (
        "operator on integers",
        lambda: model(
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name=NAME),
                node("DequantizeLinear", ["q", "s", "z"], ["y"]),
            ]
        ),
    ),
    "operator": ("no operator Det", lambda: one("Det", "x", x=value("x", T.FLOAT, ["batch", 3, 3]))),
    "foreign operator": ("no operator Thing of com.acme", lambda: one("Thing", "x", domain="com.acme", opsets=FOREIGN)),
    "strings": (
        "no tensors of STRING",
        lambda: one("Identity", "x", x=value("x", T.STRING, ["batch"]), y=value("y", T.STRING, None)),
    ),
    "cast to UINT32": ("no tensors of UINT32", lambda: cast("Identity", T.UINT32, "k")),
    "INT16 constant": (
        "no tensors of INT16, as 'k'",
        lambda: model(
            [node("Cast", ["k"], ["f"], to=T.FLOAT, name=NAME), node("Add", ["x", "f"], ["y"])],
            [tensor("k", T.INT16, [8], 1)],
        ),
    ),
    "arithmetic on bytes": (
        "computes with uint8",
        lambda: model(
            [node("Add", ["x", "x"], ["a"], name=NAME), node("Cast", ["a"], ["y"], to=T.FLOAT)], x=IMAGE_BYTES
        ),
    ),
    "bytes turned": (
        "computes with uint8",
        lambda: model(
            [node("Transpose", ["x"], ["a"], name=NAME, perm=[1, 0]), node("Cast", ["a"], ["y"], to=T.FLOAT)],
            x=IMAGE_BYTES,
        ),
    ),
    "sum of types": ("FLOAT and FLOAT16", lambda: half("Add", "h", "g")),
    "product of types": ("FLOAT and FLOAT16", lambda: half("MatMul", "h", "w")),
    "norm of types": ("FLOAT and FLOAT16", lambda: half("LayerNormalization", "h", "g", "g")),
    "product of integers": (
        "matrices of INT32",
        lambda: cast("MatMul", T.INT32, "k", "w", constants=[tensor("w", T.INT32, [8, 8], 1)]),
    ),
    "sum of booleans": ("computes with booleans", lambda: cast("Add", T.BOOL, "k", "k")),
    "dropout": (
        "training mode",
        lambda: one("Dropout", "x", "r", "t", constants=[tensor("r", T.FLOAT, [], 0.5), tensor("t", T.BOOL, [], 1)]),
    ),
    "batch norm": (
        "training mode",
        lambda: model(
            [node("BatchNormalization", ["x", "a", "a", "a", "a"], ["y", "m", "v"], name=NAME, training_mode=1)],
            [tensor("a", T.FLOAT, [3], 1)],
            x=PIXELS,
        ),
    ),
    "antialias": (
        "smooths against aliasing",
        lambda: one(
            "Resize", "x", "", "s", mode="cubic", antialias=1, x=PIXELS,
            constants=[numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "s")],
        ),
    ),
    "table of integers": (
        "INT8 weights",
        lambda: model(
            [
                node("Gather", ["w", "x"], ["g"], name=NAME),
                node("DequantizeLinear", ["g", "s"], ["y"], name="restore"),
            ],
            [tensor("w", T.INT8, [4, 8], 1), tensor("s", T.FLOAT, [], 0.1)],
            x=value("x", T.INT32, ["batch", 8]),
        ),
    ),
    "shape as input": ("says how large", lambda: one("Reshape", "x", "n", more=[value("n", T.INT64, [2])])),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_we_and_the_parser_refuse(name: str, tmp_path: Path) -> None:
    said, make = BROKEN[name]
    path = tmp_path / "odd.onnx"
    path.write_bytes(make().SerializeToString())
    place = f"tensor 'x': .*{said}" if name == "strings" else f"node '{NAME}' .*{said}"
    if name == "cast to UINT32":
        place = f"node 'k' .*{said}"
    with pytest.raises(UsageError, match=f"TensorRT does not take odd.onnx: {place}"):
        check_graph(path, PARSER.supports_operator)
    with pytest.raises(MMCompressError):
        engines.engine_from_onnx(trt, path, inputs_of(path), target="sm86", batches=(1, 4, 8), checked=False)


def inputs_of(path: Path) -> Any:
    inputs = onnx.load(str(path)).graph.input
    return [] if inputs[0].type.tensor_type.elem_type == T.STRING else specs(inputs)


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    hit = set()
    for _, make in BROKEN.values():
        read = Read(make(), PARSER.supports_operator)
        hit |= {rule.broken.__name__ for rule in RULES if next(rule.broken(read), None)}
    assert {rule.broken.__name__ for rule in RULES} - hit == {"recent_opset", "dynamic_batches"}, "tested below"


def test_unsigned_activations_are_refused_though_the_parser_takes_them(tmp_path: Path) -> None:
    """It computes them as signed ones, which saturate at 127."""
    path = tmp_path / "odd.onnx"
    path.write_bytes(quantized(T.UINT8).SerializeToString())
    with pytest.raises(UsageError, match=rf"node '{NAME}' .*unsigned 8-bit integers"):
        check_graph(path)
    engine = engines.engine_from_onnx(trt, path, inputs_of(path), target="sm86", batches=(1, 4, 8), checked=False)
    assert any("Defaulting to INT8 instead" in warning for warning in engine.warnings)


def test_an_old_opset_is_refused_of_which_the_parser_warns(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(one("Relu", "x", opset=6).SerializeToString())
    with pytest.raises(UsageError, match="the graph is of opset 6"):
        check_graph(path)
    engine = engines.engine_from_onnx(trt, path, inputs_of(path), target="sm86", batches=(1, 4, 8), checked=False)
    assert any("at least opset 7" in warning for warning in engine.warnings)


def test_only_batches_are_dynamic(tmp_path: Path) -> None:
    """Ours: a profile is a range of batches."""
    path = tmp_path / "odd.onnx"
    path.write_bytes(one("Relu", "x", x=value("x", T.FLOAT, ["batch", 3, "side", 8])).SerializeToString())
    with pytest.raises(UsageError, match="tensor 'x': its axis 2 is dynamic"):
        check_graph(path)


@pytest.mark.parametrize(
    "numerics", [Numerics(), Numerics(np.float16), Numerics(np.float16, "signed", wide_ranges(config_of()))]
)
@pytest.mark.parametrize("graph", [image_graph, text_graph])
def test_our_own_graphs_break_none(graph: Any, numerics: Numerics, tmp_path: Path) -> None:
    path = tmp_path / "ours.onnx"
    path.write_bytes(graph(config_of(), tensors_of(clip_of(config_of())), numerics, 18).SerializeToString())
    check_graph(path, PARSER.supports_operator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: one("Cast", "x", to=T.FLOAT, x=IMAGE_BYTES),
        lambda: one("Cast", "x", to=T.FLOAT, x=value("x", T.INT64, ["batch", 8])),
        lambda: one("Relu", "x", opset=26),
        lambda: quantized(),
    ],
)
def test_what_the_parser_takes_is_not_refused(make: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "fine.onnx"
    path.write_bytes(make().SerializeToString())
    assert engines.engine_from_onnx(trt, path, inputs_of(path), target="sm86", batches=(1, 4, 8)).plan
