"""What convolutions give to sums and to the last steps of a tower in a graph of integers, where no product reads it.

Where Q/DQ stands on the inputs of products only, the sum reads floats, so the stream is kept twice: ONNX Runtime
computes the convolution in front of it in float, and OpenVINO quantizes the stream apart and adds some of the sums
apart. With Q/DQ on the stream that is added and on what the convolution gives, OpenVINO adds inside of the convolution,
and ONNX Runtime computes `QLinearConv` and `QLinearAdd`. Both sides have scales of their own: with one for both the two
compile the same layers. TensorRT-RTX compiles as many layers with and without, and every convolution in INT8: so in
graphs for it sums read floats, which cost no accuracy.

Pooling and the projection read floats as well. With Q/DQ behind the ReLU of the convolution in front of each, ONNX
Runtime computes that convolution in integers too, and pools integers; OpenVINO does so in any case, in the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmcompress.export.products import Product

FLOATS = (["GlobalAveragePool"], ["Reshape"])
"""What reads floats behind a ReLU: pooling, and what brings the projection its rows."""


@dataclass(frozen=True)
class Sum:
    """An Add of a stream and of what a convolution gives."""

    node: int
    """Its place in the graph."""
    stream: str
    """The tensor that is read by a product as well."""
    reader: str
    """A product that reads it, whose range is the stream's."""
    branch: str
    """The convolution, whose output nothing else reads."""


@dataclass(frozen=True)
class End:
    """A ReLU whose output is read by what is no product and no sum: pooling, or a reshape."""

    node: int
    """Its place in the graph."""
    name: str
    """The convolution in front of it."""


def ends_of(model: Any, products: Sequence[Product]) -> list[End]:
    """The ReLUs of a ModelProto between products and the steps of a tower that stay floats, in the order of nodes."""
    nodes = model.graph.node
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    given = {nodes[product.node].output[0]: product.name for product in products if product.op == "Conv"}
    return [
        End(place, given[node.input[0]])
        for place, node in enumerate(nodes)
        if node.op_type == "Relu"
        and readers[node.input[0]] == ["Relu"]
        and node.input[0] in given
        and readers.get(node.output[0]) in FLOATS
    ]


def sums_of(model: Any, products: Sequence[Product]) -> list[Sum]:
    """The sums of a ModelProto between the products that are integers, in the order of its nodes."""
    nodes = model.graph.node
    readers = Counter(name for node in nodes for name in node.input)
    readers.update(value.name for value in model.graph.output)
    given = {nodes[product.node].output[0]: product.name for product in products if product.op == "Conv"}
    read = {product.input: product.name for product in reversed(products)}
    found = []
    for place, node in enumerate(nodes):
        if node.op_type != "Add" or len(set(node.input)) != 2:
            continue
        for stream, branch in (node.input, reversed(node.input)):
            if stream in read and branch in given and readers[branch] == 1:
                found.append(Sum(place, stream, read[stream], given[branch]))
                break
    return found
