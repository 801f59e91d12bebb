"""The image and the text tower of a dual encoder as ONNX graphs.

Exact savings that a traced model does not have:
- Query, key and value are one product; the attention's 1/sqrt(head_dim) is folded into the query's weights.
- Where only one token of each sequence is read at the end (the class token, the end of the text), the last block
  computes keys and values of all tokens, but its query, out-projection and MLP for that token only, which saves about
  10 of that block's 12 width^2 products a token.
- The query of attention pooling is a constant, so it is folded into the weights of the keys, whose biases the softmax
  takes out again; and since pooling is linear, tokens are pooled first and become values then. See `_pooled`.
- The class token is added through the position table to a padded row, so no shape is computed at run time.

Tensor names are those of the family's own class, so any checkpoint of that format can be written (`tensornames.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmcompress.architecture import DualEncoderConfig, ImageConfig, PoolingHead, TextConfig, TowerConfig
from mmcompress.convnet import ConvConfig
from mmcompress.export.blocks import Pick, Sight, Weights, blocks, causal_mask, project, query_scale
from mmcompress.export.convgraph import convolutions
from mmcompress.export.graph import Array, GraphWriter, Numerics
from mmcompress.export.integers import with_integers
from mmcompress.export.products import Product, arrays_of, products_of
from mmcompress.int8 import TABLE, IntegerLinear, Linears, Signedness, linear_modules, quantize_weight
from mmcompress.tensornames import state_from_hugging_face


def graph_integers(config: DualEncoderConfig, linears: Linears) -> Linears:
    """Integers that were fitted to the torch model as the graphs store them: the query's share of QKV is scaled."""
    stored = dict(linears)
    for name, linear in linears.items():
        if name.endswith(".qkv"):
            tower, _, block, _ = name.split(".")
            sizes: TowerConfig = getattr(config, tower)
            gains = np.ones(len(linear.scales), linear.scales.dtype)
            gains[: sizes.heads[int(block)] * sizes.head_dim] = query_scale(sizes)
            stored[name] = replace(linear, scales=linear.scales * gains, bias=linear.bias * gains)
    return stored


def image_graph(config: DualEncoderConfig, tensors: Mapping[str, Array], numerics: Numerics, opset: int) -> Any:
    """ModelProto of `pixels` (N, 3, S, S) float32 -> `embedding` (N, D) float32, unit norm."""
    tower, g = config.image, GraphWriter(opset, numerics)
    weights = Weights(state_from_hugging_face(tensors, config, ("image",))).under("image")
    feed = ("pixels", np.float32, (3, tower.image_size, tower.image_size))
    if isinstance(tower, ConvConfig):
        check_eight_bits(config, ("fp8",) if numerics.activations == "float8" else ())
        g = GraphWriter(opset, numerics if numerics.activations == "float" else Numerics())
        convolutions(g, tower, weights)
        model = g.model("image", feed, config.embed_dim)
        return model if numerics.activations == "float" else _in_integers(config, model, numerics)
    x = _patches(g, tower, weights)
    if tower.head is None:
        x = g.layer_norm("image.pre_norm", x, *weights.norm("norm_pre"), tower.layer_norm_eps)
    pick = _row(g, 0) if tower.head is None else None
    x = blocks(g, "image", tower, weights, x, Sight(tower.tokens, pick), post=False)
    x = g.layer_norm("image.post_norm", x, *weights.norm("norm_post"), tower.layer_norm_eps)
    if tower.head is None:
        project(g, "image", x, weights.take("projection.weight"), None)
    else:
        _pooled(g, tower, tower.head, weights.under("head"), x)
    return g.model("image", feed, config.embed_dim)


def check_eight_bits(config: DualEncoderConfig, precisions: Collection[str]) -> None:
    """Raise UsageError for a convolutional tower that would be written in FP8."""
    if "fp8" in precisions:
        config.transformer_image("an export in FP8", "export it in int8, whose convolutions are integers")


def convolutions_of(config: DualEncoderConfig, model: Any) -> list[Product]:
    """The products of a ModelProto of a convolutional image tower that INT8 may take."""
    known = frozenset(linear_modules(config))
    return [product for product in products_of(model, "image") if product.name in known]


def _in_integers(config: DualEncoderConfig, model: Any, numerics: Numerics) -> Any:
    """The graph with its convolutions in 8 bits and FP32 around them, those without fitted integers to nearest."""
    kind: Signedness = "unsigned" if numerics.activations == "unsigned" else "signed"
    products = [product for product in convolutions_of(config, model) if product.name not in numerics.kept]
    arrays = arrays_of(model)
    integers = {product.name: numerics.integers.get(product.name) for product in products}
    for product in products:
        if integers[product.name] is None:
            weight = quantize_weight(product.matrix(arrays[product.weight]), kind)
            bias = arrays[product.bias] if product.bias else np.zeros(product.size[1], np.float32)
            integers[product.name] = IntegerLinear(*weight, bias)
    linears = {name: linear for name, linear in integers.items() if linear is not None}
    return with_integers(model, products, linears, numerics.ranges, kind, sums=True)


def _row(g: GraphWriter, place: int) -> Pick:
    """Reads the same token of every sequence."""

    def read(name: str, rows: str) -> str:
        bounds = {"start": place, "end": place + 1, "axis": 1}
        return g.node("Slice", name, rows, *(g.constant(f"{name}.{key}", [value]) for key, value in bounds.items()))

    return read


def _row_of_each(g: GraphWriter, places: str) -> Pick:
    """Reads the token at `places` (N, 1, 1) of each sequence."""
    return lambda name, rows: g.node("GatherND", name, rows, places, batch_dims=1)


def _patches(g: GraphWriter, tower: ImageConfig, weights: Weights) -> str:
    """(N, 3, S, S) -> (N, T, W): patches, with the class token in front or with a bias, and positions."""
    width, patch = tower.width, tower.patch
    pixels = g.cast("image.pixels", "pixels", np.float16) if g.numerics.dtype is np.float16 else "pixels"
    kernel = g.real("image.patch_embed.weight", weights.take("patch.weight"))
    x = g.node("Conv", "image.patch_embed", pixels, kernel, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.reshape("image.patch_embed.flat", x, [0, width, tower.patches])
    x = g.node("Transpose", "image.patch_embed.rows", x, perm=[0, 2, 1])
    table = weights.take("positions").copy()
    if tower.head is None:
        x = g.node("Pad", "image.class_row", x, g.constant("image.class_row.pads", [0, 1, 0, 0, 0, 0]))
        table[0] += weights.take("class_token")
    else:
        table += weights.take("patch.bias")
    return g.node("Add", "image.positions", x, g.real("image.positions.table", table[None]))


def _pooled(g: GraphWriter, tower: ImageConfig, head: PoolingHead, weights: Weights, x: str) -> None:
    """(N, T, W) -> `embedding` (N, D), unit norm: attention pooling and its MLP.

    With the constant query q_h of each head, q_h . (K_h x + b) is (K_h^T q_h) . x and a number that softmax takes out;
    the p_t of a head add up to 1, so the sum of p_t (V_h x_t + c) is V_h (sum of p_t x_t) + c.
    """
    name, heads = "image.head", head.heads
    query_weight, query_bias = weights.linear("query")
    query = (weights.take("probe") @ query_weight + query_bias).reshape(heads, -1)
    channels = query.shape[1]
    kv, kv_bias = weights.linear("kv")
    keys, values = (part.reshape(-1, heads, channels) for part in np.split(kv, 2, axis=1))  # (W, H, d)
    asked = np.einsum("whd,hd->wh", keys, query) / np.float32(math.sqrt(channels))
    scores = g.node("MatMul", f"{name}.scores", x, g.real(f"{name}.scores.weight", asked))
    scores = g.node("Transpose", f"{name}.scores.heads", scores, perm=[0, 2, 1])
    shares = g.node("Softmax", f"{name}.softmax", scores, axis=-1)
    mixed = g.node("MatMul", f"{name}.mixed", shares, x)
    mixed = g.reshape(f"{name}.mixed.rows", mixed, [0, heads, 1, tower.width])
    table = g.real(f"{name}.values.weight", values.transpose(1, 0, 2)[None])
    mixed = g.node("MatMul", f"{name}.values", mixed, table)
    mixed = g.reshape(f"{name}.values.flat", mixed, [0, heads * channels])
    mixed = g.node("Add", f"{name}.values.add", mixed, g.real(f"{name}.values.bias", np.split(kv_bias, 2)[1]))
    x = g.float_linear(f"{name}.out", mixed, *weights.linear("out"))
    y = g.layer_norm(f"{name}.norm", x, *weights.norm("norm"), tower.layer_norm_eps)
    y = g.float_linear(f"{name}.fc1", y, *weights.linear("fc1"))
    y = g.activation(f"{name}.activation", y, tower.activation)
    y = g.float_linear(f"{name}.fc2", y, *weights.linear("fc2"))
    g.unit_norm("embedding", g.node("Add", f"{name}.residual", x, y))


def text_graph(config: DualEncoderConfig, tensors: Mapping[str, Array], numerics: Numerics, opset: int) -> Any:
    """ModelProto of `tokens` (N, T) int32 -> `embedding` (N, D) float32, unit norm.

    A tower that is never compressed has no integers in a graph of any kind, only that graph's float type.
    """
    tower, post = config.text, config.text.norm == "post"
    numerics = numerics if "text" in config.compressed else Numerics(numerics.dtype)
    g, state = GraphWriter(opset, numerics), state_from_hugging_face(tensors, config, ("text",))
    weights = Weights(state).under("text")
    x = g.rows_of(TABLE, weights.take("tokens.weight"), "tokens")
    written = _written(g, tower) if tower.attention == "masked" else None
    x = g.node(
        "Add", "text.positions", x, _positions(g, weights.take("positions"), written if tower.counts_written else None)
    )
    if post:
        x = g.layer_norm("text.pre_norm", x, *weights.norm("norm_pre"), tower.layer_norm_eps)
    x = blocks(g, "text", tower, weights, x, _sight(g, tower, written), post)
    if tower.final_norm:
        x = g.layer_norm("text.final_norm", x, *weights.norm("norm_post"), tower.layer_norm_eps)
    bias = weights.take("projection.bias") if tower.projection_bias else None
    project(g, "text", x, weights.take("projection.weight"), bias)
    return g.model("text", ("tokens", np.int32, (tower.context,)), config.embed_dim)


def _positions(g: GraphWriter, table: Array, counted: str | None) -> str:
    """(1, T, width); or (N, T, width), where the position of a token is the number of written ones up to it."""
    if counted is None:
        return g.real("text.positions.table", table[None])
    up_to = g.node("CumSum", "text.positions.up_to", counted, g.constant("text.positions.axis", np.asarray(1)))
    places = g.node("Mul", "text.positions.places", up_to, counted)
    return g.node("Gather", "text.positions.rows", g.real("text.positions.table", table), places)


def _sight(g: GraphWriter, tower: TextConfig, written: str | None) -> Sight:
    """Who sees whom, and which token is read."""
    tokens, fixed = tower.context, {"first": 0, "last": tower.context - 1}.get(tower.pooling)
    if tower.attention != "causal":
        mask = _padding_mask(g, tower, written) if written is not None else None
        pick = _row_of_each(g, _read_token(g, tower)) if fixed is None else _row(g, fixed)
        return Sight(tokens, pick, mask, mask, mask is not None)
    end = _read_token(g, tower) if fixed is None else g.constant("text.end", np.full((1, 1, 1), fixed))
    mask = g.constant("text.mask", causal_mask(tokens, g.numerics.dtype))
    return Sight(tokens, _row_of_each(g, end), mask, g.node("Gather", "text.mask.end", mask, end))


def _written(g: GraphWriter, tower: TextConfig) -> str:
    """Tokens (N, T) -> int32 (N, T): 1 where the id is not that of padding."""
    pad = g.constant("text.mask.pad", np.asarray(tower.pad_token_id, dtype=np.int32))
    text = g.node("Not", "text.mask.text", g.node("Equal", "text.mask.padding", "tokens", pad))
    return g.cast("text.mask.ones", text, np.int32)


def _padding_mask(g: GraphWriter, tower: TextConfig, written: str) -> str:
    """Int32 (N, T) -> (N, 1, 1, T): the most negative number behind the last token that is written."""
    places = g.constant("text.mask.places", np.arange(tower.context, dtype=np.int32)[None])
    placed = g.node("Mul", "text.mask.placed", written, places)
    behind = g.node("Greater", "text.mask.behind", places, _largest(g, "text.mask.last", placed))
    lowest = g.constant("text.mask.lowest", np.asarray(np.finfo(g.numerics.dtype).min, dtype=g.numerics.dtype))
    mask = g.node("Where", "text.mask.rows", behind, lowest, g.real("text.mask.zero", 0.0))
    return g.reshape("text.mask", mask, [0, 1, 1, tower.context])


def _read_token(g: GraphWriter, tower: TextConfig) -> str:
    """Tokens (N, T) -> int64 (N, 1, 1): the place of the token that is read.

    The first of equal ids is found by weighting matches by their distance from the end, so that the argmax has no ties,
    which runtimes break differently (the padding of OpenAI's tokenizer is the end token).
    """
    if tower.pooling == "end":
        wanted = g.constant("text.end.id", np.asarray(tower.eos_token_id, dtype=np.int32))
    else:
        wanted = _largest(g, "text.end.id", "tokens")
    matches = g.cast("text.end.matches", g.node("Equal", "text.end.equal", "tokens", wanted), np.int32)
    order = np.arange(tower.context, 0, -1, dtype=np.int32)[None]
    ranked = g.node("Mul", "text.end.ranked", matches, g.constant("text.end.order", order))
    first = g.node("ArgMax", "text.end.first", ranked, axis=1, keepdims=1)
    return g.node("Unsqueeze", "text.end", first, g.constant("text.end.axes", [2]))


def _largest(g: GraphWriter, name: str, x: str) -> str:
    """(N, T) -> (N, 1)"""
    if g.opset >= 18:  # axes became an input
        return g.node("ReduceMax", name, x, g.constant(f"{name}.axes", [1]), keepdims=1)
    return g.node("ReduceMax", name, x, axes=[1], keepdims=1)
