"""A convolutional student in INT8: quantized, exported for both kinds, judged; against torch's own convolutions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from clip_world import write_squares

from mmcompress.artifact import Artifact
from mmcompress.compress.int8.given import check_keep
from mmcompress.compress.int8.simulate import fake_quantized
from mmcompress.errors import UsageError
from mmcompress.export.audit import fallen_back, quantized_linears
from mmcompress.export.engine import engine_from_onnx
from mmcompress.export.export import Variant
from mmcompress.huggingface import dual_encoder_from_checkpoint
from mmcompress.int8 import activation_quantizer, linear_modules, linears_from_tensors, read_ranges
from mmcompress.manifest import TensorSpec
from mmcompress.measure.verdict.origins import origin_of
from mmcompress.pipeline.single import run_single
from mmcompress.runtime.openvino import openvino_module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("conv-int8")
    data = str(write_squares(folder))
    given = {"student.source": "mnv4-s-64", "student.image_size": 32, "optimizer.steps": 6, "optimizer.batch": 20}
    text = {"vocab": 320, "context": 16, "growing": 0.0}
    trained = run_single("train", {}, {**given, **text, "data.train": data}, {}, folder / "trained")
    fit = {"data.train": data, "batch": 20, "max_drop": None, "max_flips": None, "keep": ["image.stem"]}
    quantized = run_single("quantize", {}, fit, {"checkpoint": trained}, folder / "quantized")
    graphs = run_single("export", {}, {"precisions": ["fp32", "int8"]}, {"checkpoint": quantized}, folder / "graphs")
    return {"data": data, "trained": trained, "quantized": quantized, "graphs": graphs}


def test_every_convolution_is_integers_but_what_is_kept(made: dict[str, Any]) -> None:
    quantized: Artifact = made["quantized"]
    wanted = [name for name in linear_modules(quantized.model) if name.startswith("image.") and name != "image.stem"]
    ranges = {name for name in read_ranges(quantized) if name.startswith("image.")}
    assert {name for name in ranges if not name.endswith(".output")} == {*wanted}
    for kind in ("signed", "unsigned"):
        graph = onnx.load(str(made["graphs"].file(f"image-int8-{kind}.onnx"))).graph
        restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        convolved = [node for node in graph.node if node.op_type == "Conv"]
        assert [node.name for node in convolved if {*node.input[:2]} <= restored] == wanted
        audited = quantized_linears(made["graphs"].file(f"image-int8-{kind}.onnx"))
        assert audited == dict.fromkeys(wanted, "int8")
        zeros = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".zero_point")]
        assert kind == "unsigned" or not any(zero.any() for zero in zeros)


def test_runtimes_compute_it_in_integers(made: dict[str, Any], tmp_path: Path) -> None:
    """By their own reports: convolutions in 8 bits, and residual sums in them or as integers."""
    path = made["graphs"].file("image-int8-unsigned.onnx")
    graph = onnx.load(str(path)).graph
    sums = [node.name for node in graph.node if node.name.endswith(".residual")]
    convolved = sum(node.op_type == "Conv" for node in graph.node)
    assert len(sums) >= 4
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "compiled.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    compiled = Counter(node.op_type for node in onnx.load(tmp_path / "compiled.onnx").graph.node)
    assert compiled["QLinearAdd"] == len(sums) and not compiled["Add"]
    assert compiled["QLinearConv"] == convolved - 1, "the stem is kept"
    assert compiled["QLinearGlobalAveragePool"] == 1
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    runtime = openvino_module().Core().compile_model(str(path), "CPU", settings).get_runtime_model()
    told = [node.get_rt_info() for node in runtime.get_ops()]
    layers = Counter((one["layerType"].value, one["runtimePrecision"].value) for one in told)
    assert layers["Convolution", "u8"] == convolved - 1 and layers["Convolution", "f32"] == 1
    assert layers["Eltwise", "f32"] < len(sums), "sums are part of convolutions"


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_engines_are_integers_and_repeat_byte_for_byte(target: str, made: dict[str, Any]) -> None:
    """For one batch size: for several, TensorRT-RTX 1.7 orders sizes that depend on the batch by their addresses."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    path = made["graphs"].file("image-int8-signed.onnx")
    pixels = (TensorSpec(name="pixels", shape=(None, 3, 32, 32), dtype="float32"),)
    first, second = (engine_from_onnx(trt, path, pixels, target=target, batches=(1, 1, 1)) for _ in range(2))
    assert first.audit.quantized and not fallen_back(first.audit)
    assert first.plan == second.plan


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_graph_is_what_torch_computes_of_the_integers(made: dict[str, Any], kind: Any) -> None:
    from safetensors.numpy import load_file

    quantized: Artifact = made["quantized"]
    model = dual_encoder_from_checkpoint(quantized.path, quantized.model).eval()
    ranges, stored = (
        read_ranges(quantized),
        linears_from_tensors(load_file(quantized.file("integers.safetensors")), kind),
    )
    for name, module in model.products():
        if not name.startswith("image.") or name not in stored:
            continue
        assert isinstance(module, torch.nn.Conv2d)
        linear, shape = stored[name], module.weight.shape
        matrix = torch.from_numpy(linear.weight.astype(np.float32) * linear.scales)
        module.weight.data = matrix.reshape(shape[2], shape[3], shape[1], shape[0]).permute(3, 2, 0, 1).contiguous()
        module.bias = torch.nn.Parameter(torch.from_numpy(linear.bias))
        module.norm = None  # type: ignore[assignment]
        quantizer = activation_quantizer(ranges[name], kind)
        module.register_forward_pre_hook(lambda _, fed, q=quantizer: (fake_quantized(fed[0], q),))
        if kind == "unsigned" and f"{name}.output" in ranges:
            given, block = activation_quantizer(ranges[f"{name}.output"], kind), name.rpartition(".")[0]
            module.register_forward_hook(lambda _, __, made, q=given: fake_quantized(made, q))
            if not name.endswith(".project"):
                continue
            stream = activation_quantizer(ranges[next(n for n in ranges if n.startswith(f"{block}."))], kind)
            model.get_submodule(block).register_forward_pre_hook(lambda _, fed, q=stream: (fake_quantized(fed[0], q),))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = str(made["graphs"].file(f"image-int8-{kind}.onnx"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model.encode_image(pixels).numpy()
    found = session.run(None, {"pixels": pixels.numpy()})[0]
    assert float((expected * found).sum(axis=1).min()) > 0.9995  # values on the edge between two steps differ


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_verdict_has_candidates_that_are_integers(backend: Any, made: dict[str, Any], tmp_path: Path) -> None:
    """Their graphs, which is what is special about it; nothing here was trained enough to be judged."""
    origin = origin_of(made["quantized"])
    wanted = {*origin.products("image")} - {"image.stem"}
    found = {}
    for candidate, numerics in origin.candidates(backend):
        path = tmp_path / f"{candidate.name}.onnx"
        if candidate.precision == "int8":
            origin.write(path, "image", candidate.name, Variant("int8", numerics))
            found[candidate.name] = {*quantized_linears(path)}
    assert found["all"] == wanted and all(names <= wanted for names in found.values())


def test_names_that_are_no_convolutions_are_refused(made: dict[str, Any]) -> None:
    model = made["quantized"].model
    with pytest.raises(UsageError, match=r"there is no Linear or convolution 'image\.blocks\.0\.fc1'"):
        check_keep(model, ["image.blocks.0.fc1"])
    with pytest.raises(UsageError, match="names every convolution of the image tower"):
        check_keep(model, [name for name in linear_modules(model) if name.startswith("image.")])


def test_fp8_is_refused(made: dict[str, Any], cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli("export", made["quantized"].path, "--precision", "fp8", "--out", tmp_path / "fp8")
    assert ended.code == 2 and "an export in FP8 takes vision transformers" in " ".join(ended.err.split())
    drift = json.loads((made["quantized"].path / "manifest.json").read_text())["metrics"]["calibration"]["drift"]
    assert all(0 < drift[kind]["image"] < 0.1 for kind in ("signed", "unsigned"))
