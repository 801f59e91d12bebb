"""Explicit Q/DQ: what the runtimes compute from the files is what our own arithmetic says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_towers import pixels, run, tokens
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges
from torch import nn
from torch.nn.functional import normalize

from mmcompress.compress.int8.quantize import calibrate
from mmcompress.compress.int8.samples import Captioned
from mmcompress.errors import UsageError
from mmcompress.export.graph import Numerics
from mmcompress.export.towers import image_graph, text_graph
from mmcompress.huggingface import dual_encoder_from_hugging_face
from mmcompress.int8 import activation_quantizer, fake_quantize, fake_quantize_weight, linear_modules

PARTS = {"qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "out": ("self_attn.out_proj",)}
PARTS |= {"fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
TOWERS = {"image": ("vision_model", image_graph, pixels), "text": ("text_model", text_graph, tokens)}


def linears(model: nn.Module, module: str) -> list[nn.Linear]:
    """The transformers layers behind one of our module names."""
    tower, _, block, part = module.split(".")
    layer = model.get_submodule(f"{TOWERS[tower][0]}.encoder.layers.{block}")
    return [layer.get_submodule(name) for name in PARTS[part]]  # type: ignore[misc]


def embed(model: Any, tower: str, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    encode = model.get_image_features if tower == "image" else model.get_text_features
    tensor = torch.from_numpy(inputs)
    with torch.inference_mode():
        return np.asarray(normalize(encode(tensor if tower == "image" else tensor.long()), dim=-1).numpy())


def calibrated(model: Any, config: Any) -> dict[str, dict[str, float]]:
    """Min-max ranges of the inputs of every Linear, as seen in transformers."""
    ranges: dict[str, dict[str, float]] = {}
    handles = []
    for module in linear_modules(config):

        def watch(_: Any, arguments: Any, module: str = module) -> None:
            low, high = arguments[0].min().item(), arguments[0].max().item()
            ranges[module] = {"low": low, "high": high, "absmax": max(-low, high)}

        handles.append(linears(model, module)[0].register_forward_pre_hook(watch))
    for tower, (_, _, inputs) in TOWERS.items():
        embed(model, tower, inputs(8))
    for handle in handles:
        handle.remove()
    return ranges


def simulate(model: Any, config: Any, ranges: dict[str, Any], kind: Any) -> None:
    """Make the transformers model quantize with our arithmetic: weights once, inputs on the way."""
    for module in linear_modules(config):
        quantizer = activation_quantizer(ranges[module], kind)

        def quantized(_: Any, arguments: Any, quantizer: Any = quantizer) -> Any:
            return (torch.from_numpy(fake_quantize(arguments[0].numpy(), quantizer)),)

        for layer in linears(model, module):
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(fake_quantize_weight(layer.weight.numpy().T, kind).T))
            layer.register_forward_pre_hook(quantized)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_quantized_towers_equal_our_arithmetic_inside_transformers(kind: Any, activation: str) -> None:
    config = config_of(activation=activation)
    model = clip_of(config)
    tensors = {k: v.copy() for k, v in tensors_of(model).items()}
    ranges = calibrated(model, config)
    floats = {tower: embed(model, tower, inputs(8)) for tower, (_, _, inputs) in TOWERS.items()}
    simulate(model, config, ranges, kind)
    for tower, (_, graph, inputs) in TOWERS.items():
        proto = graph(config, tensors, Numerics(activations=kind, ranges=ranges), 18)
        onnx.checker.check_model(proto, full_check=True)
        expected = embed(model, tower, inputs(8))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (plain,) = session.run(None, {session.get_inputs()[0].name: inputs(8)})
        moved = np.abs(expected - floats[tower]).mean()
        assert moved > 1e-4, "quantization must show"
        # A value on a tie may fall to the other side and travel on from there. Fused, CPUs get the unsigned file only:
        # those without VNNI saturate the signed one.
        for found in (plain, run(proto, inputs(8))) if kind == "unsigned" else (plain,):
            assert np.abs(found - expected).mean() < moved / 5
            assert (found * expected).sum(axis=1).min() > 0.9998


def test_openvino_runs_the_unsigned_file_as_we_say() -> None:
    from mmcompress.runtime.openvino import openvino_module

    core = openvino_module().Core()
    config = config_of()
    model = clip_of(config)
    tensors = {k: v.copy() for k, v in tensors_of(model).items()}
    ranges = calibrated(model, config)
    simulate(model, config, ranges, "unsigned")
    for tower, (_, graph, inputs) in TOWERS.items():
        proto = graph(config, tensors, Numerics(activations="unsigned", ranges=ranges), 18)
        read = core.read_model(proto.SerializeToString())
        found = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([inputs(8)])[0]
        assert (found * embed(model, tower, inputs(8))).sum(axis=1).min() > 0.9995


def test_only_the_linears_are_quantized_and_weights_are_stored_as_integers() -> None:
    config = config_of()
    tensors = tensors_of(clip_of(config))
    for dtype, kind in ((np.float16, "signed"), (np.float32, "unsigned")):
        numerics = Numerics(dtype, kind, wide_ranges(config))  # type: ignore[arg-type]
        proto = image_graph(config, tensors, numerics, 18)
        makers = {output: node for node in proto.graph.node for output in node.output}
        stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        quantized = set()
        for node in proto.graph.node:
            if node.op_type == "MatMul" and makers.get(node.input[1], node).op_type == "DequantizeLinear":
                quantized.add(node.name.removesuffix(".q").removesuffix(".kv"))
                weight = makers[node.input[1]]
                assert stored[weight.input[0]].data_type == onnx.TensorProto.INT8
                assert not onnx.numpy_helper.to_array(stored[weight.input[2]]).any()
                quantize = makers[makers[node.input[0]].input[0]]
                zero = onnx.numpy_helper.to_array(stored[quantize.input[2]])
                assert zero.dtype == (np.int8 if kind == "signed" else np.uint8)
                assert (zero == 0) == (kind == "signed")
        assert quantized == {name for name in linear_modules(config) if name.startswith("image.")}
        count = sum(node.op_type == "QuantizeLinear" for node in proto.graph.node)
        assert count == 4 * config.image.depth + 1, "one pair a Linear, and one more where the last block splits QKV"
        assert proto.opset_import[0].version == (19 if dtype is np.float16 else 18)


def test_a_linear_without_a_range_is_named() -> None:
    config = config_of()
    ranges = wide_ranges(config)
    del ranges["image.blocks.1.fc2"]
    with pytest.raises(UsageError, match=r"no calibrated range for 'image.blocks.1.fc2'") as caught:
        image_graph(config, tensors_of(clip_of(config)), Numerics(activations="signed", ranges=ranges), 18)
    assert "mmcompress quantize" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize("products", [("scores",), ("scores", "mixed")])
def test_quantized_attention_equals_our_arithmetic_inside_torch(
    kind: Any, products: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated by the stage's own watcher; every Linear in float, so that only attention moves anything."""
    config = config_of()
    source = clip_of(config)
    source.save_pretrained(tmp_path)
    model = dual_encoder_from_hugging_face(tmp_path)
    samples = [Captioned(torch.from_numpy(pixels(4)), torch.from_numpy(tokens(4))) for _ in range(2)]
    ranges = calibrate(model, samples).operands
    assert len(ranges) == 2 * 2 * 4
    assert ranges["text.blocks.0.attention.probabilities"]["high"] == 1
    assert 0.1 < ranges["image.blocks.0.attention.probabilities"]["high"] < 1
    floats = {tower: embed(source, tower, inputs(4)) for tower, (_, _, inputs) in TOWERS.items()}

    def quantized(x: torch.Tensor, name: str, as_kind: Any) -> torch.Tensor:
        return torch.from_numpy(fake_quantize(x.numpy(), activation_quantizer(ranges[name], as_kind)))

    def attend(name: str, q: Any, k: Any, v: Any, mask: Any, causal: bool) -> torch.Tensor:
        q = quantized(q * q.shape[-1] ** -0.5, f"{name}.query", kind)
        scores = q @ quantized(k, f"{name}.keys", "signed").transpose(-1, -2)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        if "mixed" in products:
            probabilities = quantized(probabilities, f"{name}.probabilities", kind)
            v = quantized(v, f"{name}.values", "signed")
        return probabilities @ v

    for tower in TOWERS:
        for index, block in enumerate(getattr(model, tower).blocks):
            monkeypatch.setattr(block.attention, "forward", partial(attend, f"{tower}.blocks.{index}.attention"))
    kept = frozenset(linear_modules(config))
    for tower, (_, graph, inputs) in TOWERS.items():
        numerics = Numerics(activations=kind, ranges=ranges, kept=kept, attention=products)
        proto = graph(config, tensors_of(source), numerics, 18)
        onnx.checker.check_model(proto, full_check=True)
        assert sum(node.op_type == "QuantizeLinear" for node in proto.graph.node) == 2 * 2 * len(products)
        with torch.inference_mode():
            encode = model.encode_image if tower == "image" else model.encode_text
            expected = encode(torch.from_numpy(inputs(4))).numpy()
        moved = np.abs(expected - floats[tower]).mean()
        assert moved > 1e-5, "quantization must show"
        assert np.abs(run(proto, inputs(4)) - expected).mean() < moved / 5
