"""Small ONNX artifacts, made with onnx.helper, and what numpy says that they compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIDE, CONTEXT, DIM, PAD, EOS, HIDDEN = 8, 6, 16, 1, 2, 24
WORDS = ["red", "green", "blue", "white", "black", "circle"]


@dataclass(frozen=True)
class Model:
    """Weights of a toy dual encoder: a linear image tower with a ReLU, and a mean of token embeddings."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    table: NDArray[np.float32]

    def images(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        hidden = np.maximum(pixels.reshape(len(pixels), -1) @ self.first, 0)
        return unit_rows(hidden @ self.second)

    def texts(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        return unit_rows(self.table[tokens].mean(axis=1))


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    normalized: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalized


def make_model(seed: int = 0, dim: int = DIM) -> Model:
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((3 * SIDE * SIDE, HIDDEN), dtype=np.float32) / 14
    second = rng.standard_normal((HIDDEN, dim), dtype=np.float32)
    return Model(first, second, rng.standard_normal((len(WORDS) + 4, dim), dtype=np.float32))


def image_onnx(model: Model, quantized: bool = False) -> onnx.ModelProto:
    nodes = [helper.make_node("Flatten", ["pixels"], ["flat"])]
    values = {"second": model.second}
    weight, activation = "first", "flat"
    if quantized:
        scale = np.abs(model.first).max(axis=0) / 127
        values |= {
            "w8": np.round(model.first / scale).astype(np.int8),
            "ws": scale.astype(np.float32),
            "wz": np.zeros(HIDDEN, np.int8),
            "as": np.array(8 / 255, np.float32),
            "az": np.array(128, np.uint8),
        }
        nodes += [
            helper.make_node("QuantizeLinear", ["flat", "as", "az"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "as", "az"], ["dq"]),
            helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=1),
        ]
        weight, activation = "w", "dq"
    else:
        values["first"] = model.first
    nodes += [
        helper.make_node("MatMul", [activation, weight], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("MatMul", ["relu", "second"], ["embedding"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    return assembled(nodes, pixels, model.second.shape[1], values)


def text_onnx(model: Model) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], axis=0),
        helper.make_node("ReduceMean", ["rows", "axes"], ["embedding"], keepdims=0),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["n", CONTEXT])
    return assembled(nodes, tokens, model.table.shape[1], {"table": model.table, "axes": np.array([1])})


def assembled(nodes: list[Any], given: Any, dim: int, values: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "toy", [given], [embedding], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto)
    return proto


def write_tokenizer(path: Path) -> None:
    """<bos>=0 <pad>=1 <eos>=2 <unk>=3, then the words."""
    vocab = {"<bos>": 0, "<pad>": PAD, "<eos>": EOS, "<unk>": 3} | {word: 4 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", EOS)]
    )
    tokenizer.save(str(path))
