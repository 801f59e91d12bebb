"""One tower as an ONNX graph whose products become integers: what goes into them, and what it embeds with integers.

Everything runs on ONNX Runtime, from files in a work folder: the graph in float shows its tensors as further outputs, a
few samples at a time, so that memory does not grow with the samples; and what is judged is the very graph that is
delivered, not a simulation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmcompress.errors import CorruptInputError, require
from mmcompress.export.export import write_model
from mmcompress.export.integers import with_integers
from mmcompress.export.products import Product, arrays_of, attributes, folded, products_of
from mmcompress.int8 import Floats, IntegerLinear, Linears, Range, Signedness, quantize_weight
from mmcompress.runtime.encoder import unit
from mmcompress.runtime.onnxruntime import onnxruntime_module
from mmcompress.runtime.session import Tower

Feeds = Mapping[str, NDArray[Any]]
"""Inputs of a graph by name, of one batch."""
SHOWN_BYTES = 256 << 20
"""Of the tensors that are shown at a time."""


@dataclass(frozen=True, eq=False)
class GraphTower:
    """A folded graph in float, and a folder that it may write graphs to."""

    name: Tower
    model: Any
    products: tuple[Product, ...]
    work: Path
    sums: bool = False
    """Whether the sums of residual blocks read integers, in graphs for CPUs."""

    @staticmethod
    def of(source: Path, name: Tower, work: Path) -> GraphTower:
        """Read the graph in a file."""
        work.mkdir(parents=True, exist_ok=True)
        model = folded(source, work / f"{name}-folded.onnx")
        return GraphTower(name, model, tuple(products_of(model, name)), work)

    @cached_property
    def parameters(self) -> Mapping[str, tuple[Floats, Floats]]:
        """(in, out) and (out,) of each product; the bias is 0 where none is known."""
        arrays = arrays_of(self.model)
        return {
            product.name: (
                product.matrix(arrays[product.weight]),
                arrays[product.bias] if product.bias else np.zeros(product.size[1], np.float32),
            )
            for product in self.products
        }

    @property
    def by_input(self) -> dict[str, list[Product]]:
        """Products by the tensor that they read."""
        grouped: dict[str, list[Product]] = {}
        for product in self.products:
            grouped.setdefault(product.input, []).append(product)
        return grouped

    def output_of(self, product: Product) -> str:
        """The tensor that a product gives."""
        return str(self.model.graph.node[product.node].output[0])

    def embedded(self, model: Any, batches: Iterable[Feeds]) -> Tensor:
        """(N, D) of unit norm. NaN would pass every budget, so it is refused here."""
        session = self._opened(model)
        embeddings = np.concatenate([session.run(None, dict(feeds))[0] for feeds in batches])
        if not np.isfinite(embeddings).all():
            raise CorruptInputError(
                f"the {self.name} graph answers calibration samples with NaN or infinity",
                "its activations overflow: check it with `mmcompress drift`",
            )
        return torch.from_numpy(unit(embeddings))

    def quantized(self, linears: Linears, ranges: Mapping[str, Range], kind: Signedness) -> Any:
        """The ModelProto in which the products that are named are integers."""
        return with_integers(self.model, self.products, linears, ranges, kind, sums=self.sums)

    def show(
        self,
        names: Sequence[str],
        batches: Iterable[Feeds],
        see: Callable[[str, Tensor], None],
        seen: Callable[[], None] = lambda: None,
    ) -> None:
        """Show tensors of the graph in float, in pieces that fit into memory; `seen` is called after each batch."""
        given = {value.name for value in self.model.graph.input}
        inner = [name for name in names if name not in given]
        onnx = require("onnx", "compress")
        opened = type(self.model)()
        opened.CopyFrom(self.model)
        value = onnx.helper.make_tensor_value_info
        opened.graph.output.extend(value(name, onnx.TensorProto.FLOAT, None) for name in inner)
        session = self._opened(opened)
        at_once = 1
        for feeds in batches:
            rows = len(next(iter(feeds.values())))
            start = 0
            while start < rows:
                piece = {name: array[start : start + at_once] for name, array in feeds.items()}
                start += at_once
                tensors = dict(zip(inner, session.run(inner, piece), strict=True)) if inner else {}
                each = sum(tensor.nbytes for tensor in tensors.values()) // len(next(iter(piece.values()))) or 1
                at_once = max(1, SHOWN_BYTES // each)
                for name in names:
                    see(name, torch.from_numpy(piece[name] if name in given else tensors[name]))
            seen()

    def _opened(self, model: Any) -> Any:
        path = self.work / f"{self.name}-tried.onnx"
        write_model(model, path)
        runtime = onnxruntime_module()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows_of(product: Product, x: Tensor) -> Tensor:
    """What a Linear over the channels reads -> (rows, in); of a convolution (B, C, H, W)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2) if product.op == "Conv" else x.flatten(0, -2)


def computed(product: Product, node: Any, x: Tensor, matrix: Floats) -> Tensor:
    """What a product makes of x with the weight (in, out), without its bias."""
    weight = torch.from_numpy(matrix.astype(np.float32))
    if product.op != "Conv":
        return x @ weight
    given = attributes(node)
    outputs, channels, height, width = product.shape
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    return F.conv2d(
        F.pad(x, (left, right, top, bottom)),
        weight.reshape(height, width, channels, outputs).permute(3, 2, 0, 1),
        stride=tuple(given.get("strides", (1, 1))),
        dilation=tuple(given.get("dilations", (1, 1))),
        groups=product.groups,
    )


def plain(product: Product, weight: Floats, bias: Floats, kind: Signedness) -> IntegerLinear:
    """Every weight (in, out) at its nearest step."""
    integers, scales = quantize_weight(paired(product, weight), kind)
    return IntegerLinear(unpaired(product, integers), scales, bias)


def paired(product: Product, weight: Floats) -> Floats:
    """(in, out) -> with every input twice where neighbours are not known, so that each is its own neighbour."""
    return np.repeat(weight, 2, axis=0) if product.torn else weight


def unpaired(product: Product, integers: NDArray[np.int8]) -> NDArray[np.int8]:
    """The inverse of `paired`."""
    return integers[::2] if product.torn else integers
