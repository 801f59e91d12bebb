"""ONNX graphs written node by node: the layers of a transformer, in float, half or explicit Q/DQ.

Writing beats tracing here. Every node carries the name of its module (`image.blocks.0.qkv`), so an audit of a compiled
engine, a bisect or a sensitivity study reads like the model; the bytes depend on the weights and the config alone;
and no torch is needed. The trade-off is that the architecture is spelled twice (`model.py` and `towers.py`), which the
export stage pays for by comparing the two on every export.

Precision is a property of the writer. `dtype` is the type of the residual stream and of all that is not quantized;
with `activations` set, the input and the weight of each Linear get QuantizeLinear/DequantizeLinear pairs, and the
attention products do where they are asked for; Q/DQ on residuals and LayerNorm inputs ruins a CLIP ViT. Integers that
were fitted to data are stored as they are; a Linear without any is rounded to nearest, and one that is kept stays in
`dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress import __version__, float8
from mmcompress.errors import UsageError, require
from mmcompress.int8 import (
    OPERANDS,
    Linears,
    Signedness,
    activation_quantizer,
    product_scale,
    quantize_rows,
    quantize_weight,
)

Array = NDArray[Any]
Ranges = Mapping[str, Mapping[str, float]]
Value = tuple[str, type[Any], Sequence[int | str]]
"""An input or output: its name, its type, and its shape after the batch, with a name for a free axis."""
AttentionProduct = Literal["scores", "mixed"]
"""q k^T, and the probabilities times v."""
HALF_SCALES_OPSET = 19
"""First opset whose QuantizeLinear takes half-precision tensors."""


@dataclass(frozen=True)
class Numerics:
    """Types of one graph."""

    dtype: type[np.float32] | type[np.float16] = np.float32
    """Residual stream, norms, softmax and biases."""
    activations: Literal["float", "signed", "unsigned", "float8"] = "float"
    """How the inputs of the Linears are quantized; `float` is not at all, and `float8` is FP8 in FP16."""
    ranges: Ranges = field(default_factory=dict)
    """Calibrated range of the input of each Linear, and of each operand of the attention products."""
    integers: Linears = field(default_factory=dict)
    """Fitted weights, scales and biases of Linears, for this kind of activation."""
    kept: frozenset[str] = frozenset()
    """Linears that are not quantized."""
    attention: tuple[AttentionProduct, ...] = ()
    """Attention products that are quantized, in every block."""
    table: bool = False
    """The table of token embeddings is stored in 8 bits, one scale a row."""
    by_token: bool = True
    """Whether graphs for TensorRT have attention in the order that spares TensorRT-RTX a copy (`blocks.py`)."""

    @property
    def half_products(self) -> bool:
        """Whether products of 8-bit numbers are written as FP16: graphs for TensorRT."""
        return self.dtype is np.float16 and self.activations in ("signed", "float8")


class GraphWriter:
    """Collects nodes and initializers; a node's output tensor has the node's name."""

    def __init__(self, opset: int, numerics: Numerics) -> None:
        half_scales = (numerics.activations != "float" or numerics.table) and numerics.dtype is np.float16
        self.opset = max(opset, HALF_SCALES_OPSET) if half_scales else opset
        self.numerics = numerics
        self._onnx = require("onnx", "compress")
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def constant(self, name: str, values: Array | Sequence[int]) -> str:
        """Store an initializer under `name`; plain integers become int64, as shapes and axes are."""
        array = np.ascontiguousarray(values if isinstance(values, np.ndarray) else np.array(values, dtype=np.int64))
        if name in self._initializers:
            raise ValueError(f"two initializers are named {name!r}")
        # from_array would turn a 0-d array made contiguous into a 1-d one
        tensor = self._onnx.numpy_helper.from_array(array.reshape(np.shape(values)), name)
        self._initializers[name] = tensor
        return name

    def real(self, name: str, values: Array | float) -> str:
        """Store numbers in the graph's own float type."""
        return self.constant(name, np.asarray(values).astype(self.numerics.dtype))

    def node(self, op: str, name: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Append a node and return the name of its (first) output."""
        outputs = list(outputs) or [name]
        self._nodes.append(self._onnx.helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return str(outputs[0])

    def cast(self, name: str, x: str, dtype: type[Any]) -> str:
        return self.node("Cast", name, x, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, name: str, x: str, shape: Sequence[int]) -> str:
        """A 0 in the shape keeps that axis, which leaves the batch dynamic."""
        return self.node("Reshape", name, x, self.constant(f"{name}.shape", shape))

    def rows_of(self, name: str, table: Array, places: str) -> str:
        """Table (V, W), places (N, T) -> (N, T, W).

        In 8 bits CPU runtimes take rows out before they become numbers; the other way round they would restore the
        whole table, at every call or for good. TensorRT takes integers behind a DequantizeLinear only, which it moves
        behind the rows by itself: with TensorRT-RTX 1.7 the plan holds the integers.
        """
        dtype = self.numerics.dtype
        if not self.numerics.table:
            return self.node("Gather", name, self.real(f"{name}.weight", table), places)
        integers, scales = quantize_rows(table, dtype)
        stored = self.constant(f"{name}.weight", integers)
        if dtype is np.float16:
            scale = self.constant(f"{name}.scales", scales)
            zero = self.constant(f"{name}.zero_point", np.zeros(scales.shape, np.int8))
            restored = self.node("DequantizeLinear", f"{name}.dequantize", stored, scale, zero, axis=0)
            return self.node("Gather", name, restored, places)
        steps = self.cast(f"{name}.steps", self.node("Gather", f"{name}.rows", stored, places), dtype)
        scale = self.node("Gather", f"{name}.scale", self.constant(f"{name}.scales", scales[:, None]), places)
        return self.node("Mul", name, steps, scale)

    def layer_norm(self, name: str, x: str, weight: Array, bias: Array, eps: float) -> str:
        """(..., W) -> (..., W); in FP32 whatever the graph's type is, since FP16 sums of squares overflow."""
        half = self.numerics.dtype is np.float16
        inner = f"{name}.float" if half else name
        x = self.cast(f"{name}.input", x, np.float32) if half else x
        scale = self.constant(f"{name}.weight", weight.astype(np.float32))
        shift = self.constant(f"{name}.bias", bias.astype(np.float32))
        y = self.node("LayerNormalization", inner, x, scale, shift, axis=-1, epsilon=eps)
        return self.cast(name, y, np.float16) if half else y

    def linear(
        self,
        name: str,
        x: str,
        weight: Array,
        bias: Array,
        module: str | None = None,
        columns: slice = slice(None),
        by_token: bool = False,
    ) -> str:
        """(..., in) @ (in, out) + (out,) -> (..., out).

        `module` names the Linear if it is not `name`, and `columns` the part of its outputs that this is. With
        `by_token`, (N, T, in) is multiplied as (T, N, in).
        """
        numerics, module = self.numerics, module or name
        if numerics.activations == "float" or module in numerics.kept:
            return self.float_linear(name, x, weight, bias)
        if by_token:
            x = self.node("Transpose", f"{name}.by_token", x, perm=[1, 0, 2])
        fitted = numerics.integers.get(module)
        if numerics.activations == "float8":
            stored, scales = float8.quantize_weight(weight, numerics.dtype)
        elif fitted is not None:
            stored, scales, bias = fitted.weight[:, columns], fitted.scales[columns], fitted.bias[columns]
        else:
            stored, scales = quantize_weight(weight, numerics.activations, numerics.dtype)
        if numerics.half_products:
            product = self._gained_product(name, x, stored, scales, module)
        else:
            product = self._quantized_product(name, x, stored, scales.astype(numerics.dtype), module)
        if by_token:
            product = self.node("Transpose", f"{name}.by_row", product, perm=[1, 0, 2])
        return self.node("Add", f"{name}.add", product, self.real(f"{name}.bias", bias))

    def float_linear(self, name: str, x: str, weight: Array, bias: Array) -> str:
        """(..., in) @ (in, out) + (out,) -> (..., out), never as integers."""
        product = self.node("MatMul", name, x, self.real(f"{name}.weight", weight))
        return self.node("Add", f"{name}.add", product, self.real(f"{name}.bias", bias))

    def _gained_product(self, name: str, x: str, stored: Array, scales: Array, module: str) -> str:
        """DQ(Q(x)) @ DQ(8-bit weight), of one scale, times the gain of each channel: cannot overflow in FP16.

        TensorRT writes a product as FP16 and multiplies with what is per channel afterwards, and sums of INT8 reach
        millions. One scale it applies before it writes (`int8.product_scale`).
        """
        activation, _ = self._activation(module)
        reach = float8.LARGEST if self.numerics.activations == "float8" else 128
        scale = product_scale(stored, scales, activation, reach)
        product = self._quantized_product(name, x, stored, np.asarray(scale, np.float16), module)
        gains = scales.astype(np.float64) / scale
        return self.node("Mul", f"{name}.scaled", product, self.real(f"{name}.gains", gains))

    def _quantized_product(self, name: str, x: str, stored: Array, scales: Array, module: str) -> str:
        """DQ(Q(x)) @ DQ(8-bit weight): runtimes compile the three into one product."""
        x = self._through_integers(f"{name}.input", x, module)
        weight = self.constant(f"{name}.weight", stored)
        scale = self.constant(f"{name}.weight.scale", scales)
        zero = self.constant(f"{name}.weight.zero_point", np.zeros(scales.shape, stored.dtype))
        axis: dict[str, Any] = {"axis": 1} if scales.ndim else {}
        matrix = self.node("DequantizeLinear", f"{name}.weight.dequantize", weight, scale, zero, **axis)
        return self.node("MatMul", name, x, matrix)

    def attention_product(self, product: AttentionProduct, name: str, left: str, right: str) -> str:
        """`{name}.{product}`: left @ right, as integers where the graph's numerics say so.

        Their ranges are `{name}.query` and so on. The right operand is signed in every kind of graph, as weights are.
        """
        if product in self.numerics.attention:
            operands = OPERANDS[:2] if product == "scores" else OPERANDS[2:]
            names = [f"{name}.{operand}" for operand in operands]
            left = self._through_integers(names[0], left, names[0])
            right = self._through_integers(names[1], right, names[1], "signed")
        return self.node("MatMul", f"{name}.{product}", left, right)

    def _through_integers(self, name: str, x: str, ranged: str, kind: Signedness | None = None) -> str:
        """DQ(Q(x)) by the calibrated range `ranged`; of the graph's own kind if none is given."""
        found, zero_point = self._activation(ranged, kind)
        scale = self.constant(f"{name}.scale", np.asarray(found))
        zero = self.constant(f"{name}.zero_point", zero_point)
        quantized = self.node("QuantizeLinear", f"{name}.quantize", x, scale, zero)
        return self.node("DequantizeLinear", f"{name}.dequantize", quantized, scale, zero)

    def _activation(self, ranged: str, kind: Signedness | None = None) -> tuple[np.floating[Any], Array]:
        """Scale and zero point of a tensor with the calibrated range `ranged`."""
        numerics, ends = self.numerics, self._ranged(ranged)
        if kind is None and numerics.activations == "float8":
            return float8.activation_scale(ends["absmax"], numerics.dtype), np.zeros((), float8.float8())
        kind = kind or ("unsigned" if numerics.activations == "unsigned" else "signed")
        quantizer = activation_quantizer(ends, kind, numerics.dtype)
        return quantizer.scale, np.asarray(quantizer.zero_point, dtype=quantizer.dtype)

    def _ranged(self, name: str) -> Mapping[str, float]:
        if name not in self.numerics.ranges:
            raise UsageError(
                f"there is no calibrated range for {name!r}", "calibrate the checkpoint again: mmcompress quantize"
            )
        return self.numerics.ranges[name]

    def activation(self, name: str, x: str, kind: str) -> str:
        """`quick_gelu` is x sigmoid(1.702 x); `gelu` is 0.5 x (1 + erf(x / sqrt 2)), and `gelu_tanh` has
        tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for the erf; each in the form that runtimes fuse into the product before.

        Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2.
        """
        if kind == "quick_gelu":
            scaled = self.node("Mul", f"{name}.scaled", x, self.real(f"{name}.slope", 1.702))
            return self.node("Mul", name, x, self.node("Sigmoid", f"{name}.sigmoid", scaled))
        if kind == "gelu_tanh":
            cubed = self.node("Pow", f"{name}.cubed", x, self.real(f"{name}.three", 3.0))
            cubed = self.node("Mul", f"{name}.cubed.scaled", cubed, self.real(f"{name}.cubic", 0.044715))
            inner = self.node("Add", f"{name}.inner", x, cubed)
            inner = self.node("Mul", f"{name}.scaled", inner, self.real(f"{name}.slope", np.sqrt(2 / np.pi)))
            curve = self.node("Tanh", f"{name}.tanh", inner)
            shifted = self.node("Add", f"{name}.shifted", curve, self.real(f"{name}.one", 1.0))
            halved = self.node("Mul", f"{name}.halved", shifted, self.real(f"{name}.half", 0.5))
            return self.node("Mul", name, x, halved)
        scaled = self.node("Div", f"{name}.scaled", x, self.real(f"{name}.sqrt2", np.sqrt(2.0)))
        erf = self.node("Erf", f"{name}.erf", scaled)
        shifted = self.node("Add", f"{name}.shifted", erf, self.real(f"{name}.one", 1.0))
        doubled = self.node("Mul", f"{name}.doubled", x, shifted)
        return self.node("Mul", name, doubled, self.real(f"{name}.half", 0.5))

    def unit_norm(self, name: str, x: str) -> str:
        """(N, D) -> (N, D) float32 of Euclidean norm 1, computed in FP32."""
        if self.numerics.dtype is np.float16:
            x = self.cast(f"{name}.input", x, np.float32)
        if self.opset >= 18:  # axes became an input
            norm = self.node("ReduceL2", f"{name}.norm", x, self.constant(f"{name}.axes", [-1]), keepdims=1)
        else:
            norm = self.node("ReduceL2", f"{name}.norm", x, axes=[-1], keepdims=1)
        smallest = self.constant(f"{name}.smallest", np.asarray(1e-12, dtype=np.float32))
        return self.node("Div", name, x, self.node("Max", f"{name}.norm.positive", norm, smallest))

    def model(self, name: str, feed: Value, width: int) -> Any:
        """The ModelProto with one input (name, dtype, shape after the batch) and one output `embedding` (N, width)."""
        onnx = self._onnx
        source, result = self._value(feed), self._value(("embedding", np.float32, (width,)))
        graph = onnx.helper.make_graph(self._nodes, name, [source], [result], list(self._initializers.values()))
        opset = onnx.helper.make_opsetid("", self.opset)
        return onnx.helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=onnx.helper.find_min_ir_version_for([opset]),
            producer_name="mmcompress",
            producer_version=__version__,
        )

    def put_before(self, model: Any, feed: Value) -> None:
        """Put the nodes before those of a ModelProto, whose one input they make of `feed`, which takes its place."""
        graph = model.graph
        nodes = [*self._nodes, *graph.node]
        del graph.node[:], graph.input[:]
        graph.node.extend(nodes)
        graph.input.append(self._value(feed))
        graph.initializer.extend(self._initializers.values())

    def put_behind(self, model: Any, result: Value) -> None:
        """Put the nodes behind those of a ModelProto, which gets one more output."""
        model.graph.node.extend(self._nodes)
        model.graph.output.append(self._value(result))
        model.graph.initializer.extend(self._initializers.values())

    def _value(self, value: Value) -> Any:
        name, dtype, shape = value
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, ["batch", *shape])
