"""The written graphs compute what transformers computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_clip import CONTEXT, EOS, VOCAB, clip_of, config_of, tensors_of
from torch.nn.functional import normalize

from mmcompress.errors import CorruptInputError
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.int8 import linear_modules

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-block": {"heads": (1,), "mlp": (48,), "head_dim": 32},
    "deep": {"heads": (4,) * 4, "mlp": (32,) * 4, "head_dim": 8},
    "uneven-towers": {"image_width": 48, "image_heads": (3, 3), "image_patch": 16, "text_mlp": (96, 96)},
}


def run(model: Any, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["embedding"], {session.get_inputs()[0].name: inputs})
    return np.asarray(found)


def pixels(batch: int, side: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(batch).standard_normal((batch, 3, side, side), dtype=np.float32)


def tokens(batch: int, end: int = EOS) -> np.ndarray[Any, Any]:
    """Ends at every place in turn, then padding; also one with padding that is the end token itself."""
    rng = np.random.default_rng(batch)
    ids = rng.integers(3, 50, (batch, CONTEXT), dtype=np.int32)
    for row in range(batch):
        place = (5 * row + 3) % CONTEXT
        ids[row, place] = end
        ids[row, place + 1 :] = end if row % 2 else 1
    return ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("opset", [17, 20])
def test_both_towers_match_transformers(shape: str, activation: str, opset: int) -> None:
    config = config_of(activation=activation, **SHAPES[shape])
    model = clip_of(config)
    image, text = (f(config, tensors_of(model), Numerics(), opset) for f in (image_graph, text_graph))
    for batch in (1, 3, 8):
        with torch.inference_mode():
            expected_image = normalize(model.get_image_features(torch.from_numpy(pixels(batch))), dim=-1).numpy()
            expected_text = normalize(model.get_text_features(torch.from_numpy(tokens(batch)).long()), dim=-1).numpy()
        np.testing.assert_allclose(run(image, pixels(batch)), expected_image, atol=1e-5)
        np.testing.assert_allclose(run(text, tokens(batch)), expected_text, atol=1e-5)
    assert np.abs(expected_image[0] - expected_image[1]).max() > 0.05, "the inputs must matter"
    assert np.abs(expected_text[0] - expected_text[1]).max() > 0.05


@pytest.mark.parametrize("opset", [17, 18])
def test_legacy_end_token_pools_at_the_largest_id_as_transformers_does(opset: int) -> None:
    config = config_of(text_eos_token_id=2)
    model = clip_of(config)
    ids = tokens(7, end=VOCAB - 1)
    ids[:, 0] = 2  # the id 2 itself must not pool
    with torch.inference_mode():
        expected = normalize(model.get_text_features(torch.from_numpy(ids).long()), dim=-1).numpy()
    np.testing.assert_allclose(run(text_graph(config, tensors_of(model), Numerics(), opset), ids), expected, atol=1e-5)


def test_openvino_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcompress.runtime.openvino import openvino_module

    ov = openvino_module()
    config = config_of()
    model = clip_of(config)
    for graph, inputs in ((image_graph, pixels(3)), (text_graph, tokens(3))):
        proto = graph(config, tensors_of(model), Numerics(), 18)
        core = ov.Core()
        compiled = core.compile_model(
            core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        np.testing.assert_allclose(compiled([inputs])[0], run(proto, inputs), atol=1e-5)


def test_a_pruned_model_equals_the_full_one_with_the_pruned_units_zeroed() -> None:
    """Independent of our torch model: transformers runs the zeroed weights, the graph has them cut away."""
    full = config_of(heads=(2, 2), mlp=(64, 64))
    model = clip_of(full)
    pruned = config_of(heads=(1, 2), mlp=(32, 48))
    tensors = tensors_of(model)
    with torch.no_grad():
        for name in ("vision_model", "text_model"):
            layers = getattr(model, name).encoder.layers
            layers[0].self_attn.out_proj.weight[:, 16:] = 0
            for i, kept in enumerate(pruned.image.mlp):
                layers[i].mlp.fc2.weight[:, kept:] = 0
                stem = f"{name}.encoder.layers.{i}"
                tensors[f"{stem}.mlp.fc1.weight"] = tensors[f"{stem}.mlp.fc1.weight"][:kept]
                tensors[f"{stem}.mlp.fc1.bias"] = tensors[f"{stem}.mlp.fc1.bias"][:kept]
                tensors[f"{stem}.mlp.fc2.weight"] = tensors[f"{stem}.mlp.fc2.weight"][:, :kept]
            attention = f"{name}.encoder.layers.0.self_attn"
            for part in "qkv":
                for leaf in ("weight", "bias"):
                    key = f"{attention}.{part}_proj.{leaf}"
                    tensors[key] = tensors[key][:16]
            tensors[f"{attention}.out_proj.weight"] = tensors[f"{attention}.out_proj.weight"][:, :16]
        expected_image = normalize(model.get_image_features(torch.from_numpy(pixels(3))), dim=-1).numpy()
        expected_text = normalize(model.get_text_features(torch.from_numpy(tokens(3)).long()), dim=-1).numpy()
    np.testing.assert_allclose(run(image_graph(pruned, tensors, Numerics(), 18), pixels(3)), expected_image, atol=1e-5)
    np.testing.assert_allclose(run(text_graph(pruned, tensors, Numerics(), 18), tokens(3)), expected_text, atol=1e-5)


def test_half_precision_is_half_inside_and_float_outside() -> None:
    config = config_of()
    tensors = tensors_of(clip_of(config))
    for graph, inputs in ((image_graph, pixels(3)), (text_graph, tokens(3))):
        half = graph(config, tensors, Numerics(np.float16), 18)
        onnx.checker.check_model(half, full_check=True)
        products = {t.data_type for t in half.graph.initializer if t.name.endswith(("qkv.weight", "fc1.weight"))}
        assert products == {onnx.TensorProto.FLOAT16}
        norms = {t.data_type for t in half.graph.initializer if "norm1.weight" in t.name}
        assert norms == {onnx.TensorProto.FLOAT}
        found, expected = run(half, inputs), run(graph(config, tensors, Numerics(), 18), inputs)
        assert found.dtype == np.float32
        assert (found * expected).sum(axis=1).min() > 0.9999
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_nodes_are_named_after_modules_and_bytes_repeat() -> None:
    config = config_of()
    tensors = tensors_of(clip_of(config))
    first, second = (image_graph(config, tensors, Numerics(), 18) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    names = [node.name for node in first.graph.node]
    assert len(set(names)) == len(names)
    products = {node.name for node in first.graph.node if node.op_type == "MatMul"}
    assert {"image.blocks.0.qkv", "image.blocks.0.out", "image.blocks.1.fc2", "image.blocks.1.qkv.kv"} <= products
    kinds = [node.op_type for node in first.graph.node]
    assert kinds.count("LayerNormalization") == 2 + 2 * config.image.depth
    assert "ReduceMean" not in kinds and "Shape" not in kinds


def test_the_linears_are_listed_in_order_of_execution() -> None:
    assert linear_modules(config_of())[:5] == (
        *(f"image.blocks.0.{part}" for part in ("qkv", "out", "fc1", "fc2")),
        "image.blocks.1.qkv",
    )


def test_a_tensor_of_the_wrong_shape_is_named() -> None:
    config = config_of()
    tensors = tensors_of(clip_of(config))
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tensors[name] = tensors[name][:-1]
    with pytest.raises(CorruptInputError, match=rf"{name}' has shape \(63, 32\), expected \(64, 32\)"):
        image_graph(config, tensors, Numerics(), 18)
    del tensors[name]
    with pytest.raises(CorruptInputError, match=f"tensor .{name}. is missing"):
        image_graph(config, tensors, Numerics(), 18)
