"""The image and the text tower of a dual encoder as ONNX graphs.

Exact savings that a traced model does not have:
- Query, key and value are one product; the attention's 1/sqrt(head_dim) is folded into the query's weights.
- Only one token of each sequence is read at the end (the class token, the end of the text). The last block computes
  keys and values of all tokens, but its query, out-projection and MLP for that token only, which saves about
  10 of that block's 12 width^2 products a token.
- The class token is added through the position table to a padded row, so no shape is computed at run time.

Tensor names are those of `transformers.CLIPModel`, so any CLIP checkpoint of that format can be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmcompress.architecture import LEGACY_EOS, DualEncoderConfig, ImageConfig, TextConfig, TowerConfig
from mmcompress.export.blocks import Weights, blocks, project, query_scale
from mmcompress.export.graph import Array, GraphWriter, Numerics
from mmcompress.int8 import Linears


def graph_integers(config: DualEncoderConfig, linears: Linears) -> Linears:
    """Integers that were fitted to the torch model as the graphs store them: the query's share of QKV is scaled."""
    stored = dict(linears)
    for name, linear in linears.items():
        tower, _, block, part = name.split(".")
        if part == "qkv":
            sizes: TowerConfig = getattr(config, tower)
            gains = np.ones(len(linear.scales), linear.scales.dtype)
            gains[: sizes.heads[int(block)] * sizes.head_dim] = query_scale(sizes)
            stored[name] = replace(linear, scales=linear.scales * gains, bias=linear.bias * gains)
    return stored


def image_graph(config: DualEncoderConfig, tensors: Mapping[str, Array], numerics: Numerics, opset: int) -> Any:
    """ModelProto of `pixels` (N, 3, S, S) float32 -> `embedding` (N, D) float32, unit norm."""
    tower, g, weights = config.image, GraphWriter(opset, numerics), Weights(tensors).under("vision_model")
    x = _patches(g, tower, weights.under("embeddings"))
    x = g.layer_norm("image.pre_norm", x, *weights.norm("pre_layrnorm", tower.width), tower.layer_norm_eps)

    def class_token(name: str, rows: str) -> str:
        bounds = [g.constant(f"{name}.{key}", [value]) for key, value in (("start", 0), ("end", 1), ("axis", 1))]
        return g.node("Slice", name, rows, *bounds)

    x = blocks(g, "image", tower, weights, x, class_token, tower.tokens)
    x = g.layer_norm("image.post_norm", x, *weights.norm("post_layernorm", tower.width), tower.layer_norm_eps)
    project(g, "image", x, Weights(tensors).take("visual_projection.weight", config.embed_dim, tower.width))
    return g.model("image", ("pixels", np.float32, (3, tower.image_size, tower.image_size)), config.embed_dim)


def _patches(g: GraphWriter, tower: ImageConfig, weights: Weights) -> str:
    """(N, 3, S, S) -> (N, T, W): patches, the class token in front, positions."""
    width, patch = tower.width, tower.patch
    pixels = g.cast("image.pixels", "pixels", np.float16) if g.numerics.dtype is np.float16 else "pixels"
    kernel = g.real("image.patch_embed.weight", weights.take("patch_embedding.weight", width, 3, patch, patch))
    x = g.node("Conv", "image.patch_embed", pixels, kernel, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.reshape("image.patch_embed.flat", x, [0, width, tower.tokens - 1])
    x = g.node("Transpose", "image.patch_embed.rows", x, perm=[0, 2, 1])
    x = g.node("Pad", "image.class_row", x, g.constant("image.class_row.pads", [0, 1, 0, 0, 0, 0]))
    table = weights.take("position_embedding.weight", tower.tokens, width).copy()
    table[0] += weights.take("class_embedding", width)
    return g.node("Add", "image.positions", x, g.real("image.positions.table", table[None]))


def text_graph(config: DualEncoderConfig, tensors: Mapping[str, Array], numerics: Numerics, opset: int) -> Any:
    """ModelProto of `tokens` (N, T) int32 -> `embedding` (N, D) float32, unit norm."""
    tower, g, weights = config.text, GraphWriter(opset, numerics), Weights(tensors).under("text_model")
    embeddings = weights.under("embeddings")
    table = g.real("text.token_embed.weight", embeddings.take("token_embedding.weight", tower.vocab, tower.width))
    x = g.node("Gather", "text.token_embed", table, "tokens")
    positions = embeddings.take("position_embedding.weight", tower.context, tower.width)
    x = g.node("Add", "text.positions", x, g.real("text.positions.table", positions[None]))
    end = _end_of_text(g, tower)

    def end_token(name: str, rows: str) -> str:
        return g.node("GatherND", name, rows, end, batch_dims=1)

    x = blocks(g, "text", tower, weights, x, end_token, tower.context, end)
    x = g.layer_norm("text.final_norm", x, *weights.norm("final_layer_norm", tower.width), tower.layer_norm_eps)
    project(g, "text", x, Weights(tensors).take("text_projection.weight", config.embed_dim, tower.width))
    return g.model("text", ("tokens", np.int32, (tower.context,)), config.embed_dim)


def _end_of_text(g: GraphWriter, tower: TextConfig) -> str:
    """Tokens (N, T) -> int64 (N, 1, 1): first position of the end token, or of the largest id in legacy configs.

    The matches are weighted by their distance from the end, so that the argmax has no ties, which runtimes break
    differently (the padding of OpenAI's tokenizer is the end token).
    """
    if tower.eos_token_id != LEGACY_EOS:
        wanted = g.constant("text.end.id", np.asarray(tower.eos_token_id, dtype=np.int32))
    elif g.opset >= 18:  # axes became an input
        wanted = g.node("ReduceMax", "text.end.id", "tokens", g.constant("text.end.id.axes", [1]), keepdims=1)
    else:
        wanted = g.node("ReduceMax", "text.end.id", "tokens", axes=[1], keepdims=1)
    matches = g.cast("text.end.matches", g.node("Equal", "text.end.equal", "tokens", wanted), np.int32)
    order = np.arange(tower.context, 0, -1, dtype=np.int32)[None]
    ranked = g.node("Mul", "text.end.ranked", matches, g.constant("text.end.order", order))
    first = g.node("ArgMax", "text.end.first", ranked, axis=1, keepdims=1)
    return g.node("Unsqueeze", "text.end", first, g.constant("text.end.axes", [2]))
