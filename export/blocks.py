"""The transformer blocks of both towers as nodes of a graph, with the weights that they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmcompress.architecture import TowerConfig
from mmcompress.export.graph import Array, GraphWriter

Pick = Callable[[str, str], str]
"""(name, (N, T, W)) -> (N, 1, W): the row that is read at the end."""


class Weights:
    """The tensors of a tower under our own names, in float32; `tensornames.py` has checked their shapes."""

    def __init__(self, state: Mapping[str, Array], prefix: str = "") -> None:
        self._state = state
        self._prefix = prefix

    def under(self, prefix: str) -> Weights:
        return Weights(self._state, f"{self._prefix}{prefix}.")

    def has(self, name: str) -> bool:
        return self._prefix + name in self._state

    def take(self, name: str) -> Array:
        return self._state[self._prefix + name].astype(np.float32)

    def linear(self, name: str) -> tuple[Array, Array]:
        """Weight (in, out) and bias (out,)."""
        return self.take(f"{name}.weight").T, self.take(f"{name}.bias")

    def norm(self, name: str) -> tuple[Array, Array]:
        return self.take(f"{name}.weight"), self.take(f"{name}.bias")


def query_scale(tower: TowerConfig) -> float:
    """What the graphs multiply the query's weights and biases with, instead of its product with the keys."""
    return float(np.float32(1 / math.sqrt(tower.head_dim)))


@dataclass(frozen=True)
class Sight:
    """What of a tower's tokens is seen, and what is read at the end."""

    tokens: int
    pick: Pick | None
    """None where all tokens are read."""
    mask: str | None = None
    """What is added to the scores, (T, T) or (N, 1, 1, T)."""
    last_mask: str | None = None
    """The same for the token that is read, (N, 1, 1, T)."""
    masks_each: bool = False
    """Whether sequences have masks of their own, (N, 1, 1, T)."""


def blocks(g: GraphWriter, name: str, tower: TowerConfig, weights: Weights, x: str, sight: Sight, post: bool) -> str:
    """(N, T, W) -> (N, 1 or T, W): all blocks, with their LayerNorms in front of the Linears or behind the sums."""
    for i in range(tower.depth):
        last = i == tower.depth - 1
        seen = sight if not last else replace(sight, mask=sight.last_mask)
        block = _post_norm_block if post else _block
        pick = sight.pick if last else None
        x = block(g, f"{name}.blocks.{i}", (tower, i), weights.under(f"blocks.{i}"), x, replace(seen, pick=pick))
    return x


def _block(g: GraphWriter, module: str, place: tuple[TowerConfig, int], weights: Weights, x: str, sight: Sight) -> str:
    """Pre-LayerNorm block, (N, T, W) -> (N, T, W), or (N, 1, W) where only one row is needed."""
    tower, _ = place
    normed = g.layer_norm(f"{module}.norm1", x, *weights.norm("norm1"), tower.layer_norm_eps)
    x, mixed = _attended(g, module, place, weights, (x, normed), sight)
    x = g.node("Add", f"{module}.residual1", x, _out(g, f"{module}.out", mixed, weights, sight))
    y = g.layer_norm(f"{module}.norm2", x, *weights.norm("norm2"), tower.layer_norm_eps)
    return g.node("Add", f"{module}.residual2", x, mlp(g, module, tower, weights, y))


def _post_norm_block(
    g: GraphWriter, module: str, place: tuple[TowerConfig, int], weights: Weights, x: str, sight: Sight
) -> str:
    """Post-LayerNorm block (BERT's), of the same shapes."""
    tower, _ = place
    x, mixed = _attended(g, module, place, weights, (x, x), sight)
    x = g.node("Add", f"{module}.residual1", x, _out(g, f"{module}.out", mixed, weights, sight))
    x = g.layer_norm(f"{module}.norm1", x, *weights.norm("norm1"), tower.layer_norm_eps)
    x = g.node("Add", f"{module}.residual2", x, mlp(g, module, tower, weights, x))
    return g.layer_norm(f"{module}.norm2", x, *weights.norm("norm2"), tower.layer_norm_eps)


def mlp(g: GraphWriter, module: str, tower: TowerConfig, weights: Weights, x: str) -> str:
    """FC1, activation, FC2."""
    y = g.linear(f"{module}.fc1", x, *weights.linear("fc1"))
    y = g.activation(f"{module}.activation", y, tower.activation)
    return g.linear(f"{module}.fc2", y, *weights.linear("fc2"))


def _attended(
    g: GraphWriter,
    module: str,
    place: tuple[TowerConfig, int],
    weights: Weights,
    streams: tuple[str, str],
    sight: Sight,
) -> tuple[str, str]:
    """What attention is added to, and what goes into the out-projection: both of all rows, or of the one picked.

    `streams` are the residual stream and what attention reads of it.
    """
    tower, index = place
    inner, qkv = tower.heads[index] * tower.head_dim, f"{module}.qkv"
    weight, bias = (tensor.copy() for tensor in weights.linear("qkv"))
    weight[:, :inner] *= query_scale(tower)
    bias[:inner] *= query_scale(tower)
    heads, (x, entering) = (tower.heads[index], tower.head_dim), streams
    if sight.pick is None:
        joined = g.linear(qkv, entering, weight, bias)
        if _by_token(g, f"{module}.out", sight):
            parts = _heads_by_token(g, qkv, joined, heads, sight.tokens)
            return x, _attention_by_token(g, f"{module}.attention", parts, heads, sight)
        q, k, v = _heads(g, qkv, joined, 3, heads, sight.tokens)
        return x, _attention(g, f"{module}.attention", (q, k, v), heads, sight.mask, sight.tokens)
    picked = sight.pick(f"{module}.norm1.row", entering)
    row = g.linear(f"{qkv}.q", picked, weight[:, :inner], bias[:inner], qkv, slice(inner))
    joined = g.linear(f"{qkv}.kv", entering, weight[:, inner:], bias[inner:], qkv, slice(inner, None))
    (q,) = _heads(g, f"{qkv}.q", row, 1, heads, 1)
    k, v = _heads(g, f"{qkv}.kv", joined, 2, heads, sight.tokens)
    x = sight.pick(f"{module}.row", x)
    return x, _attention(g, f"{module}.attention", (q, k, v), heads, sight.mask, 1)


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


def _by_token(g: GraphWriter, out: str, sight: Sight) -> bool:
    """Whether attention and its out-projection are written for (T, N, W), in which TensorRT keeps what attention gives.

    In FP16 it turns the product around by itself; INT8 it copies first, one kernel a block. Masks of single sequences
    need four axes, which bring the copy back.
    """
    wanted = g.numerics.half_products and g.numerics.by_token and out not in g.numerics.kept
    return wanted and sight.pick is None and not sight.masks_each


def _out(g: GraphWriter, name: str, mixed: str, weights: Weights, sight: Sight) -> str:
    """(N, R, H d) -> (N, R, W)"""
    return g.linear(name, mixed, *weights.linear("out"), by_token=_by_token(g, name, sight))


def _heads_by_token(g: GraphWriter, name: str, x: str, heads: tuple[int, int], rows: int) -> list[str]:
    """(N, T, 3 * H * d) -> query, keys and values (N, H, T, d), which are (T, N H, d) in between."""
    x = g.reshape(f"{name}.parts", x, [0, rows, 3, heads[0] * heads[1]])
    x = g.node("Transpose", f"{name}.apart", x, perm=[2, 1, 0, 3])
    tensors = []
    for i in range(3):
        index = g.constant(f"{name}.{i}.index", np.asarray(i, dtype=np.int64))
        part = g.node("Gather", f"{name}.{i}", x, index, axis=0)
        part = g.reshape(f"{name}.{i}.heads", part, [rows, -1, heads[1]])
        part = g.node("Transpose", f"{name}.{i}.rows", part, perm=[1, 0, 2])
        tensors.append(g.reshape(f"{name}.{i}.turned", part, [-1, heads[0], rows, heads[1]]))
    return tensors


def _attention_by_token(g: GraphWriter, name: str, qkv: Sequence[str], heads: tuple[int, int], sight: Sight) -> str:
    """`_attention` with the heads of all sequences on one axis: (N H, T, d) -> (N, T, H d)."""
    flat = [-1, sight.tokens, heads[1]]
    q, k, v = (g.reshape(f"{name}.{part}", x, flat) for part, x in zip(("q", "k", "v"), qkv, strict=True))
    scores = g.node("MatMul", f"{name}.scores", q, g.node("Transpose", f"{name}.keys", k, perm=[0, 2, 1]))
    if sight.mask:
        scores = g.node("Add", f"{name}.masked", scores, sight.mask)
    mixed = g.node("MatMul", f"{name}.mixed", g.node("Softmax", f"{name}.softmax", scores, axis=-1), v)
    mixed = g.node("Transpose", f"{name}.joined", mixed, perm=[1, 0, 2])
    mixed = g.reshape(f"{name}.by_token", mixed, [sight.tokens, -1, heads[0] * heads[1]])
    return g.node("Transpose", name, mixed, perm=[1, 0, 2])


def project(g: GraphWriter, name: str, x: str, weight: Array, bias: Array | None) -> None:
    """(N, 1, W) @ (D, W)^T + (D,) -> `embedding` (N, D), unit norm."""
    x = g.reshape(f"{name}.pooled", x, [0, weight.shape[1]])
    x = g.node("MatMul", f"{name}.projection", x, g.real(f"{name}.projection.weight", weight.T))
    if bias is not None:
        x = g.node("Add", f"{name}.projection.add", x, g.real(f"{name}.projection.bias", bias))
    g.unit_norm("embedding", x)


def causal_mask(tokens: int, dtype: type[Any]) -> Array:
    """(T, T): 0 where a token may look, the most negative number where it may not."""
    return np.triu(np.full((tokens, tokens), np.finfo(dtype).min, dtype=dtype), k=1)
