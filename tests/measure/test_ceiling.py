"""The ceiling: its arithmetic, and that the INT8 product is an integer product on ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mmcompress.measure import ceiling as module
from mmcompress.measure.ceiling import ceilings, share
from mmcompress.measure.document import Ceiling


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHAPES", ((64, 32, 48), (128, 16, 16)))
    monkeypatch.setattr(module, "SECONDS", 0.0)


def test_each_kernel_is_measured_once() -> None:
    kernels = [("onnxruntime", "fp32", 1), ("openvino", "int8", 1), ("onnxruntime", "fp32", 1)]
    found, missing = ceilings(kernels)  # type: ignore[arg-type]
    assert missing == []
    assert [(one.backend, one.precision, one.threads) for one in found] == [
        ("onnxruntime", "fp32", 1),
        ("openvino", "int8", 1),
    ]
    assert all(one.gmacs_per_s > 0 and one.shape in module.SHAPES for one in found)


def test_onnx_runtime_multiplies_integers(tmp_path: Path) -> None:
    """A product of two plain matrices would become a float Gemm behind a DequantizeLinear."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    with module._product("int8", 32, 48) as artifact:
        path = str(artifact.file("product.onnx"))
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "MatMulIntegerToFloat" in kinds and not {"MatMul", "Gemm"} & kinds


def test_the_int8_product_is_close_to_the_float_one() -> None:
    values = np.random.default_rng(1).standard_normal((1, module.ROWS, 32), dtype=np.float32)
    results = []
    for precision in ("fp32", "int8"):
        with module._product(precision, 32, 48) as artifact:  # type: ignore[arg-type]
            session = onnxruntime.InferenceSession(str(artifact.file("product.onnx")))
            results.append(session.run(None, {"values": values})[0])
    assert np.corrcoef(results[0].ravel(), results[1].ravel())[0, 1] > 0.999


def test_without_onnx_there_is_no_ceiling_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    found, missing = ceilings([("onnxruntime", "fp32", 1), ("tensorrt", "fp16", None)])
    assert found == []
    assert missing[0].startswith("The ceiling of fp32 on onnxruntime is unknown: this needs the Python package 'onnx'")
    assert missing[1] == "No ceiling is measured on tensorrt."


def test_the_share_is_of_the_same_kernel() -> None:
    known = [Ceiling(backend="openvino", device="CPU", precision="int8", threads=2, gmacs_per_s=100.0, shape=(8, 8, 8))]
    assert share(known, ("openvino", "int8", 2), 50_000_000, 1000.0) == pytest.approx(0.5)
    assert share(known, ("openvino", "int8", 1), 50_000_000, 1000.0) is None
    assert share(known, ("openvino", "int8", 2), None, 1000.0) is None
