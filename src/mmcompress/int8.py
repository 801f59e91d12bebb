"""The arithmetic of 8-bit quantization, in numpy alone: scales, zero points, integer weights.

A real value r stands for an integer q as r = S (q - Z) (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", eq. 1). Weights are symmetric with one scale per output
channel, activations have one scale per tensor (Nagel et al. 2021, "A White Paper on Neural Network Quantization",
sections 2.2 and 2.4: a zero point on the weights would cost a data-dependent sum at run time, one on the activations
folds into the bias). Rounding is half to even and saturating, as ONNX QuantizeLinear defines it, so the integers
stored in a graph are the ones that the runtime itself would compute.

One calibrated range gives both kinds of activation: signed and symmetric for TensorRT, which refuses zero points;
unsigned and asymmetric for x86 CPUs, whose dot-product instructions take an unsigned left operand. Left out:
per-group scales and 4-bit weights, which the runtimes at hand do not multiply as integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.architecture import DualEncoderConfig, TowerConfig
from mmcompress.artifact import Artifact
from mmcompress.errors import CorruptInputError, UsageError
from mmcompress.strictjson import read_json

Signedness = Literal["signed", "unsigned"]
Integers = NDArray[np.int8] | NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
LIMITS: Mapping[Signedness, tuple[int, int]] = {"signed": (-128, 127), "unsigned": (0, 255)}
WEIGHT_LIMIT = 127
"""Weights use [-127, 127], so that negating one never overflows (Nagel et al. 2021, section 2.2.2)."""
SCALE_TYPES: Mapping[Signedness, type[np.floating[Any]]] = {"signed": np.float16, "unsigned": np.float32}
"""The type that the graph of each kind multiplies scales in: TensorRT's is FP16 around the Linears, a CPU's FP32."""
Range = dict[str, float]
"""Of one activation, as calibrated: `absmax` for the signed quantizer, `low` and `high` for the unsigned one."""
RANGES = "ranges.json"
"""The file of a quantized checkpoint with its ranges by name."""
GRAPH_RANGES = "graph-ranges.json"
"""The file of quantized graphs with the ranges of their products by name."""
INTEGERS = "integers.safetensors"
"""The file of a quantized checkpoint with the integers that were fitted; a Linear that is not in it stays in float."""


@dataclass(frozen=True)
class ActivationQuantizer:
    """S and Z of one tensor, and the integer type they are meant for."""

    scale: np.floating[Any]
    zero_point: int
    kind: Signedness

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.kind == "signed" else np.uint8


@dataclass(frozen=True)
class IntegerLinear:
    """A Linear as a graph stores it: int8 (in, out), its scales (out,), and the bias (out,) that is added."""

    weight: NDArray[np.int8]
    scales: Floats
    bias: Floats


OPERANDS = ("query", "keys", "probabilities", "values")
"""What the two attention products multiply, the first two and the last two: names below `image.blocks.0.attention`."""
TABLE = "text.token_embed"
"""The table of token embeddings, in 8 bits with one scale a row: its name among what may be kept in float."""
TABLE_FACT = "token_table"
"""What a quantized checkpoint says of it: `int8`, or nothing."""
FLOATS_FACT = "left_in_float"
"""The fact that lists what multiplies by weights and cannot be integers here, each with why."""
Linears = Mapping[str, IntegerLinear]
"""By module: `image.blocks.0.qkv`, …"""


def tensors_from_linears(linears: Mapping[Signedness, Linears]) -> dict[str, NDArray[Any]]:
    """Flat names for a file: `unsigned/image.blocks.0.qkv/weight`."""
    return {
        f"{kind}/{module}/{part}": np.ascontiguousarray(getattr(linear, part))
        for kind, named in linears.items()
        for module, linear in named.items()
        for part in ("weight", "scales", "bias")
    }


def check_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a file with a scale, a bias or a weight that is NaN or infinite."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CorruptInputError(f"{path}: tensor {name!r} has numbers that are NaN or infinite", "make it again")


def linears_from_tensors(tensors: Mapping[str, NDArray[Any]], kind: Signedness) -> Linears:
    """The inverse of `tensors_from_linears`, for one kind."""
    modules = sorted({name.split("/")[1] for name in tensors if name.startswith(f"{kind}/")})
    parts = ("weight", "scales", "bias")
    return {module: IntegerLinear(*(tensors[f"{kind}/{module}/{part}"] for part in parts)) for module in modules}


def signed_from_absmax(absmax: float, dtype: type[np.floating[Any]] = np.float32) -> ActivationQuantizer:
    """Symmetric int8 that covers [-absmax, absmax]: S = absmax / 127, Z = 0."""
    return ActivationQuantizer(_scale(abs(absmax) / WEIGHT_LIMIT, dtype), 0, "signed")


def unsigned_from_range(low: float, high: float, dtype: type[np.floating[Any]] = np.float32) -> ActivationQuantizer:
    """Asymmetric uint8 that covers [low, high] and 0: S = (high - low) / 255, Z = round(-low / S).

    Zero must be exact, since padding and masked values are zero (Jacob et al. 2018, section 2.1).
    """
    if low > high:
        raise ValueError(f"an activation range needs low <= high, got [{low}, {high}]")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _scale((high - low) / 255, dtype)
    zero_point = int(np.clip(np.rint(np.float64(-low) / np.float64(scale)), 0, 255))
    return ActivationQuantizer(scale, zero_point, "unsigned")


def _scale(value: float, dtype: type[np.floating[Any]]) -> np.floating[Any]:
    """A scale that is a positive normal number of its type; a tensor that is always 0 gets 1."""
    if not np.isfinite(value):
        raise ValueError(f"an activation range must be finite, got a scale of {value}")
    scale = dtype(value) if value > 0 else dtype(1)
    return max(scale, np.finfo(dtype).smallest_normal)


def weight_scales(weight: Floats, kind: Signedness, dtype: type[np.floating[Any]] = np.float32) -> Floats:
    """(in, out) -> (out,): reach / 127 of each output channel; an all-zero channel gets 1.

    The reach is the largest magnitude, for unsigned activations (x86 CPUs) also of the sum of two neighbours of one
    sign. Before VNNI these CPUs add neighbouring products in 16 bits (VPMADDUBSW), saturating at 32,767: two weights
    of 127 and two activations of 255 are twice that, while 128 * 255 fits. The price is a step about a third longer.
    """
    reach = np.abs(weight).max(axis=0)
    if kind == "unsigned":
        even = len(weight) // 2 * 2
        sums = np.abs(weight[:even:2] + weight[1:even:2])  # of two signs a sum is never the widest
        reach = np.maximum(reach, sums.max(axis=0, initial=0))
    scales = np.where(reach > 0, reach.astype(np.float32) / np.float32(WEIGHT_LIMIT), np.float32(1)).astype(dtype)
    normal_scales: Floats = np.maximum(scales, np.finfo(dtype).smallest_normal)
    return normal_scales


def quantize_weight(
    weight: Floats, kind: Signedness, dtype: type[np.floating[Any]] = np.float32
) -> tuple[NDArray[np.int8], Floats]:
    """(in, out) -> int8 (in, out) and the scales (out,), in the type that the graph multiplies them in.

    `kind` is that of the activations it will be multiplied with.
    """
    scales = weight_scales(weight, kind, dtype)
    steps = np.rint(weight.astype(np.float32) / scales.astype(np.float32))
    return np.clip(steps, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), scales


def product_scale(
    weight: NDArray[Any],
    scales: Floats,
    activation: np.floating[Any],
    reach: int = -LIMITS["signed"][0],
    dtype: type[np.floating[Any]] = np.float16,
) -> float:
    """The power of two p that a product of 8-bit numbers is scaled with before it is written as `dtype`.

    The sum of q_x q_w is written as (s_x p) sum, and multiplied with the gains s_j / p of its channels behind that: a
    power of two moves no bit of either. p is the largest one for which no activations can leave the type, since
    |sum| <= reach sum |q_w|, and for which no gain is subnormal where that is possible. weight (in, out), scales
    (out,); `reach` is the largest magnitude of an activation's number.
    """
    largest = float(reach * np.abs(weight.astype(np.float64)).sum(axis=0).max(initial=0))
    limits = np.finfo(dtype)
    bounds = [float(scales.min()) / float(limits.smallest_normal)]
    if largest:
        bounds.append(float(limits.max) / (largest * float(activation)))
    return float(2.0 ** np.clip(np.floor(np.log2(min(bounds))), limits.minexp - limits.nmant, limits.maxexp - 1))


def quantize_rows(table: Floats, dtype: type[np.floating[Any]] = np.float32) -> tuple[NDArray[np.int8], Floats]:
    """(V, W) -> int8 (V, W) and the scales (V,): each row by its own largest magnitude, to nearest."""
    integers, scales = quantize_weight(table.T, "signed", dtype)
    return np.ascontiguousarray(integers.T), scales


def dequantize_rows(table: NDArray[np.int8], scales: Floats) -> NDArray[np.float32]:
    """int8 (V, W), (V,) -> (V, W)."""
    return table.astype(np.float32) * scales.astype(np.float32)[:, None]


def dequantize_weight(weight: NDArray[np.int8], scales: Floats) -> Floats:
    """int8 (in, out), (out,) -> (in, out)."""
    restored: Floats = weight.astype(scales.dtype) * scales
    return restored


def quantize_activation(values: Floats, quantizer: ActivationQuantizer) -> Integers:
    """ONNX QuantizeLinear: saturate(round_half_to_even(x / S) + Z); any shape."""
    low, high = LIMITS[quantizer.kind]
    steps = np.rint(values.astype(np.float32) / np.float32(quantizer.scale)) + quantizer.zero_point
    integers: Integers = np.clip(steps, low, high).astype(quantizer.dtype)
    return integers


def dequantize_activation(integers: Integers, quantizer: ActivationQuantizer) -> Floats:
    """ONNX DequantizeLinear: (q - Z) S; any shape."""
    values: Floats = (integers.astype(np.int32) - quantizer.zero_point).astype(quantizer.scale.dtype) * quantizer.scale
    return values


def fake_quantize(values: Floats, quantizer: ActivationQuantizer) -> Floats:
    """What is left of the values after quantizing and dequantizing them; any shape."""
    return dequantize_activation(quantize_activation(values, quantizer), quantizer)


def fake_quantize_weight(weight: Floats, kind: Signedness) -> Floats:
    """(in, out) -> (in, out): the weight that the integer product stands for."""
    return dequantize_weight(*quantize_weight(weight, kind))


def activation_quantizer(
    entry: Mapping[str, float], kind: Signedness, dtype: type[np.floating[Any]] = np.float32
) -> ActivationQuantizer:
    """From one entry of `ranges.json`: `absmax` makes the signed one, `low` and `high` the unsigned one."""
    if kind == "signed":
        return signed_from_absmax(entry["absmax"], dtype)
    return unsigned_from_range(entry["low"], entry["high"], dtype)


def read_ranges(quantized: Artifact) -> dict[str, Range]:
    """By module, as the stage `quantize` wrote them."""
    if RANGES not in quantized.manifest.files:
        raise UsageError(
            f"{quantized.path} has no {RANGES}, so it is no quantized checkpoint",
            "quantize it first: mmcompress quantize CHECKPOINT --data SHARDS --out DIR",
        )
    ranges: dict[str, Range] = read_json(quantized.file(RANGES), "quantize the checkpoint again")
    return ranges


def linear_modules(config: DualEncoderConfig) -> tuple[str, ...]:
    """Every Linear and convolution that is quantized, in the order of execution."""
    towers = config.compressed
    return tuple(f"{name}.{product.name}" for name in towers for product in getattr(config, name).products())


def products_called(config: DualEncoderConfig, tower: str) -> str:
    """What a message calls one of a tower's products: a Linear, or a convolution."""
    return "Linear" if isinstance(getattr(config, tower), TowerConfig) else "convolution"


def attention_operands(config: DualEncoderConfig) -> tuple[str, ...]:
    """Everything that the attention products of transformers multiply, by the names of its calibrated ranges."""
    depths = {
        name: tower.depth for name in config.compressed if isinstance(tower := getattr(config, name), TowerConfig)
    }
    return tuple(
        f"{name}.blocks.{i}.attention.{operand}"
        for name, depth in depths.items()
        for i in range(depth)
        for operand in OPERANDS
    )


def is_attention_operand(name: str) -> bool:
    """Whether it is one of `attention_operands`; mobile attention has a convolution `image.blocks.11.query`."""
    module, _, operand = name.rpartition(".")
    return module.endswith(".attention") and operand in OPERANDS
