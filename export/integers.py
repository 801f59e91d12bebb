"""A graph with some of its products as integers: explicit Q/DQ around them, the rest as it is.

Q/DQ goes on what a product reads, as in our own graphs (`graph.py`): weights stored as int8 with a scale per output
channel, activations with one scale per tensor, biases in float. Products that read one tensor share its Q/DQ.

What a convolution gives can be quantized as well. OpenVINO and TensorRT are faster without: they write floats, or fuse
the next Q into the product. ONNX Runtime computes a convolution in integers only where Q follows it (`QLinearConv`).
Sums of residual blocks, pooling and the projection read integers where that is asked for (`sums.py`). ONNX Runtime also
joins a MatMul and an Add of two axes to a Gemm again, which it computes in float: so there the negated bias is
subtracted, which is the same number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import UsageError, require
from mmcompress.export.graph import Ranges
from mmcompress.export.products import Product
from mmcompress.export.sums import Sum, ends_of, sums_of
from mmcompress.int8 import Floats, IntegerLinear, Linears, Range, Signedness, activation_quantizer

OUTPUT = "output"
"""`NAME.output` has the range of what a convolution gives, behind its ReLU where it ends a tower or its maps."""


def with_integers(
    model: Any,
    products: Sequence[Product],
    linears: Linears,
    ranges: Ranges,
    kind: Signedness,
    outputs: Collection[str] = (),
    sums: bool = False,
) -> Any:
    """A copy of a ModelProto in which the products that `linears` names multiply integers of one kind.

    `ranges` are of what each of them reads, equal for those that read one tensor. The convolutions in `outputs` have
    their output quantized as well, by the range `NAME.output`. With `sums`, in graphs for CPUs, so have those in
    front of a residual sum that have such a range, and the sum reads the stream behind its Q/DQ; and so have those in
    front of pooling and the projection, behind their ReLU.
    """
    taken = [product for product in products if product.name in linears]
    cpu = sums and kind == "unsigned"
    possible = sums_of(model, taken) if cpu else []
    added = [one for one in possible if f"{one.branch}.{OUTPUT}" in ranges]
    outputs = {*outputs, *(one.branch for one in added)}
    streams = {one.node: one for one in added}
    ends = {one.node: one.name for one in (ends_of(model, taken) if cpu else []) if f"{one.name}.{OUTPUT}" in ranges}
    writer = _Writer(linears, ranges, kind)
    by_node = {product.node: product for product in taken}
    corrected = {
        model.graph.node[product.node].output[0]: product
        for product in by_node.values()
        if product.op == "MatMul" and product.bias
    }
    for place, node in enumerate(model.graph.node):
        if (product := by_node.get(place)) is not None:
            writer.product(product, node, outputs)
        elif node.op_type == "Add" and (read := [name for name in node.input if name in corrected]):
            writer.add(node, corrected[read[0]])
        elif (one := streams.get(place)) is not None:
            writer.sum(node, one)
        elif (name := ends.get(place)) is not None:
            writer.end(node, name)
        else:
            writer.keep(node)
    return writer.model(model)


class _Writer:
    """Collects the nodes and the initializers that are new."""

    def __init__(self, linears: Linears, ranges: Ranges, kind: Signedness) -> None:
        self._onnx = require("onnx", "compress")
        self._linears, self._ranges, self._kind = linears, ranges, kind
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._quantized: dict[str, str] = {}
        self._replaced: set[str | None] = set()

    def keep(self, node: Any, **changed: Sequence[str]) -> None:
        """Append a node, with other `input` or `output` names if they are given."""
        copied = self._onnx.NodeProto()
        copied.CopyFrom(node)
        for field, names in changed.items():
            del getattr(copied, field)[:]
            getattr(copied, field).extend(names)
        self._nodes.append(copied)

    def add(self, node: Any, product: Product) -> None:
        """The Add behind a MatMul, with the bias that was fitted."""
        fitted = self._constant(f"{product.name}.bias", self._linears[product.name].bias)
        self.keep(node, input=[fitted if name == product.bias else name for name in node.input])

    def sum(self, node: Any, one: Sum) -> None:
        """A residual's Add, which reads the stream as products do."""
        stream = self._through(one.stream, self._range(one.reader))
        self.keep(node, input=[stream if name == one.stream else name for name in node.input])

    def end(self, node: Any, name: str) -> None:
        """The ReLU behind a convolution of this name, and Q/DQ behind it."""
        raw = f"{name}.{OUTPUT}"
        self.keep(node, output=[raw])
        self._pair(raw, self._range(raw), node.output[0])

    def product(self, product: Product, node: Any, outputs: Collection[str]) -> None:
        linear, name = self._linears[product.name], product.name
        self._replaced |= {product.weight, product.bias}
        x = self._through(product.input, self._range(name))
        weight = self._weight(product, linear)
        if product.op == "Conv":
            bias = [self._constant(f"{name}.bias", linear.bias)] if product.bias else list(node.input[2:])
            raw = f"{name}.raw" if name in outputs else node.output[0]
            self.keep(node, input=[x, weight, *bias], output=[raw])
            if name in outputs:
                self._pair(raw, self._range(f"{name}.{OUTPUT}"), node.output[0])
        elif product.op == "MatMul" or not node.input[2:]:
            self._node("MatMul", name, [x, weight], node.output[0])
        else:
            self._node("MatMul", name, [x, weight], f"{name}.product")
            if product.bias:
                negated = self._constant(f"{name}.bias", -linear.bias)
                self._node("Sub", f"{name}.add", [f"{name}.product", negated], node.output[0])
            else:
                self._node("Add", f"{name}.add", [f"{name}.product", node.input[2]], node.output[0])

    def _weight(self, product: Product, linear: IntegerLinear) -> str:
        name, scales = f"{product.name}.weight", linear.scales.astype(np.float32)
        stored = self._constant(name, product.stored(linear.weight))
        scale = self._constant(f"{name}.scale", scales)
        zero = self._constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8))
        axis = 0 if product.op == "Conv" else 1
        return self._node("DequantizeLinear", f"{name}.dequantize", [stored, scale, zero], axis=axis)

    def _through(self, x: str, ends: Range) -> str:
        """DQ(Q(x)), made once."""
        if x not in self._quantized:
            self._quantized[x] = self._pair(x, ends, f"{x}.dequantized")
        return self._quantized[x]

    def _pair(self, x: str, ends: Range, output: str) -> str:
        quantizer = activation_quantizer(ends, self._kind)
        scale = self._constant(f"{x}.scale", np.asarray(quantizer.scale))
        zero = self._constant(f"{x}.zero_point", np.asarray(quantizer.zero_point, dtype=quantizer.dtype))
        quantized = self._node("QuantizeLinear", f"{x}.quantize", [x, scale, zero], f"{x}.quantized")
        return self._node("DequantizeLinear", f"{x}.dequantize", [quantized, scale, zero], output)

    def _range(self, name: str) -> Range:
        if name not in self._ranges:
            raise UsageError(f"there is no calibrated range for {name!r}", "quantize the graphs again")
        return dict(self._ranges[name])

    def _constant(self, name: str, values: Floats | NDArray[Any]) -> str:
        self._constants[name] = self._onnx.numpy_helper.from_array(np.array(values, order="C"), name)
        return name

    def _node(self, op: str, name: str, inputs: Sequence[str], output: str | None = None, **given: Any) -> str:
        output = output or name
        self._nodes.append(self._onnx.helper.make_node(op, list(inputs), [output], name=name, **given))
        return output

    def model(self, source: Any) -> Any:
        """The source's ModelProto with these nodes, and of its initializers those that are read."""
        read = {name for node in self._nodes for name in node.input}
        floats = (t for t in source.graph.initializer if t.name not in self._constants)
        stayed = [t for t in floats if t.name in read or t.name not in self._replaced]
        graph = self._onnx.helper.make_graph(
            self._nodes,
            source.graph.name,
            source.graph.input,
            source.graph.output,
            [*stayed, *self._constants.values()],
        )
        return self._onnx.helper.make_model(
            graph,
            opset_imports=source.opset_import,
            ir_version=source.ir_version,
            producer_name="mmcompress",
        )
