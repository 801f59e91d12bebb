"""Which Linears of a graph TensorRT's sparse kernels could take: constant weights of which every output reads at most
two of four neighbouring inputs (NVIDIA TensorRT developer guide, "Structured Sparsity").

Eligible is not faster: the builder times sparse kernels against dense ones and takes what wins, on its own GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmcompress.errors import require
from mmcompress.export.audit import linear_of
from mmcompress.export.graph import Array

GROUP, KEPT = 4, 2
"""Of every four neighbouring inputs two are read."""


def two_four_weights(path: Path) -> list[str]:
    """Modules of an ONNX file whose matrix products all have 2:4 weights, in order of execution."""
    onnx = require("onnx", "compress")
    graph = onnx.load(str(path)).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    by_module: dict[str, bool] = {}
    for node in graph.node:
        module = linear_of(node.name) if node.op_type == "MatMul" else None
        tensor = weights.get(f"{node.name}.weight")
        if module is not None and tensor is not None:
            by_module[module] = by_module.get(module, True) and is_two_four(onnx.numpy_helper.to_array(tensor))
    return [module for module, sparse in by_module.items() if sparse]


def is_two_four(weight: Array) -> bool:
    """(in, out): whether of every four neighbouring inputs each output reads two at most."""
    if len(weight) % GROUP:
        return False
    return bool((np.count_nonzero(weight.reshape(-1, GROUP, weight.shape[1]), axis=1) <= KEPT).all())
