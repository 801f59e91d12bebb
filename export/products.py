"""The products of any ONNX graph that multiply constant weights: convolutions, Gemm and MatMul.

Our own towers are written with Q/DQ at once (`graph.py`); in a graph that was traced, what can be integers has to be
found. Every weight is seen as a matrix (in, out), as the rounding in `compress/int8` takes it. The inputs of a
convolution are ordered (row, column, channel), as runtimes for x86 lay them out, so that neighbours in the matrix are
those whose products older CPUs add in 16 bits (`int8.weight_scales`).

Before, the graph is folded by ONNX Runtime's basic optimizations, which leave only operators of the ONNX standard:
constants, BatchNorm and scales behind a convolution go into its weights, where one integer product covers them.

Left out, and told by `left_in_float`: convolutions over anything but images, those that pad by a rule which depends on
the size of their input, and transposed ones. Products of two activations, as of attention, have no weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import CorruptInputError, UsageError, require
from mmcompress.int8 import Floats

OPSET = 13
"""The first whose DequantizeLinear has a scale per channel."""
_STANDARD = ("", "ai.onnx")
_WEIGHING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply by weights, if one of their first two inputs is constant."""
Op = Literal["Conv", "Gemm", "MatMul"]


@dataclass(frozen=True)
class Product:
    """A node that multiplies a tensor by constant weights."""

    name: str
    """`image.visual.layer1.0.conv1.Conv`: the tower, and the node's name with dots."""
    node: int
    """Its place in the graph."""
    op: Op
    input: str
    """The tensor that is multiplied."""
    weight: str
    """The initializer that multiplies it."""
    bias: str | None
    """The initializer (out,) that is added, by the node or right behind it; None where nothing constant is."""
    shape: tuple[int, ...]
    """Of the weight as the graph stores it."""
    groups: int = 1
    """Of a convolution."""
    transposed: bool = False
    """Whether a Gemm stores its weight as (out, in)."""

    @property
    def linear(self) -> bool:
        """Whether it is a Linear over the channels: each output reads one place of its input."""
        return self.op != "Conv" or (self.shape[2:] == (1, 1) and self.groups == 1)

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.shape[1] == 1

    @property
    def torn(self) -> bool:
        """Whether runtimes differ in which inputs are neighbours: an odd number of channels at a kernel's places."""
        return not self.linear and self.shape[1] > 1 and self.shape[1] % 2 == 1

    @property
    def size(self) -> tuple[int, int]:
        """(in, out) of the matrix."""
        out = self.shape[0] if self.op == "Conv" or self.transposed else self.shape[1]
        return int(np.prod(self.shape)) // out, out

    def matrix(self, weight: Floats) -> Floats:
        """The weight as the graph stores it -> (in, out)."""
        if self.op == "Conv":
            weight = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
        return np.ascontiguousarray(weight.T if self.transposed else weight)

    def stored(self, matrix: NDArray[np.int8]) -> NDArray[np.int8]:
        """(in, out) -> as a graph of integers stores it, in which a Gemm is a MatMul."""
        if self.op != "Conv":
            return matrix
        outputs, channels, height, width = self.shape
        return np.ascontiguousarray(matrix.reshape(height, width, channels, outputs).transpose(3, 2, 0, 1))


def folded(source: Path, work: Path) -> Any:
    """The ModelProto of a graph with its constants, BatchNorms and scales folded; `work` is a path to write to."""
    onnx, runtime = require("onnx", "compress"), require("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(work)
    options.log_severity_level = 3
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{work.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(1 << 20))
    try:
        runtime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        model = onnx.load(str(work))
    except Exception as error:  # its exception classes have no public base
        reason = str(error).strip().splitlines()[0]
        raise CorruptInputError(f"onnxruntime cannot load {source}: {reason}", "export the artifact again") from error
    standard = [opset for opset in model.opset_import if opset.domain in _STANDARD]
    if len(standard) != 1 or standard[0].version < OPSET:
        raise UsageError(
            f"{source} is of opset {[opset.version for opset in standard]}, and a scale per channel needs {OPSET}",
            f"export it with opset {OPSET} or later",
        )
    used = {node.domain for node in model.graph.node}
    needed = [opset for opset in model.opset_import if opset.domain in _STANDARD or opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(needed)
    for node in model.graph.node:
        if node.op_type == "Conv":
            _pad_by_numbers(node, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    return model


def _pad_by_numbers(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Say the padding of a convolution as numbers, where its rule gives the same ones for every size of the input."""
    given, shape = attributes(node), shapes.get(node.input[1], ())
    rule, axes = given.get("auto_pad", b"NOTSET").decode(), len(shape) - 2
    if rule == "NOTSET" or axes < 1:
        return
    pads = [0] * 2 * axes
    if rule != "VALID":
        if set(given.get("strides", [1])) != {1}:
            return
        dilations = given.get("dilations") or [1] * axes
        for axis, (kernel, dilation) in enumerate(zip(shape[2:], dilations, strict=True)):
            less, more = sorted((dilation * (kernel - 1) // 2, -(-dilation * (kernel - 1) // 2)))
            pads[axis], pads[axes + axis] = (less, more) if rule == "SAME_UPPER" else (more, less)
    stayed = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*stayed, require("onnx", "compress").helper.make_attribute("pads", pads)])


def products_of(model: Any, tower: str) -> list[Product]:
    """Every product of a ModelProto, in the order of its nodes; two of one name get numbers."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    behind = {name: node for node in model.graph.node if node.op_type == "Add" for name in node.input}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    names: Counter[str] = Counter()
    found = []
    for place, node in enumerate(model.graph.node):
        if len(node.input) < 2 or node.domain not in _STANDARD:
            continue
        x, weight = node.input[0], weights.get(node.input[1])
        if weight is None or x in weights or weight.data_type != 1:
            continue
        product = _product(node, place, tuple(weight.dims))
        if product is None:
            continue
        added = node.input[2] if len(node.input) > 2 else _added(node, behind, readers)
        bias = added if added in weights and tuple(weights[added].dims) == product.size[1:] else None
        name = _name(tower, node)
        names[name] += 1
        name = name if names[name] == 1 else f"{name}.{names[name]}"
        found.append(Product(**{**vars(product), "name": name, "bias": bias}))
    return found


def left_in_float(model: Any, products: Iterable[Product], tower: str) -> list[str]:
    """What else of a ModelProto multiplies by weights, and why it is no product: `image.up.ConvTranspose: …`."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {product.node for product in products}
    return [
        f"{_name(tower, node)}: {_reason(node, [weights.get(name) for name in node.input[:2]])}"
        for place, node in enumerate(model.graph.node)
        if place not in known and node.op_type in _WEIGHING and any(name in weights for name in node.input[:2])
    ]


def _reason(node: Any, tensors: Sequence[Any]) -> str:
    """Why a node is none of the products."""
    if node.op_type == "ConvTranspose":
        return "a transposed convolution"
    if node.op_type == "Conv" and tensors[1] is not None and (axes := len(tensors[1].dims) - 2) != 2:
        return f"a convolution over {axes} {'axis' if axes == 1 else 'axes'}"
    if node.op_type == "Conv" and tensors[1] is not None and tensors[1].data_type == 1:
        return "a convolution that pads by the size of its input"
    return f"a {node.op_type} of another form"


def _name(tower: str, node: Any) -> str:
    return f"{tower}.{(node.name or node.output[0]).strip('/').replace('/', '.').removeprefix(f'{tower}.')}"


def _product(node: Any, place: int, shape: tuple[int, ...]) -> Product | None:
    """A product without its name and bias; None for a node that is none, or whose form is left out."""
    given = attributes(node)
    op = node.op_type
    common: Mapping[str, Any] = {"name": "", "node": place, "bias": None, "shape": shape}
    if op == "Conv" and len(shape) == 4 and given.get("auto_pad", b"NOTSET") == b"NOTSET":
        return Product(op="Conv", input=node.input[0], weight=node.input[1], groups=given.get("group", 1), **common)
    if op == "MatMul" and len(shape) == 2:
        return Product(op="MatMul", input=node.input[0], weight=node.input[1], **common)
    plain = not given.get("transA") and given.get("alpha", 1) == 1 and given.get("beta", 1) == 1
    if op == "Gemm" and plain:
        transposed = bool(given.get("transB"))
        return Product(op="Gemm", input=node.input[0], weight=node.input[1], transposed=transposed, **common)
    return None


def _added(node: Any, behind: Mapping[str, Any], readers: Mapping[str, int]) -> str | None:
    """What the Add right behind a MatMul adds, if nothing else reads the product."""
    following = behind.get(node.output[0])
    if node.op_type != "MatMul" or following is None or readers[node.output[0]] != 1:
        return None
    return str(next((name for name in following.input if name != node.output[0]), ""))


def attributes(node: Any) -> dict[str, Any]:
    """By name."""
    helper = require("onnx", "compress").helper
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def arrays_of(model: Any) -> dict[str, Floats]:
    """Every initializer by name."""
    numpy_helper = require("onnx", "compress").numpy_helper
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
