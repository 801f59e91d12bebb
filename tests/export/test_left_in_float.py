"""Which products of a graph become integers, and that the others are named, against torch's own operators."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mmcompress.compress.trace import traced
from mmcompress.export.products import attributes, folded, left_in_float, products_of

INPUT = np.random.default_rng(1).standard_normal((1, 2, 9, 8), dtype=np.float32)


class Odd(nn.Module):
    """What convolutional networks have beside plain convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.line = nn.Conv1d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.up(self.plain(x)).mean(dim=3)).mean(dim=2)  # type: ignore[no-any-return]


def exported(module: nn.Module, path: Path) -> Path:
    traced(module, torch.zeros(1, 3, 16, 12), "pixels", path)
    return path


def padded(path: Path, **given: Any) -> Path:
    """A graph of one convolution of a kernel (4, 3), padded by a rule; (1, 2, 9, 8) -> …"""
    helper, rng = onnx.helper, np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((5, 2, 4, 3), dtype=np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **given)],
        "padded",
        [value("x", onnx.TensorProto.FLOAT, [1, 2, 9, 8])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def answer(model: str | bytes) -> Any:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": INPUT})[0]


def test_what_cannot_be_integers_is_named_with_why(tmp_path: Path) -> None:
    model = folded(exported(Odd(), tmp_path / "odd.onnx"), tmp_path / "folded.onnx")
    products = products_of(model, "image")
    assert [product.name for product in products] == ["image.plain.Conv"]
    assert left_in_float(model, products, "image") == [
        "image.up.ConvTranspose: a transposed convolution",
        "image.line.Conv: a convolution over 1 axis",
    ]


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_by_a_rule_becomes_numbers_that_give_the_same(rule: str, tmp_path: Path) -> None:
    source = padded(tmp_path / "rule.onnx", auto_pad=rule)
    model = folded(source, tmp_path / "folded.onnx")
    (product,) = products_of(model, "image")
    assert "auto_pad" not in attributes(model.graph.node[product.node])
    assert np.array_equal(answer(model.SerializeToString()), answer(str(source)))


def test_padding_by_a_rule_of_a_dilated_kernel_is_that_of_torch(tmp_path: Path) -> None:
    """ONNX Runtime itself refuses such a convolution before its padding is numbers."""
    source = padded(tmp_path / "rule.onnx", auto_pad="SAME_UPPER", dilations=[1, 3])
    model = folded(source, tmp_path / "folded.onnx")
    weight = torch.from_numpy(onnx.numpy_helper.to_array(onnx.load(source).graph.initializer[0]).copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch pads a copy for kernels of an even side
        wanted = nn.functional.conv2d(torch.from_numpy(INPUT), weight, padding="same", dilation=(1, 3))
    np.testing.assert_allclose(answer(model.SerializeToString()), wanted.numpy(), atol=1e-5)


def test_padding_that_depends_on_the_size_of_the_input_stays_and_is_named(tmp_path: Path) -> None:
    source = padded(tmp_path / "rule.onnx", auto_pad="SAME_UPPER", strides=[2, 2])
    model = folded(source, tmp_path / "folded.onnx")
    assert products_of(model, "image") == []
    assert left_in_float(model, [], "image") == ["image.conv: a convolution that pads by the size of its input"]
    assert np.array_equal(answer(model.SerializeToString()), answer(str(source)))
