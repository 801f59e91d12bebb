"""What TensorRT's parser and builder refuse, found in the graph before they see it, with the layer's name.

TensorRT says of many faults that an assertion failed somewhere in its own sources, and of some nothing until the end of
a build. So each rule that it enforces is a row of `RULES`: what it looks for, and what to do. The reference of every
row is TensorRT-RTX 1.7, which a test gives a graph that breaks it. One row is stricter: unsigned 8-bit activations with
a zero point of 0 are taken by the parser, which computes them as signed ones. What TensorRT takes has no row: int64,
double, dynamic scales, one scale per channel on activations, and opsets up to 26.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import UsageError, require

_LARGE = 1 << 16
"""Elements of a tensor whose values say nothing about types."""
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPERATORS = ("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Where", "MatMul", "Gemm", "Conv", "LayerNormalization")
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_SHAPES = {"Reshape": (1,), "Expand": (1,), "Tile": (1,), "TopK": (1,), "Slice": (1, 2, 3, 4), "ConstantOfShape": (0,)}
"""Inputs that say how large an output is."""
Found = Iterator[tuple[Any, str]]
"""A node, an initializer or an input, and what is wrong with it."""


class Read:
    """A ModelProto with its constants, and the type of every tensor as far as it can be inferred."""

    def __init__(self, model: Any, supported: Callable[[str], bool] = lambda op: True) -> None:
        self.onnx = require("onnx", "compress")
        self.model, self.graph, self.supported = model, model.graph, supported
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def values(self, name: str) -> NDArray[Any] | None:
        """Of a small constant."""
        tensor = self.constants.get(name)
        if tensor is None or int(np.prod(tensor.dims)) > _LARGE or tensor.external_data:
            return None
        values: NDArray[Any] = self.onnx.numpy_helper.to_array(tensor)
        return values

    @cached_property
    def types(self) -> dict[str, str]:
        """`FLOAT16` by tensor; large constants become inputs first, as inference copies the model."""
        light = type(self.model)()
        light.CopyFrom(self.onnx.helper.make_model(self.onnx.helper.make_graph([], "light", [], [])))
        del light.opset_import[:]
        light.opset_import.extend(self.model.opset_import)
        light.ir_version = self.model.ir_version
        light.graph.node.extend(self.graph.node)
        light.graph.input.extend(self.graph.input)
        light.graph.output.extend(self.graph.output)
        for tensor in self.graph.initializer:
            if int(np.prod(tensor.dims)) > _LARGE or tensor.external_data:
                value = self.onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                light.graph.input.append(value)
            else:
                light.graph.initializer.append(tensor)
        inferred = self.onnx.shape_inference.infer_shapes(light).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
        kinds |= {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        return {name: self.kind(number) for name, number in kinds.items()}

    def kind(self, number: int) -> str:
        return str(self.onnx.TensorProto.DataType.Name(number))

    def of(self, *operators: str) -> Iterator[Any]:
        return (node for node in self.graph.node if node.op_type in operators)

    def given(self, node: Any, name: str, default: Any) -> Any:
        """An attribute's value."""
        found = (attribute for attribute in node.attribute if attribute.name == name)
        return next((self.onnx.helper.get_attribute_value(attribute) for attribute in found), default)


def zero_points(read: Read) -> Found:
    for node in read.of(*_QUANTIZED):
        values = read.values(node.input[2]) if len(node.input) > 2 else None
        if values is not None and np.any(values.astype(np.float64)):
            yield node, f"its zero point is {int(np.abs(values.astype(np.float64)).max())}, and only 0 is taken"


def signed_integers(read: Read) -> Found:
    for node in read.of(*_QUANTIZED):
        if "UINT8" in (read.types.get(name) for name in (*node.input[2:3], *_stored(node))):
            yield node, "it has unsigned 8-bit integers, which are computed as signed ones or refused"


def restored_integers(read: Read) -> Found:
    taken = ("INT8", "UINT8", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1", "FLOAT8E8M0")
    for node in read.of(*_QUANTIZED):
        for name in (*node.input[2:3], *_stored(node)):
            if read.types.get(name, "INT8") not in taken:
                yield node, f"it has integers of {read.types[name]}; a bias stays in float"
                break


def _stored(node: Any) -> tuple[str, ...]:
    return tuple(node.input[:1]) if node.op_type == "DequantizeLinear" else ()


def positive_scales(read: Read) -> Found:
    for node in read.of(*_QUANTIZED):
        values = read.values(node.input[1])
        if values is not None and not (values.astype(np.float64) > 0).all():
            yield node, "it has a scale that is not positive"


def scale_shapes(read: Read) -> Found:
    for node in read.of(*_QUANTIZED):
        scale = read.constants.get(node.input[1])
        zero = read.constants.get(node.input[2]) if len(node.input) > 2 else None
        stored = read.constants.get(node.input[0])
        if scale is not None and zero is not None and int(np.prod(scale.dims)) != int(np.prod(zero.dims)):
            yield node, f"it has {int(np.prod(scale.dims))} scales and {int(np.prod(zero.dims))} zero points"
        elif scale is not None and stored is not None and int(np.prod(scale.dims)) > 1:
            axis, rank = read.given(node, "axis", 1), len(stored.dims)
            if not -rank <= axis < rank:
                yield node, f"its axis is {axis}, and the tensor has {rank}"


def no_integer_operators(read: Read) -> Found:
    for node in read.graph.node:
        if node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPERATORS:
            yield node, "it is an operator on integers; TensorRT takes QuantizeLinear and DequantizeLinear around it"


def known_operators(read: Read) -> Found:
    for node in read.graph.node:
        if not read.supported(node.op_type):
            domain = f" of {node.domain}" if node.domain else ""
            yield node, f"TensorRT has no operator {node.op_type}{domain}"


def known_types(read: Read) -> Found:
    unknown = {"STRING", "COMPLEX64", "COMPLEX128", "INT16", "UINT16", "UINT32", "UINT64", "FLOAT8E5M2"}
    for value in (*read.graph.input, *read.graph.output):
        if (kind := read.kind(value.type.tensor_type.elem_type)) in unknown:
            yield value, f"TensorRT has no tensors of {kind}"
    for tensor in read.graph.initializer:
        if (kind := read.kind(tensor.data_type)) in unknown:
            readers = (node for node in read.graph.node if tensor.name in node.input)
            yield next(readers, tensor), f"TensorRT has no tensors of {kind}, as {tensor.name!r} is"
    for node in read.of("Cast"):
        if (kind := read.kind(read.given(node, "to", 1))) in unknown:
            yield node, f"TensorRT has no tensors of {kind}"


def bytes_are_cast(read: Read) -> Found:
    for node in read.graph.node:
        if node.op_type not in ("Cast", *_QUANTIZED) and any(
            read.types.get(name) == "UINT8" and name not in read.constants for name in node.input
        ):
            yield node, "it computes with uint8: cast that to a float first"


def one_type(read: Read) -> Found:
    for node in read.of(*_ARITHMETIC):
        values = node.input[1:] if node.op_type == "Where" else node.input
        kinds = {read.types[name] for name in values if name in read.types}
        if len(kinds) > 1:
            yield node, f"its inputs are {' and '.join(sorted(kinds))}, and a strongly typed network takes one type"


def float_products(read: Read) -> Found:
    for node in read.of(*_PRODUCTS):
        kinds = {read.types.get(name, "FLOAT") for name in node.input[:2]}
        if wrong := sorted(kind for kind in kinds if kind in ("INT32", "INT64")):
            yield node, f"it multiplies matrices of {wrong[0]}"


def no_sums_of_booleans(read: Read) -> Found:
    for node in read.of("Add", "Sub", "Mul", "Div", "Min", "Max"):
        if "BOOL" in {read.types.get(name) for name in node.input}:
            yield node, "it computes with booleans: cast them first"


def no_training(read: Read) -> Found:
    for node in read.of("BatchNormalization"):
        if read.given(node, "training_mode", 0):
            yield node, "it is in training mode"
    for node in read.of("Dropout"):
        if len(node.input) > 2 and np.any(read.values(node.input[2])):
            yield node, "it is in training mode"


def plain_resizing(read: Read) -> Found:
    for node in read.of("Resize"):
        if read.given(node, "antialias", 0):
            yield node, "it smooths against aliasing, which TensorRT does not: resize before the graph"


def integers_are_restored(read: Read) -> Found:
    for node in read.graph.node:
        if node.op_type == "DequantizeLinear":
            continue
        if any(name in read.constants and read.types.get(name) == "INT8" for name in node.input[:2]):
            yield node, "it reads INT8 weights, which only DequantizeLinear may"


def no_shape_inputs(read: Read) -> Found:
    inputs = {value.name for value in read.graph.input} - set(read.constants)
    for node in read.of(*_SHAPES):
        for place in _SHAPES[node.op_type]:
            if place < len(node.input) and node.input[place] in inputs:
                yield (
                    node,
                    f"the input {node.input[place]!r} says how large a tensor is, and a profile has no range for it",
                )


def dynamic_batches(read: Read) -> Found:
    for value in read.graph.input:
        if value.name not in read.constants:
            free = [place for place, axis in enumerate(value.type.tensor_type.shape.dim) if not axis.dim_value]
            if any(free):
                yield (
                    value,
                    f"its axis {max(free)} is dynamic, and profiles are ranges of batches: only the first may be",
                )


def recent_opset(read: Read) -> Found:
    standard = [opset.version for opset in read.model.opset_import if opset.domain in ("", "ai.onnx")]
    if standard and standard[0] < 7:
        yield read.graph.node[0], f"the graph is of opset {standard[0]}, and TensorRT vouches for 7 and later"


@dataclass(frozen=True)
class Rule:
    """Something that TensorRT refuses."""

    broken: Callable[[Read], Found]
    hint: str


_EXPORT = "export the checkpoint with mmcompress, and build its signed INT8 graph or a float one"
_FLOAT = "export the graph again with this in float"
RULES = (
    Rule(recent_opset, "export it with opset 17 or later"),
    Rule(no_integer_operators, _EXPORT),
    Rule(known_operators, "export the graph without it, or for a CPU runtime"),
    Rule(known_types, _FLOAT),
    Rule(dynamic_batches, "export it with fixed sizes"),
    Rule(zero_points, _EXPORT),
    Rule(signed_integers, _EXPORT),
    Rule(restored_integers, _EXPORT),
    Rule(positive_scales, "quantize it again"),
    Rule(scale_shapes, "quantize it again"),
    Rule(integers_are_restored, "restore them with DequantizeLinear first"),
    Rule(bytes_are_cast, _FLOAT),
    Rule(one_type, "cast one of them"),
    Rule(float_products, _FLOAT),
    Rule(no_sums_of_booleans, _FLOAT),
    Rule(no_training, "export the model for inference"),
    Rule(plain_resizing, "export it without preprocessing in the graph"),
    Rule(no_shape_inputs, "export it with fixed sizes"),
)


def check_graph(path: Path, supported: Callable[[str], bool] = lambda op: True) -> None:
    """Raise UsageError with the first layer of an ONNX file that TensorRT does not take; `supported` is the parser's
    own answer for an operator."""
    onnx = require("onnx", "compress")
    read = Read(onnx.load(str(path), load_external_data=False), supported)
    for rule in RULES:
        found = list(rule.broken(read))
        if found:
            layer, what = found[0]
            more = Counter(id(one) for one, _ in found)
            others = f" ({len(more)} layers in all)" if len(more) > 1 else ""
            raise UsageError(f"TensorRT does not take {path.name}: {_named(layer)}: {what}{others}", rule.hint)


def _named(layer: Any) -> str:
    """`node 'image.blocks.0.qkv' (MatMul)`; a node without a name is called by what it gives."""
    if hasattr(layer, "op_type"):
        return f"node {layer.name or layer.output[0]!r} ({layer.op_type})"
    return f"tensor {layer.name!r}"
