"""The work of an image tower by kind: what its latency is composed of, from its config alone.

Multiply-accumulates are counted by kind of product, since a machine does a pointwise convolution many times as fast as
a depthwise one; numbers that are written, since memory is what small tensors wait for; and products, since each call of
a kernel costs something by itself.
"""

from __future__ import annotations

from typing import Literal

from mmcompress.architecture import AnyImageConfig, ImageConfig
from mmcompress.convblocks import AttentionBlock
from mmcompress.convnet import ConvConfig
from mmcompress.towerparts import Product

Family = Literal["transformer", "convolutional"]
KINDS = ("full", "pointwise", "depthwise", "linear", "attention", "written", "scores", "calls")
"""Convolutions over places and channels, over channels, over places; Linears; products of activations; numbers that
products write; attention scores; and products."""


def family_of(tower: AnyImageConfig) -> Family:
    return "transformer" if isinstance(tower, ImageConfig) else "convolutional"


def work_of(tower: AnyImageConfig, embed_dim: int) -> dict[str, float]:
    """How much work of each kind one image is; kinds that the tower does not have are left out."""
    products = list(tower.products())
    work = dict.fromkeys(KINDS, 0.0)
    for product in products:
        work[_kind(product, isinstance(tower, ConvConfig))] += product.macs
        work["written"] += product.outputs * product.places
        work["calls"] += 1
    if isinstance(tower, ConvConfig):
        for _, block, _, side in tower.placed():
            if isinstance(block, AttentionBlock):
                work["attention"] += block.attention_macs(side)
                work["scores"] += block.heads * side**2 * (side // block.kv_stride) ** 2
    else:
        blocks = tower.block_macs(tower.tokens)
        work["attention"] = blocks - work["linear"]
        work["full"] = tower.macs(embed_dim) - blocks
        work["scores"] = sum(tower.heads) * tower.tokens**2
    return {kind: amount for kind, amount in work.items() if amount}


def _kind(product: Product, convolution: bool) -> str:
    if not convolution:
        return "linear"
    if product.groups > 1:
        return "depthwise"
    return "pointwise" if product.kernel == 1 else "full"
