"""The audit reads TensorRT's build log; these lines were printed by TensorRT-RTX 1.7.1."""

from __future__ import annotations

from mmcompress.export.audit import audit_log, linear_of, parse_layers, summary_of

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


def test_a_layer_line_is_read_whole() -> None:
    (layer,) = parse_layers(["[I] Layers:\n" + INT8_GEMM + "\n"])
    assert (layer.name, layer.kind) == ("image.blocks.0.out_U1", "gemm")
    assert (layer.inputs, layer.constants, layer.outputs) == (("Int8",), ("Int8",), ("Half",))
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
