"""An image graph in two: everything up to a block, and the rest, with what is sent between them as FP16 or INT8.

Our graphs name every tensor after its module, and between two blocks only the residual stream is alive, (N, T, W). The
halves carry their ends themselves, so any runtime runs them: the first one gives `sent`, rounded to 16 bits, or to
8 bits with a scale for each token (a CLIP's stream has a few large channels, and few tokens that have them).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mmcompress.errors import UsageError, require
from mmcompress.measure.split.document import Wire

SENT, SCALE = "sent", "scale"
Cuts = dict[int, tuple[str, int, int]]
"""Blocks of the first half -> the tensor behind them, and its tokens and width."""
_BLOCK = re.compile(r"^image\.blocks\.(\d+)\.residual2$")


def stream_of(model: Any, where: str) -> Cuts:
    """Behind every block but the last one.

    Raises UsageError for a graph whose blocks have no names, and for a convolutional tower.
    """
    onnx = require("onnx", "compress")
    made = {name for node in model.graph.node for name in node.output}
    blocks = sorted(int(match[1]) for name in made if (match := _BLOCK.match(name)))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inferred.value_info
    }
    if any(node.op_type == "Conv" and node.name.startswith("image.blocks.") for node in model.graph.node):
        raise UsageError(
            f"{where} is of a convolutional tower, and split cuts between blocks of transformers",
            "run it whole on one of the devices: `mmcompress bench` on each says where it is faster",
        )
    if len(blocks) < 2 or blocks != list(range(len(blocks))):
        raise UsageError(
            f"{where} has no two transformer blocks that are known by name",
            "give the export of a checkpoint; a teacher becomes one: mmcompress export TEACHER --precision fp32",
        )
    found = {}
    for block in blocks[:-1]:
        name = f"image.blocks.{block}.residual2"
        _, tokens, width = shapes[name]
        found[block + 1] = (name, tokens, width)
    return found


def halves(model: Any, tensor: str, wire: Wire | None) -> tuple[Any, Any]:
    """(first, second) of a graph, cut behind a tensor; None sends it as it is."""
    onnx = require("onnx", "compress")
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model, data_prop=True))
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    first, second = extractor.extract_model(inputs, [tensor]), extractor.extract_model([tensor], outputs[:1])
    if wire is not None:
        kind = first.graph.output[0].type.tensor_type.elem_type
        shape = [axis.dim_value or None for axis in first.graph.output[0].type.tensor_type.shape.dim]
        sending, receiving = _int8(tensor, kind, shape) if wire == "int8" else _fp16(tensor, kind, shape)
        first.graph.node.extend(sending[0])
        first.graph.initializer.extend(sending[1])
        del first.graph.output[:]
        first.graph.output.extend(sending[2])
        nodes = [*receiving, *second.graph.node]
        del second.graph.node[:], second.graph.input[:]
        second.graph.node.extend(nodes)
        second.graph.input.extend(sending[2])
    for half in (first, second):
        onnx.checker.check_model(half, full_check=True)
    return first, second


def sent_bytes(tokens: int, width: int, wire: Wire) -> int:
    """Of one image."""
    return 2 * tokens * width if wire == "fp16" else tokens * width + 4 * tokens


Sending = tuple[list[Any], list[Any], list[Any]]
"""Nodes, initializers, and the outputs that take the tensor's place."""


def _fp16(tensor: str, kind: int, shape: list[int | None]) -> tuple[Sending, list[Any]]:
    onnx = require("onnx", "compress")
    half = onnx.TensorProto.FLOAT16
    value = onnx.helper.make_tensor_value_info(SENT, half, shape)
    sending = [onnx.helper.make_node("Cast", [tensor], [SENT], to=half)]
    return (sending, [], [value]), [onnx.helper.make_node("Cast", [SENT], [tensor], to=kind)]


def _int8(tensor: str, kind: int, shape: list[int | None]) -> tuple[Sending, list[Any]]:
    """x ~ sent * scale, with scale = max |x| / 127 of each token."""
    onnx = require("onnx", "compress")
    make, full, byte = onnx.helper.make_node, onnx.TensorProto.FLOAT, onnx.TensorProto.INT8
    constants = {"sent.axis": np.array([-1]), "sent.least": np.float32(1e-12), "sent.steps": np.float32(127)}
    sending = [
        make("Cast", [tensor], ["sent.real"], to=full),
        make("Abs", ["sent.real"], ["sent.size"]),
        make("ReduceMax", ["sent.size", "sent.axis"], ["sent.largest"], keepdims=1),
        make("Max", ["sent.largest", "sent.least"], ["sent.bound"]),
        make("Div", ["sent.bound", "sent.steps"], [SCALE]),
        make("Div", ["sent.real", SCALE], ["sent.places"]),
        make("Round", ["sent.places"], ["sent.rounded"]),
        make("Cast", ["sent.rounded"], [SENT], to=byte),
    ]
    receiving = [
        make("Cast", [SENT], ["sent.steps.back"], to=full),
        make("Mul", ["sent.steps.back", SCALE], ["sent.back"]),
        make("Cast", ["sent.back"], [tensor], to=kind),
    ]
    values = [
        onnx.helper.make_tensor_value_info(SENT, byte, shape),
        onnx.helper.make_tensor_value_info(SCALE, full, [*shape[:-1], 1]),
    ]
    arrays = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return (sending, arrays, values), receiving
