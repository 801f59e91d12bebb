"""ONNX graphs opened up at the borders of their modules, so that each can be looked at by itself.

Our graphs name every tensor after its module, in every precision, so the borders of one file are found in another. Two
changes to a graph are enough: `with_outputs` makes tensors outputs too, and `cut` lets every module read its inputs
from the caller instead of from the module before it. A cut graph computes each module as the file has it, Q/DQ
included, on whatever it is fed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.config import Backend
from mmcompress.errors import UsageError, require
from mmcompress.manifest import Graph, TensorSpec
from mmcompress.runtime.backends import open_file
from mmcompress.runtime.session import Session, Tower

GIVEN = "given/"
"""In front of the name of a tensor that a cut graph is fed."""
_BLOCK = re.compile(r"^((?:image|text)\.blocks\.\d+)\.(\w+)")
_PART = re.compile(r"^(?:image|text)\.(\w+)")
_PLUMBING = ("mask", "end")
"""Where the text ends and who sees whom: no numbers of the model, and not cut off from what they steer."""
_EXTERNAL = 1 << 30
"""Weights from here on go into a file beside the graph, since a protobuf ends at 2 GiB."""


def border_module(tensor: str, tower: Tower) -> str | None:
    """`image.blocks.5.qkv.kv.add` -> `image.blocks.5.qkv`, `text.final_norm` -> itself; None for plumbing."""
    if match := _BLOCK.match(tensor):
        return f"{match[1]}.{match[2]}"
    if tensor.startswith("embedding"):
        return f"{tower}.embedding"
    part = _PART.match(tensor)
    return None if part is None or part[1] in _PLUMBING else part[0]


@dataclass(frozen=True)
class Opened:
    """A graph of one tower, read for its structure."""

    proto: Any
    tower: Tower

    @staticmethod
    def read(path: Path, tower: Tower) -> Opened:
        onnx = require("onnx", "compress")
        return Opened(onnx.load(str(path)), tower)

    @cached_property
    def types(self) -> dict[str, int]:
        """Element type of every tensor that a node makes."""
        onnx = require("onnx", "compress")
        inferred = onnx.shape_inference.infer_shapes(self.proto, strict_mode=True).graph
        values = (*inferred.value_info, *inferred.output, *inferred.input)
        return {value.name: value.type.tensor_type.elem_type for value in values}

    @cached_property
    def constants(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def constant(self, name: str) -> NDArray[Any]:
        """An initializer's values."""
        values: NDArray[Any] = require("onnx", "compress").numpy_helper.to_array(self.constants[name])
        return values

    @cached_property
    def borders(self) -> list[str]:
        """Tensors that one module makes and another one reads, or that leave the graph, in order of execution."""
        makers = {output: node for node in self.proto.graph.node for output in node.output}
        modules = {name: border_module(name, self.tower) for name in makers}
        read: set[str] = {value.name for value in self.proto.graph.output}
        for node in self.proto.graph.node:
            reader = border_module(node.output[0], self.tower)
            read |= {name for name in node.input if name in makers and modules[name] != reader}
        return [name for name in makers if name in read and modules[name] is not None]

    @cached_property
    def products(self) -> dict[str, Product]:
        """The quantized Linears, by the name of their output; attention products are no Linears."""
        makers = {node.output[0]: node for node in self.proto.graph.node}
        products = {}
        for name, node in makers.items():
            sides = [makers.get(side) for side in node.input]
            restored = all(s is not None and s.op_type == "DequantizeLinear" for s in sides)
            if node.op_type == "MatMul" and restored and sides[1].input[0] in self.constants:  # type: ignore[union-attr]
                quantize = makers[sides[0].input[0]]  # type: ignore[union-attr]
                kind = {"INT8": "signed", "UINT8": "unsigned"}.get(self._kind(quantize.output[0]))
                if kind is None:  # FP8
                    continue
                read = quantize.input[0]
                module = border_module(name, self.tower)
                while border_module(read, self.tower) == module and makers[read].op_type == "Transpose":
                    read = makers[read].input[0]  # the same rows in another order
                products[name] = Product(read, kind)
        return products

    def _kind(self, tensor: str) -> str:
        return str(require("onnx", "compress").TensorProto.DataType.Name(self.types[tensor]))


def check_same_checkpoint(reference: Opened, candidate: Opened) -> None:
    """Raise UsageError where half of the LayerNorms have other gains: one broken module does not look like that."""
    gains = [
        name for name in reference.constants if re.search(r"norm\d?\.weight$", name) and name in candidate.constants
    ]
    different = [n for n in gains if not np.allclose(reference.constant(n), candidate.constant(n), rtol=1e-3)]
    if gains and len(different) >= len(gains) / 2:
        raise UsageError(
            f"{len(different)} of {len(gains)} LayerNorms of the {reference.tower} tower differ in their gains, so the "
            "two are not exports of one checkpoint",
            "INT8 may have been smoothed: export its FP32 from the same checkpoint, "
            "mmcompress export QUANTIZED --precision fp32",
        )


@dataclass(frozen=True)
class Product:
    """A quantized Linear: what it reads, and in which integers."""

    reads: str
    kind: Any


def with_outputs(graph: Opened, tensors: Iterable[str]) -> Any:
    """The graph with more outputs."""
    proto = _copy(graph.proto)
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(_value(graph, name, name, 0) for name in tensors if name not in present)
    return proto


def cut(graph: Opened, tensors: Mapping[str, int]) -> Any:
    """The graph with every reader of the tensors (name and rank) fed by the caller, and the tensors as outputs."""
    proto = with_outputs(graph, tensors)
    for node in proto.graph.node:
        reader = border_module(node.output[0], graph.tower)
        for place, name in enumerate(node.input):
            if name in tensors and border_module(name, graph.tower) != reader:
                node.input[place] = GIVEN + name
    proto.graph.input.extend(_value(graph, name, GIVEN + name, rank) for name, rank in tensors.items())
    return proto


def _copy(proto: Any) -> Any:
    copied = type(proto)()
    copied.CopyFrom(proto)
    return copied


def _value(graph: Opened, tensor: str, name: str, rank: int) -> Any:
    onnx = require("onnx", "compress")
    if tensor not in graph.types:
        raise UsageError(
            f"nothing says of which type {tensor!r} of the {graph.tower} tower is: it comes from no operator of ONNX",
            "bisect what `mmcompress export` wrote",
        )
    shape = [None] * rank if rank else None
    return onnx.helper.make_tensor_value_info(name, graph.types[tensor], shape)


def opened_session(
    proto: Any, file: Path, like: Graph, backend: Backend, ranks: Mapping[str, int], outputs: Sequence[str]
) -> Session:
    """Write a graph to a file and open it; `ranks` are of the tensors it is fed beyond its own inputs."""
    onnx = require("onnx", "compress")
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) < _EXTERNAL:
        onnx.save_model(proto, str(file))
    else:
        onnx.save_model(proto, str(file), save_as_external_data=True, location=f"{file.name}.data")
    types = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}

    def spec(name: str, rank: int) -> TensorSpec:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(types[name])).name
        return TensorSpec(name=name, shape=(None,) * rank, dtype=dtype)

    inputs = (*like.inputs, *(spec(GIVEN + name, rank) for name, rank in ranks.items()))
    described = like.model_copy(update={"inputs": inputs, "outputs": tuple(spec(name, 0) for name in outputs)})
    return open_file(file, described, backend)


def common_borders(reference: Opened, candidate: Opened) -> list[str]:
    """The borders that both graphs have, in the reference's order."""
    common = [name for name in reference.borders if name in set(candidate.borders)]
    modules = [{border_module(name, g.tower) for name in g.borders} for g in (reference, candidate)]
    if not common or not any(".blocks." in name for name in common):
        lacking = sorted(filter(None, modules[0] - modules[1]))[:3]
        raise UsageError(
            f"the {reference.tower} graphs have no modules in common ({', '.join(lacking) or 'none is named'})",
            "bisect compares two exports of one checkpoint, which `mmcompress export` wrote",
        )
    return common
