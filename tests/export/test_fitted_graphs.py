"""Graphs of fitted integers: the runtime computes what the simulation in torch said; what is kept stays in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import save_file
from test_towers import pixels, run, tokens
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges, write_checkpoint

from mmcompress.architecture import DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.compress.int8.simulate import embedded, quantizing
from mmcompress.export.export import VARIANTS, read_int8
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import graph_integers, image_graph, text_graph
from mmcompress.int8 import (
    INTEGERS,
    SCALE_TYPES,
    IntegerLinear,
    dequantize_rows,
    quantize_rows,
    quantize_weight,
    tensors_from_linears,
)
from mmcompress.model import DualEncoder
from mmcompress.tensornames import state_from_hugging_face

TOWERS = {"image": (image_graph, pixels), "text": (text_graph, tokens)}
RANGE = {"low": -3.0, "high": 5.0, "absmax": 127 / 32}
"""The signed scale is exact in FP16."""
KEPT = frozenset({"image.blocks.1.qkv", "text.blocks.0.fc2"})


def encoder_of(config: DualEncoderConfig) -> tuple[DualEncoder, dict[str, Any]]:
    tensors = {name: values.copy() for name, values in tensors_of(clip_of(config)).items()}
    model = DualEncoder(config)
    model.load_state_dict(state_from_hugging_face({k: torch.from_numpy(v) for k, v in tensors.items()}, config))
    return model.eval(), tensors


def fitted(model: DualEncoder, kind: Any) -> dict[str, IntegerLinear]:
    """Integers that plain rounding would not find: some moved by a step or two, and other biases."""
    rng, found = np.random.default_rng(0), {}
    for name, linear in model.linears():
        weight, bias = linear.weight.detach().numpy().T, linear.bias.detach().numpy()
        integers, scales = quantize_weight(weight, kind, SCALE_TYPES[kind])
        moved = np.clip(integers // 2 + rng.integers(-2, 3, integers.shape), -60, 60).astype(np.int8)
        found[name] = IntegerLinear(moved, (2 * scales).astype(scales.dtype), bias + np.float32(0.05))
    return found


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_the_runtime_equals_the_simulation(kind: Any) -> None:
    config = config_of()
    model, tensors = encoder_of(config)
    ranges, linears = dict.fromkeys(wide_ranges(config), RANGE), fitted(model, kind)
    linears = {name: linear for name, linear in linears.items() if name not in KEPT}
    numerics = Numerics(np.float32, kind, ranges, graph_integers(config, linears), KEPT)
    for tower, (graph, inputs) in TOWERS.items():
        proto = graph(config, tensors, numerics, 18)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fed = inputs(8)
        (found,) = session.run(None, {session.get_inputs()[0].name: fed})
        reference = embedded(model, tower, [torch.from_numpy(fed)]).numpy()
        with quantizing(model, linears, ranges, kind):
            expected = embedded(model, tower, [torch.from_numpy(fed)]).numpy()
        moved = np.abs(expected - reference).mean()
        assert moved > 1e-3, "quantization must show"
        # a value on a tie may fall to the other side and travel on from there
        assert np.abs(found - expected).mean() < moved / 5
        assert (found * expected).sum(axis=1).min() > 0.999


def test_what_is_kept_has_no_quantizers_and_the_rest_has_no_more_than_before() -> None:
    config = config_of()
    model, tensors = encoder_of(config)
    numerics = Numerics(np.float32, "unsigned", wide_ranges(config), fitted(model, "unsigned"), KEPT)
    nodes = image_graph(config, tensors, numerics, 18).graph.node
    counts = {op: sum(node.op_type == op for node in nodes) for op in ("QuantizeLinear", "DequantizeLinear")}
    products = 4 * config.image.depth - 1
    assert counts == {"QuantizeLinear": products, "DequantizeLinear": 2 * products}
    assert not any(node.op_type.endswith("Linear") and node.name.startswith("image.blocks.1.qkv") for node in nodes)


def test_a_checkpoint_brings_its_integers_and_says_what_it_keeps(tmp_path: Path) -> None:
    config = config_of()
    model, tensors = encoder_of(config)
    both = {kind: fitted(model, kind) for kind in ("signed", "unsigned")}
    plain = write_checkpoint(tmp_path / "plain", config, tensors, wide_ranges(config))
    assert not read_int8(plain)["signed"].integers, "a checkpoint with ranges only is rounded by the exporter"
    with Artifact.create(tmp_path / "q", kind=plain.manifest.kind, stage="quantize", key="k") as draft:
        draft.inherit(plain, *plain.manifest.files)
        save_file(tensors_from_linears(both), draft.path / INTEGERS)  # type: ignore[arg-type]
        draft.facts = {"kept": sorted(KEPT)}
    found = read_int8(Artifact.open(tmp_path / "q"))
    float8 = found.pop("float8")
    assert float8.kept == KEPT and not float8.integers, "FP8 has the ranges alone"
    assert set(found) == {"signed", "unsigned"} and found["signed"].dtype is np.float16
    inner = config.image.heads[0] * config.image.head_dim
    for kind, numerics in found.items():
        stored, graph = both[kind]["image.blocks.0.qkv"], numerics.integers["image.blocks.0.qkv"]
        assert numerics.kept == KEPT and numerics.activations == kind
        np.testing.assert_array_equal(graph.weight, stored.weight)
        np.testing.assert_array_equal(graph.scales[inner:], stored.scales[inner:])
        np.testing.assert_allclose(graph.scales[:inner], stored.scales[:inner] / 4, rtol=1e-3)
    files = {variant.file("image") for variant in VARIANTS if variant.precision == "int8"}
    assert files == {"image-int8-signed.onnx", "image-int8-unsigned.onnx"}
    proto = image_graph(config, tensors, found["signed"], 18)
    onnx.checker.check_model(proto, full_check=True)
    weights = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert weights["image.blocks.1.qkv.kv.weight"] == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_token_table_in_integers_answers_as_our_own_arithmetic(dtype: Any) -> None:
    config = config_of(text_vocab=60)
    tensors = tensors_of(clip_of(config))
    name = "text_model.embeddings.token_embedding.weight"
    restored = {**tensors, name: dequantize_rows(*quantize_rows(tensors[name], dtype))}
    ids = tokens(3)
    made = text_graph(config, tensors, Numerics(dtype, table=True), 19)
    kept = next(one for one in made.graph.initializer if one.name == "text.token_embed.weight")
    assert kept.data_type == onnx.TensorProto.INT8 and list(kept.dims) == list(tensors[name].shape)
    wanted = run(text_graph(config, restored, Numerics(dtype), 19), ids)
    np.testing.assert_allclose(run(made, ids), wanted, atol=1e-5 if dtype is np.float32 else 2e-3)
    assert np.abs(run(text_graph(config, tensors, Numerics(dtype), 19), ids) - wanted).max() > 1e-5
