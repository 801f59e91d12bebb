"""The transformer blocks of both towers as nodes of a graph, with the weights that they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmcompress.architecture import TowerConfig
from mmcompress.errors import CorruptInputError
from mmcompress.export.graph import Array, GraphWriter

Pick = Callable[[str, str], str]
"""(name, (N, T, W)) -> (N, 1, W): the row that is read at the end."""


class Weights:
    """The tensors of a checkpoint, each taken once and with the shape that the config demands."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def under(self, prefix: str) -> Weights:
        return Weights(self._tensors, f"{self._prefix}{prefix}.")

    def take(self, name: str, *shape: int) -> Array:
        """float32 of the given shape."""
        full = self._prefix + name
        if full not in self._tensors:
            raise CorruptInputError(
                f"the checkpoint has no tensor {full!r} of shape {shape}",
                "its config and its weights do not belong together",
            )
        tensor = self._tensors[full]
        if tensor.shape != shape:
            raise CorruptInputError(
                f"tensor {full!r} has shape {tensor.shape}, and the config expects {shape}",
                "its config and its weights do not belong together",
            )
        return tensor.astype(np.float32)

    def linear(self, name: str, inputs: int, outputs: int) -> tuple[Array, Array]:
        """Weight (in, out) and bias (out,)."""
        return self.take(f"{name}.weight", outputs, inputs).T, self.take(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> tuple[Array, Array]:
        return self.take(f"{name}.weight", width), self.take(f"{name}.bias", width)


def query_scale(tower: TowerConfig) -> float:
    """What the graphs multiply the query's weights and biases with, instead of its product with the keys."""
    return float(np.float32(1 / math.sqrt(tower.head_dim)))


def blocks(
    g: GraphWriter,
    name: str,
    tower: TowerConfig,
    weights: Weights,
    x: str,
    pick: Pick,
    tokens: int,
    end: str | None = None,
) -> str:
    """(N, T, W) -> (N, 1, W): all blocks; `end` makes the attention causal."""
    mask = g.constant(f"{name}.mask", _causal_mask(tokens, g.numerics.dtype)) if end else None
    for i in range(tower.depth):
        last = i == tower.depth - 1
        layer = weights.under(f"encoder.layers.{i}")
        if last and mask and end:
            mask = g.node("Gather", f"{name}.mask.end", mask, end)
        x = _block(g, f"{name}.blocks.{i}", tower, i, layer, x, mask, tokens, pick if last else None)
    return x


def _block(
    g: GraphWriter,
    module: str,
    tower: TowerConfig,
    index: int,
    weights: Weights,
    x: str,
    mask: str | None,
    tokens: int,
    pick: Pick | None,
) -> str:
    """Pre-LayerNorm block, (N, T, W) -> (N, T, W), or (N, 1, W) where `pick` chooses the row that is needed."""
    width, hidden, inner = tower.width, tower.mlp[index], tower.heads[index] * tower.head_dim
    normed = g.layer_norm(f"{module}.norm1", x, *weights.norm("layer_norm1", width), tower.layer_norm_eps)
    parts = [weights.linear(f"self_attn.{part}_proj", width, inner) for part in "qkv"]
    scale = query_scale(tower)
    parts[0] = (parts[0][0] * scale, parts[0][1] * scale)
    heads, qkv = (tower.heads[index], tower.head_dim), f"{module}.qkv"
    if pick is None:
        q, k, v = _heads(g, qkv, g.linear(qkv, normed, *_join(parts)), 3, heads, tokens)
        rows = tokens
    else:
        row = g.linear(f"{qkv}.q", pick(f"{module}.norm1.row", normed), *parts[0], qkv, slice(inner))
        joined = g.linear(f"{qkv}.kv", normed, *_join(parts[1:]), qkv, slice(inner, None))
        (q,) = _heads(g, f"{qkv}.q", row, 1, heads, 1)
        k, v = _heads(g, f"{qkv}.kv", joined, 2, heads, tokens)
        x, rows = pick(f"{module}.row", x), 1
    mixed = _attention(g, f"{module}.attention", (q, k, v), heads, mask, rows)
    x = g.node(
        "Add",
        f"{module}.residual1",
        x,
        g.linear(f"{module}.out", mixed, *weights.linear("self_attn.out_proj", inner, width)),
    )
    y = g.layer_norm(f"{module}.norm2", x, *weights.norm("layer_norm2", width), tower.layer_norm_eps)
    y = g.linear(f"{module}.fc1", y, *weights.linear("mlp.fc1", width, hidden))
    y = g.activation(f"{module}.activation", y, tower.activation)
    y = g.linear(f"{module}.fc2", y, *weights.linear("mlp.fc2", hidden, width))
    return g.node("Add", f"{module}.residual2", x, y)


def _join(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Several (in, out) and (out,) as one, side by side."""
    return np.concatenate([w for w, _ in parts], axis=1), np.concatenate([b for _, b in parts])


def _heads(g: GraphWriter, name: str, x: str, parts: int, heads: tuple[int, int], rows: int) -> list[str]:
    """(N, R, parts * H * d) -> `parts` tensors (N, H, R, d).

    Transposing before taking the parts apart keeps the product whole: TensorRT-RTX pulls a Split through it, and then
    runs the quantized one in FP16; it does the same where the heads are split off in the one transpose.
    """
    if parts > 1:
        x = g.reshape(f"{name}.parts", x, [0, rows, parts, heads[0] * heads[1]])
        x = g.node("Transpose", f"{name}.apart", x, perm=[2, 0, 1, 3])
    tensors = []
    for i in range(parts):
        part = x
        if parts > 1:
            index = g.constant(f"{name}.{i}.index", np.asarray(i, dtype=np.int64))
            part = g.node("Gather", f"{name}.{i}", x, index, axis=0)
        part = g.reshape(f"{name}.{i}.heads", part, [0, rows, *heads])
        tensors.append(g.node("Transpose", f"{name}.{i}.turned", part, perm=[0, 2, 1, 3]))
    return tensors


def _attention(
    g: GraphWriter, name: str, qkv: tuple[str, str, str], heads: tuple[int, int], mask: str | None, rows: int
) -> str:
    """softmax(q k^T + mask) v over the heads; q (N, H, R, d), k and v (N, H, T, d) -> (N, R, H d).

    Vaswani et al. 2017, "Attention Is All You Need", eq. 1; the scale is in the query's weights.
    """
    q, k, v = qkv
    scores = g.attention_product("scores", name, q, g.node("Transpose", f"{name}.keys", k, perm=[0, 1, 3, 2]))
    if mask:
        scores = g.node("Add", f"{name}.masked", scores, mask)
    mixed = g.attention_product("mixed", name, g.node("Softmax", f"{name}.softmax", scores, axis=-1), v)
    mixed = g.node("Transpose", f"{name}.joined", mixed, perm=[0, 2, 1, 3])
    return g.reshape(name, mixed, [0, rows, heads[0] * heads[1]])


def project(g: GraphWriter, name: str, x: str, weight: Array) -> None:
    """(N, 1, W) @ (D, W)^T -> `embedding` (N, D), unit norm."""
    x = g.reshape(f"{name}.pooled", x, [0, weight.shape[1]])
    x = g.node("MatMul", f"{name}.projection", x, g.real(f"{name}.projection.weight", weight.T))
    g.unit_norm("embedding", x)


def _causal_mask(tokens: int, dtype: type[Any]) -> Array:
    """(T, T): 0 where a token may look, the most negative number where it may not."""
    return np.triu(np.full((tokens, tokens), np.finfo(dtype).min, dtype=dtype), k=1)
