"""Image towers of chosen sizes with random weights, as ONNX: what a latency is measured on before a model is pruned.

A graph's time depends on its sizes and not on its weights, so a size can be timed before anything is trained or fitted
to it. The graphs are those of `towers.py`, which is what ships.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.architecture import AnyImageConfig, DualEncoderConfig
from mmcompress.artifact import Artifact
from mmcompress.config import Precision
from mmcompress.convnet import ConvConfig
from mmcompress.export.export import VARIANTS, described, save_graph
from mmcompress.export.graph import Array, AttentionProduct, Numerics
from mmcompress.export.integers import OUTPUT
from mmcompress.export.sums import ends_of
from mmcompress.export.towers import convolutions_of, image_graph
from mmcompress.int8 import Range, attention_operands, linear_modules
from mmcompress.manifest import Kind, hash_json
from mmcompress.tensornames import entries

OPSET = 18
RANGE = {"low": -4.0, "high": 4.0, "absmax": 4.0}
"""Of every activation: a LayerNorm's output is rarely beyond."""
POSITIVE = {**RANGE, "low": 0.0}
"""Of what a ReLU gives, which runtimes then leave out."""


def write_probes(
    model: DualEncoderConfig,
    towers: Sequence[AnyImageConfig],
    folder: Path,
    precision: Precision = "fp32",
    attention: tuple[AttentionProduct, ...] = (),
) -> Artifact:
    """An ONNX artifact in `folder` with one image graph for each of the towers, in their order, as CPUs get it."""
    key = hash_json([precision, attention, *(tower.model_dump(mode="json") for tower in towers)])
    variant = next(v for v in VARIANTS if v.precision == precision and v.numerics.activations != "signed")
    with Artifact.create(folder, kind=Kind.ONNX, stage="probe", key=key) as draft:
        for index, tower in enumerate(towers):
            config = model.model_copy(update={"image": tower})
            tensors = random_tensors(config, index)
            numerics = replace(variant.numerics, ranges=probe_ranges(config, tensors), attention=attention)
            proto: Any = image_graph(config, tensors, numerics, OPSET)
            path = draft.path / f"image-{index:03d}.onnx"
            save_graph(proto, path)
            draft.graphs.append(described(proto, path.name, "image", variant))
    return Artifact.open(folder)


def probe_ranges(config: DualEncoderConfig, tensors: Mapping[str, Array]) -> dict[str, Range]:
    """Of everything that an image graph may quantize."""
    ranges: dict[str, Range] = dict.fromkeys((*linear_modules(config), *attention_operands(config)), RANGE)
    if isinstance(config.image, ConvConfig):
        model = image_graph(config, tensors, Numerics(), OPSET)
        behind = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}
        products = convolutions_of(config, model)
        for product in products:
            ranges[product.name] = POSITIVE if product.input in behind else RANGE
            ranges[f"{product.name}.{OUTPUT}"] = RANGE
        ranges |= {f"{one.name}.{OUTPUT}": POSITIVE for one in ends_of(model, products)}
    return ranges


def random_tensors(config: DualEncoderConfig, seed: int) -> dict[str, Array]:
    """The image tower's tensors under their names at rest: small normal weights, norms that change nothing."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for entry in entries(config, ("image",)):
        norm = ".norm" in entry.ours[0]
        for name, sizes in entry.theirs.items():
            shape = tuple(map(int, sizes))
            if norm:
                tensors[name] = np.full(shape, float(name.endswith(("weight", "running_var"))), np.float32)
            else:
                tensors[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return tensors
