"""The convolutional image tower as nodes of a graph, with every BatchNorm folded away.

A BatchNorm behind a convolution scales its output channels, and so does layer scale behind the last one of a block:
both go into the weights and a bias (Jacob et al. 2018, section 3.2), exactly but for rounding. The one in front of
attention cannot: padded zeros behind it would no longer be zeros, so it is a Mul and an Add. Attention multiplies as in
`blocks.py`, with 1/sqrt(head_dim) in the query's weights; its keys and values have one head, which broadcasts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmcompress.convblocks import AttentionBlock, Bottlenecks, FusedBlock, PlainBlock, side_after
from mmcompress.convnet import ConvConfig, Place
from mmcompress.export.blocks import Weights, project
from mmcompress.export.graph import Array, GraphWriter
from mmcompress.towerparts import Product

_RELU = ("stem", "conv", "expand", "middle", "head")
"""Convolutions with a ReLU behind them."""


def convolutions(g: GraphWriter, tower: ConvConfig, weights: Weights) -> None:
    """`pixels` (N, 3, S, S) -> `embedding` (N, D), unit norm."""
    x = g.cast("image.pixels", "pixels", np.float16) if g.numerics.dtype is np.float16 else "pixels"
    products = {product.name: product for product in tower.products()}
    x = _convolution(g, tower, products["stem"], weights, x, tower.stem_stride)
    for place in tower.placed():
        x = _block(g, tower, place, weights, x)
    x = g.node("GlobalAveragePool", "image.pool", x)
    x = _convolution(g, tower, products["head"], weights, x)
    project(g, "image", x, weights.take("projection.weight"), None)


def _block(g: GraphWriter, tower: ConvConfig, place: Place, weights: Weights, x: str) -> str:
    """(N, C, H, W) -> (N, C', H', W')"""
    name, block, inputs, side = place
    products = {product.name.rpartition(".")[2]: product for product in block.products(name, inputs, side)}
    gain = weights.take(f"{name}.scale") if tower.scales(block) else None
    if isinstance(block, AttentionBlock):
        y = _attention(g, tower, place, products, weights, (x, gain))
    else:
        y, strided = x, _strides(block)
        for part, product in products.items():
            scaled = gain if part == "project" else None
            y = _convolution(g, tower, product, weights, y, strided.get(part, 1), scaled)
    return g.node("Add", f"image.{name}.residual", x, y) if block.residual(inputs) else y


def _strides(block: Bottlenecks) -> dict[str, int]:
    """The strides of a block's convolutions, by their names."""
    if isinstance(block, PlainBlock):
        return {"conv": block.stride}
    if isinstance(block, FusedBlock):
        return {"expand": block.stride}
    return {"start": block.start_stride, "middle": block.stride}


def _attention(
    g: GraphWriter,
    tower: ConvConfig,
    place: Place,
    products: dict[str, Product],
    weights: Weights,
    stream: tuple[str, Array | None],
) -> str:
    """(N, C, H, W) -> (N, C, H, W), of the stream and its layer scale."""
    (x, gain), (name, block, _, side) = stream, place
    assert isinstance(block, AttentionBlock)
    module, dim, fewer = f"image.{name}", block.head_dim, side_after(side, block.kv_stride)
    scale, shift = batch_norm(weights, f"{name}.norm", tower.norm_eps)
    x = g.node("Mul", f"{module}.norm.scaled", x, g.real(f"{module}.norm.gain", scale[:, None, None]))
    x = g.node("Add", f"{module}.norm", x, g.real(f"{module}.norm.shift", shift[:, None, None]))
    asked = np.full(products["query"].outputs, 1 / math.sqrt(dim))
    query = _convolution(g, tower, products["query"], weights, x, gain=asked)
    query = g.reshape(f"{module}.query.heads", query, [0, block.heads, dim, side**2])
    query = g.node("Transpose", f"{module}.query.rows", query, perm=[0, 1, 3, 2])
    flat = {}
    for part in ("key", "value"):
        y = x
        if (down := products.get(f"{part}_down")) is not None:
            y = _convolution(g, tower, down, weights, y, block.kv_stride)
        y = _convolution(g, tower, products[part], weights, y)
        flat[part] = g.reshape(f"{module}.{part}.columns", y, [0, 1, dim, fewer**2])
    scores = g.node("MatMul", f"{module}.scores", query, flat["key"])
    shares = g.node("Softmax", f"{module}.softmax", scores, axis=-1)
    values = g.node("Transpose", f"{module}.value.rows", flat["value"], perm=[0, 1, 3, 2])
    mixed = g.node("MatMul", f"{module}.mixed", shares, values)
    mixed = g.node("Transpose", f"{module}.joined", mixed, perm=[0, 1, 3, 2])
    mixed = g.reshape(f"{module}.map", mixed, [0, block.heads * dim, side, side])
    return _convolution(g, tower, products["out"], weights, mixed, gain=gain)


def _convolution(
    g: GraphWriter,
    tower: ConvConfig,
    product: Product,
    weights: Weights,
    x: str,
    stride: int = 1,
    gain: Array | None = None,
) -> str:
    """A convolution with its BatchNorm and `gain`, one number an output channel, in its weights and bias."""
    name, part = f"image.{product.name}", product.name.rpartition(".")[2]
    kernel, bias = folded(weights, product.name, tower.norm_eps, gain)
    stored = [g.real(f"{name}.weight", kernel), *([] if bias is None else [g.real(f"{name}.bias", bias)])]
    side = product.kernel
    attributes: dict[str, Any] = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [side // 2] * 4}
    x = g.node("Conv", name, x, *stored, group=product.groups, **attributes)
    return g.node("Relu", f"{name}.relu", x) if part in _RELU else x


def folded(weights: Weights, module: str, eps: float, gain: Array | None = None) -> tuple[Array, Array | None]:
    """Weights (out, in / groups, k, k) and bias (out,) of a convolution with all that is linear behind it."""
    kernel: Array = weights.take(f"{module}.weight").astype(np.float64)
    normed = weights.has(f"{module}.norm.weight")
    scale, shift = batch_norm(weights, f"{module}.norm", eps) if normed else (np.ones(len(kernel)), None)
    scale = scale if gain is None else scale * gain
    shift = shift if gain is None or shift is None else shift * gain
    return kernel * scale[:, None, None, None], shift


def batch_norm(weights: Weights, module: str, eps: float) -> tuple[Array, Array]:
    """The gain and the shift of each channel (C,) that a BatchNorm is, in float64."""
    gain, bias, mean, variance = (
        weights.take(f"{module}.{leaf}").astype(np.float64) for leaf in ("weight", "bias", "mean", "variance")
    )
    scale: Any = gain / np.sqrt(variance + eps)
    return scale, bias - mean * scale
