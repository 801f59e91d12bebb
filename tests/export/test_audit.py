"""The audit reads what TensorRT says of an engine: lines as TensorRT-RTX 1.7.1 prints them, and lines and JSON of the
inspector in the shape of public logs of TensorRT 8.6 to 10 (NVIDIA/TensorRT, issues 3737, 4020 and 4397)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_clip import clip_of, config_of, tensors_of, wide_ranges

from mmcompress.errors import GateFailedError
from mmcompress.export.audit import UNSEEN, audit_of, check_audit, linear_of, quantized_linears, summary_of
from mmcompress.export.document import Audit
from mmcompress.export.export import save_graph
from mmcompress.export.graph import Numerics
from mmcompress.export.layers import layers_of_inspector, layers_of_log, precision_of
from mmcompress.export.towers import image_graph

SHAPE = "Strides: [256,1], StrideOrder: [1,0]"


def tensor(kind: str, dims: str = "-1,256") -> str:
    return f"{{ Name: x, Dimensions: [{dims}], {SHAPE}, Datatype: {kind}, Format: (Linear) Row major linear format }}"


def line(name: str, kind: str, inputs: list[str], constants: list[str], output: str, *nodes: str) -> str:
    data = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {', '.join(inputs)}], Constants: [ {', '.join(constants)}], "
        f"Outputs: [ {tensor(output)}], TacticName: , StreamId: 0, Metadata: {data}"
    )


ALPHA = tensor("Float", "1")
INT8_GEMM = line(
    "image.blocks.0.out_U1", "gemm", [tensor("Int8")], [tensor("Int8"), ALPHA, ALPHA], "Half",
    "image.blocks.0.out", "image.blocks.0.out.input.dequantize",
)  # fmt: skip
FALLEN_BACK = line(
    "__myl_CastMulFc_myl0_5", "runtime_fusion", [tensor("Int8"), tensor("Half")], [], "Half", "image.blocks.0.qkv"
)
EPILOGUE = line(
    "__myl_MulAdd_myl0_12",
    "kgen",
    [tensor("Half")],
    [tensor("Half")],
    "Int8",
    "image.blocks.0.out",
    "image.blocks.0.fc1",
)
ATTENTION = line("_gemm_mha_v2_myl0_9", "kgen", [tensor("Half")] * 3, [], "Int8", "image.blocks.0.attention.scores")


QUANTIZED = {"image.blocks.0.out": "int8", "image.blocks.0.qkv": "int8"}


def audit_log(log: list[str], quantized: Mapping[str, str] = QUANTIZED) -> Audit:
    return audit_of(layers_of_log(log), quantized, log)


def test_a_layer_line_is_read_whole() -> None:
    (layer,) = layers_of_log(["[I] Layers:\n" + INT8_GEMM + "\n"])
    assert (layer.name, layer.kind) == ("image.blocks.0.out_U1", "gemm")
    assert (layer.inputs, layer.constants, layer.outputs) == (("int8",), ("int8",), ("fp16",))
    assert layer.nodes == ("image.blocks.0.out", "image.blocks.0.out.input.dequantize")


def test_a_silent_fall_back_to_half_is_told() -> None:
    log = ["\n".join((INT8_GEMM, FALLEN_BACK, EPILOGUE, ATTENTION)), "Total Weights Memory: 5102084 bytes"]
    audit = audit_log(log)
    assert audit.modules == {"image.blocks.0.out": "int8", "image.blocks.0.qkv": "fp16"}
    assert audit.products == {"fp16": 1, "int8": 1}
    assert audit.attention == {"fp16": 1}
    assert audit.weights_bytes == 5102084
    assert audit.layers == 4
    assert summary_of(audit).not_int8 == ("image.blocks.0.qkv",)
    assert summary_of(audit).modules == {"fp16": 1, "int8": 1}


def test_a_module_in_two_products_counts_as_its_widest() -> None:
    query = INT8_GEMM.replace("image.blocks.0.out]", "image.blocks.0.qkv.q]")
    assert audit_log([query]).modules == {"image.blocks.0.qkv": "int8"}
    assert audit_log([query + "\n" + FALLEN_BACK]).modules == {"image.blocks.0.qkv": "fp16"}


def test_an_empty_log_claims_nothing() -> None:
    audit = audit_log(["nothing here"])
    assert audit.layers == 0 and audit.weights_bytes is None and not audit.modules


def test_only_the_products_of_linears_are_modules() -> None:
    assert linear_of("text.blocks.11.fc1") == "text.blocks.11.fc1"
    assert linear_of("image.blocks.5.qkv.kv") == "image.blocks.5.qkv"
    assert linear_of("image.blocks.5.qkv.add") is None
    assert linear_of("image.projection") is None


def classic(kind: str, inputs: list[str], output: str, node: str, **more: Any) -> dict[str, Any]:
    """An entry of the inspector's JSON."""

    def tensors(types: list[str]) -> list[dict[str, Any]]:
        return [{"Name": "t", "Location": "Device", "Dimensions": [8, 256], "Format/Datatype": one} for one in types]

    entry = {"Name": f"{node}_myl0_4", "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors([output])}
    return entry | {"StreamId": 0, "Metadata": f"[ONNX Layer: {node}]"} | more


SCALAR = {"Name": "alpha", "Dimensions": [1], "Format/Datatype": "Float"}
GEMM = classic("gemm", ["Int8", "Int8"], "Half", "image.blocks.0.qkv", TacticName="")
GEMM["Inputs"] += [SCALAR, SCALAR | {"Name": "beta", "Dimensions": []}]
FUSION = classic(
    "fusion", ["Int8", "Half"], "Half", "image.blocks.0.out", TacticName="sm80_xmma_gemm_i8f16_i8i32_f32_tn"
)
CASK = classic(
    "CaskConvolution",
    ["Thirty-two wide channel vectorized row major Int8 format"],
    "Row major linear FP16 format",
    "image.blocks.0.fc1",
    Weights={"Type": "Int8", "Count": 165888},
    Bias={"Type": "Float", "Count": 144},
)
POINTWISE = classic("fusion", ["Half"], "Int8", "image.blocks.0.activation", TacticName="pointwise_vectorized")
MHA = classic("kgen", ["Half"] * 3, "Int8", "image.blocks.0.attention.scores") | {"Name": "_gemm_mha_v2_myl0_6"}


def inspected(*entries: Any) -> list[Any]:
    return layers_of_inspector(json.dumps({"Layers": list(entries), "Bindings": ["pixels", "embedding"]}))


def test_the_inspectors_layers_are_read() -> None:
    layers = inspected(GEMM, FUSION, CASK, POINTWISE, MHA)
    assert [layer.product for layer in layers] == [True, True, True, False, False]
    assert [layer.precision for layer in layers[:3]] == ["int8", "int8", "int8"], "alpha, beta and residuals apart"
    audit = audit_of(layers, dict.fromkeys(("image.blocks.0.qkv", "image.blocks.0.out"), "int8"))
    assert audit.modules == dict.fromkeys([f"image.blocks.0.{part}" for part in ("fc1", "out", "qkv")], "int8")
    assert audit.attention == {"fp16": 1} and audit.kinds["CaskConvolution"] == 1
    check_audit(audit, "image-int8-sm87.engine")


def test_a_classic_product_in_half_is_told() -> None:
    half = classic(
        "gemm", ["Half", "Half"], "Half", "image.blocks.0.qkv", TacticName="sm80_xmma_gemm_f16f16_f16f16_f16_nn"
    )
    assert [layer.precision for layer in inspected(half)] == ["fp16"]
    cask = CASK | {"Inputs": [{"Dimensions": [8, 256], "Format/Datatype": "Row major linear FP32"}]}
    assert [layer.precision for layer in inspected(cask)] == ["fp32"]


UNTOLD = "N/A due to dynamic shapes"


@pytest.mark.parametrize(
    ("kind", "inputs", "more", "precision"),
    [
        ("CaskConvolution", [UNTOLD], {"Weights": {"Type": "Int8", "Count": 9}}, "int8"),
        ("CaskConvolution", [UNTOLD], {"Weights": {"Type": "Half", "Count": 9}}, "fp16"),
        ("gemm", [UNTOLD, "Int8"], {}, "int8"),
        ("gemm", [UNTOLD, UNTOLD], {"TacticName": "ampere_h16816gemm_128x128_ldg8_stages_32x5_tn"}, "fp16"),
        ("gemm", [UNTOLD, UNTOLD], {"TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn"}, "int8"),
        ("gemm", [UNTOLD, UNTOLD], {"TacticName": "ampere_int8_imma_256x128_tn"}, "int8"),
        ("gemm", [UNTOLD, UNTOLD], {"TacticName": "0x00000000000003e8"}, "unknown"),
        ("fusion", ["Int8", UNTOLD], {"TacticName": "gemm_of_some_kind"}, "unknown"),
        ("gemm", [UNTOLD], {}, "unknown"),
    ],
)
def test_what_dynamic_shapes_hide_is_known_otherwise_or_unknown(
    kind: str, inputs: list[str], more: dict[str, Any], precision: str
) -> None:
    layers = inspected(classic(kind, inputs, UNTOLD, "image.blocks.0.qkv", **more))
    assert [(layer.product, layer.precision) for layer in layers] == [(True, precision)]


def test_a_linear_of_unknown_type_is_not_said_to_be_wide(capfd: pytest.CaptureFixture[str]) -> None:
    wanted = {"image.blocks.0.qkv": "int8", "image.blocks.0.out": "int8"}
    hidden = classic("gemm", [UNTOLD], UNTOLD, "image.blocks.0.qkv")
    audit = audit_of(inspected(hidden, classic("gemm", ["Int8"], "Half", "image.blocks.0.out")), wanted)
    with pytest.raises(
        GateFailedError, match=r"does not say in which type e computes 1 of its 2 INT8 Linears"
    ) as caught:
        check_audit(audit, "e")
    assert "--allow-fallback" in caught.value.hint and "are not" not in caught.value.what
    check_audit(audit, "e", allow_fallback=True)
    assert "warning: TensorRT does not say" in " ".join(capfd.readouterr().err.split())


def test_layers_without_metadata_are_known_by_their_names() -> None:
    joined = GEMM | {"Name": "image.blocks.0.qkv + image.blocks.0.qkv.add", "Metadata": ""}
    (layer,) = inspected(joined)
    assert layer.nodes == ("image.blocks.0.qkv", "image.blocks.0.qkv.add")
    (layer,) = inspected(joined | {"Name": "image.blocks.0.q+image.blocks.0.k_myl0_79"})
    assert layer.nodes == ("image.blocks.0.q", "image.blocks.0.k")


def test_lines_of_ten_have_no_constants() -> None:
    tensor = "{ Name: x, Dimensions: [1,40,1024], Format/Datatype: Int8 }"
    line = (
        f"Name: image.blocks.0.qkv_myl0_77, LayerType: gemm, Inputs: [ {tensor}], Outputs: [ {tensor}], TacticName: "
        "sm80_xmma_gemm_i8f16_i8i32_f32_nn_n_tilesize32x32x64, StreamId: 0, Metadata: [ONNX Layer: image.blocks.0.qkv]"
    )
    (layer,) = layers_of_log([line])
    assert layer.product and layer.precision == "int8" and layer.nodes == ("image.blocks.0.qkv",)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", json.dumps({"Layers": ["a name alone"]})])
def test_what_is_no_detailed_inspection_has_no_layers_and_fails(text: str) -> None:
    audit = audit_of(layers_of_inspector(text), QUANTIZED)
    assert audit.layers == 0
    with pytest.raises(GateFailedError, match="says nothing of the layers of e that can be read") as caught:
        check_audit(audit, "e")
    assert "--allow-fallback" in caught.value.hint
    check_audit(audit, "e", allow_fallback=True)


def test_a_linear_that_fell_back_fails_with_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    audit = audit_log([INT8_GEMM + "\n" + FALLEN_BACK])
    with pytest.raises(GateFailedError, match=r"1 of 2 INT8 Linears of e are not: image\.blocks\.0\.qkv \(fp16\)"):
        check_audit(audit, "e")
    check_audit(audit, "e", allow_fallback=True)
    assert "warning: 1 of 2 INT8 Linears" in " ".join(capfd.readouterr().err.split())


def test_an_engine_that_fell_back_as_a_whole_says_so() -> None:
    audit = audit_log([FALLEN_BACK], {"image.blocks.0.qkv": "int8", "image.blocks.0.fc2": "int8"})
    assert summary_of(audit).not_int8 == ("image.blocks.0.fc2", "image.blocks.0.qkv")
    with pytest.raises(GateFailedError, match=f"fell back as a whole: none of its 2 INT8 .*fp16, {UNSEEN}"):
        check_audit(audit, "e")


def test_linears_that_were_kept_are_not_asked_for(tmp_path: Path) -> None:
    config = config_of()
    kept = frozenset({"image.blocks.0.out"})
    numerics = Numerics(np.float16, "signed", wide_ranges(config), kept=kept)
    save_graph(image_graph(config, tensors_of(clip_of(config)), numerics, 18), tmp_path / "graph.onnx")
    wanted = audit_of([], quantized_linears(tmp_path / "graph.onnx")).quantized
    assert set(wanted) == {f"image.blocks.{i}.{part}" for i in (0, 1) for part in ("qkv", "out", "fc1", "fc2")} - kept
    assert set(wanted.values()) == {"int8"}


@pytest.mark.parametrize(
    ("datatype", "precision"),
    [
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Four wide channel vectorized row major Int8 format", "int8"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("Int32", "int32"),
    ],
)
def test_types_go_by_many_names(datatype: str, precision: str) -> None:
    assert precision_of(datatype) == precision
