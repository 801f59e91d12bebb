"""No INT8 product of a TensorRT graph can leave the type that it is written in, whatever it is fed."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges

from mmcompress.data.checkpairs import check_images
from mmcompress.export.export import read_tensors
from mmcompress.export.graph import GraphWriter, Numerics
from mmcompress.export.reference import random_inputs
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.families import config_from_hugging_face
from mmcompress.int8 import IntegerLinear, linear_modules, product_scale, quantize_weight, signed_from_absmax
from mmcompress.manifest import Preprocessing
from mmcompress.packaged import packaged

HALF = np.finfo(np.float16)
Array = Any


def products_of(graph: Any) -> list[tuple[str, Array, Array, Array, Array]]:
    """Of each integer product: name, int8 weight, its scale, the scale of what it reads, and the gains behind it."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [
        (
            node.name,
            *(constants[f"{node.name}.{part}"] for part in ("weight", "weight.scale", "input.scale", "gains")),
        )
        for node in graph.node
        if node.op_type == "MatMul" and f"{node.name}.weight.scale" in constants
    ]


def ranges_of(config: Any, reach: float) -> dict[str, dict[str, float]]:
    return {name: {"low": -reach, "high": reach, "absmax": reach} for name in linear_modules(config)}


@pytest.mark.parametrize("reach", [0.02, 1.0, 60.0, 3000.0])
@pytest.mark.parametrize("size", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("tower", [image_graph, text_graph])
def test_no_accumulator_leaves_half_precision(tower: Any, size: float, reach: float) -> None:
    """The worst activations are 128 steps of the sign of each weight; the type of what is written is FP16."""
    config = config_of(mlp=(256, 256))
    tensors = {name: size * tensor for name, tensor in tensors_of(clip_of(config)).items()}
    graph = tower(config, tensors, Numerics(np.float16, "signed", ranges_of(config, reach)), 18).graph
    products = products_of(graph)
    assert len(products) == 4 * 2 + 1, "every Linear, and QKV of the last block as two"
    for name, weight, scale, activation, gains in products:
        written = np.float32(scale) * np.float32(activation)
        assert 128 * np.abs(weight.astype(np.int64)).sum(axis=0).max() * written <= HALF.max, name
        assert scale.shape == () and np.frexp(scale)[0] == 0.5, "a power of two"
        assert written >= HALF.smallest_normal, f"{name}: a subnormal scale has fewer bits"
        assert np.isfinite(gains).all() and (gains >= HALF.smallest_normal).all()


@pytest.mark.parametrize("reach", [0.02, 1.0, 60.0, 3000.0])
def test_no_sum_of_fp8_leaves_half_precision(reach: float) -> None:
    config = config_of(mlp=(256, 256))
    numerics = Numerics(np.float16, "float8", ranges_of(config, reach))
    graph = image_graph(config, tensors_of(clip_of(config)), numerics, 18).graph
    for name, weight, scale, activation, gains in products_of(graph):
        assert str(weight.dtype) == "float8_e4m3fn", name
        largest = 448 * np.abs(weight.astype(np.float64)).sum(axis=0).max()
        assert largest * float(scale) * float(activation) <= HALF.max, name
        assert np.isfinite(gains).all() and (gains > 0).all()


def test_scales_per_channel_would_overflow_where_this_does_not() -> None:
    """What TensorRT-RTX did with them: the sum itself is written as FP16, and 127 * 127 * 32 is beyond it."""
    weight = np.full((32, 4), 127, np.int8)
    scales = np.full(4, 0.01, np.float16)
    worst = 127 * np.abs(weight.astype(np.int64)).sum(axis=0).max()
    assert worst > HALF.max
    scale = product_scale(weight, scales, np.float16(0.05))
    assert worst * scale * 0.05 <= HALF.max < 4 * 128 / 127 * worst * scale * 0.05, "the largest power of two that fits"


def test_a_weight_of_zeros_has_a_scale() -> None:
    zeros = np.zeros((8, 3), np.int8)
    assert product_scale(zeros, np.ones(3, np.float16), np.float16(0.1)) == 2.0**14, "only the gains bound it"


@pytest.mark.parametrize("by_token", [False, True])
def test_gains_give_what_scales_per_channel_give(by_token: bool, tmp_path: Path) -> None:
    """Against the integers multiplied in float64; three roundings to FP16 are on the way."""
    rng = np.random.default_rng(0)
    spread = np.float32(10) ** rng.uniform(-2, 0, 24).astype(np.float32)
    weight, scales = quantize_weight(rng.standard_normal((96, 24), np.float32) * spread, "signed", np.float16)
    bias = rng.standard_normal(24, np.float32)
    numerics = Numerics(np.float16, "signed", {"fc": {"absmax": 4.0}}, {"fc": IntegerLinear(weight, scales, bias)})
    writer = GraphWriter(19, numerics)
    y = writer.linear("fc", writer.cast("half", "x", np.float16), np.zeros((96, 24)), bias, by_token=by_token)
    writer.node("Identity", "embedding", writer.cast("full", y, np.float32))
    onnx.save(writer.model("one", ("x", np.float32, (5, 96)), 24), tmp_path / "one.onnx")
    x = rng.standard_normal((3, 5, 96), np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    step = signed_from_absmax(4.0, np.float16).scale
    steps = np.clip(np.rint(x.astype(np.float16).astype(np.float32) / np.float32(step)), -128, 127)
    product = steps.astype(np.float64) @ weight.astype(np.float64) * float(step) * scales.astype(np.float64)
    allowed = 2.0**-11 * (3 * np.abs(product) + np.abs(bias) + np.abs(product + bias)) + 1e-4
    assert (np.abs(found - (product + bias.astype(np.float16))) <= allowed).all()


def test_tensorrt_rtx_applies_the_scale_before_it_writes(tmp_path: Path) -> None:
    """The product's alpha is stored in the engine; that of the last block's out-projection, say."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    from mmcompress.export.engine import engine_from_onnx
    from mmcompress.manifest import TensorSpec

    config = config_of()
    model = image_graph(config, tensors_of(clip_of(config)), Numerics(np.float16, "signed", wide_ranges(config)), 18)
    onnx.save(model, tmp_path / "image.onnx")
    spec = TensorSpec(name="pixels", shape=(None, 3, 32, 32), dtype="float32")
    plan = engine_from_onnx(trt, tmp_path / "image.onnx", [spec], target="sm86", batches=(1, 4, 8)).plan
    for name, _, scale, activation, _ in itertools.islice(products_of(model.graph), 4):
        assert struct.pack("<f", np.float32(scale) * np.float32(activation)) in plan, name


def test_the_demos_sums_would_overflow_and_what_is_written_does_not(tmp_path: Path) -> None:
    """The teacher that ships, calibrated on the drawings that ship: measured, beside the bound."""
    folder = packaged("demo:teacher")
    config, tensors = config_from_hugging_face(folder), read_tensors(folder / "model.safetensors")
    size = config.image.image_size
    drawings = check_images(Preprocessing(size=size, resize=size, mean=(0.5,) * 3, std=(0.5,) * 3))
    pixels = np.ascontiguousarray((drawings.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2))
    fp32 = image_graph(config, tensors, Numerics(), 18)
    read = {
        node.name: node.input[0]
        for node in fp32.graph.node
        if node.op_type == "MatMul" and f"{node.name}.add" in {one.name for one in fp32.graph.node}
    }
    found = ran(fp32, list(dict.fromkeys(read.values())), pixels)
    ranges = {
        name: {"low": -reach, "high": reach, "absmax": reach}
        for name in linear_modules(config)
        if name.startswith("image.")
        for reach in [max(float(np.abs(found[x]).max()) for node, x in read.items() if node.startswith(name))]
    }
    model = image_graph(config, tensors, Numerics(np.float16, "signed", ranges), 18)
    products = products_of(model.graph)
    seen = ran(model, [f"{name}.input.quantize" for name, *_ in products], pixels)
    raw, written = {}, {}
    for name, weight, scale, activation, _ in products:
        read_by_it = seen[f"{name}.input.quantize"].astype(np.float64)
        raw[name] = np.abs(read_by_it @ weight.astype(np.float64)).max()
        written[name] = raw[name] * float(scale) * float(activation)
        assert 128 * np.abs(weight.astype(np.int64)).sum(axis=0).max() * float(scale) * float(activation) <= HALF.max
    assert sum(largest > HALF.max for largest in raw.values()) > len(raw) / 2, "the sums themselves"
    assert max(written.values()) < HALF.max / 2


def ran(model: Any, tensors: list[str], pixels: Array) -> dict[str, Array]:
    """What a graph makes of pixels, at some of its tensors; nothing is fused."""
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(tensors, session.run(tensors, {"pixels": pixels}), strict=True))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("tower", "graph"), [("image", image_graph), ("text", text_graph)])
def test_the_order_of_attention_changes_no_answer(tower: str, graph: Any, batch: int) -> None:
    config = config_of()
    tensors, inputs = tensors_of(clip_of(config)), random_inputs(config, tower, batch)
    answers = []
    for by_token in (True, False):
        numerics = Numerics(np.float16, "signed", wide_ranges(config), by_token=by_token)
        model = graph(config, tensors, numerics, 18)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    assert (answers[0] * answers[1]).sum(axis=-1).min() > 0.9999
