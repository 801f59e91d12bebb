"""What a convolutional image tower is made of: plain numbers, without torch.

A stem, blocks in stages (`convblocks.py`), mean pooling and a head. A pruned tower is only a smaller config;
`compress/train/mobilenetv4.py` has the sizes of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mmcompress.convblocks import (
    AttentionBlock,
    ConvBlock,
    FusedBlock,
    Size,
    UniversalBlock,
    outputs_of,
    side_after,
)
from mmcompress.frozen import Config
from mmcompress.towerparts import Group, Product, Side

STEM_KERNEL = 3
Place = tuple[str, ConvBlock, int, int]
"""A block's name below the tower, the block, its input channels, and the side of its input."""


class ConvConfig(Config):
    """Convolutional image tower: a stem, blocks in stages, mean pooling, a pointwise convolution, and a projection."""

    kind: Literal["conv"]
    """Tells it from a vision transformer, whose documents say no kind."""
    image_size: Side
    """Side of the square input, in pixels."""
    stem: Size
    """Channels of the first convolution, whose kernel is 3 pixels wide."""
    stem_stride: Size = 2
    """Its stride: 1 for small images."""
    stages: tuple[tuple[ConvBlock, ...], ...]
    """Blocks, stage by stage."""
    head: Size
    """Channels of the pointwise convolution behind the pooling."""
    layer_scale: bool = False
    """Whether what a block adds is scaled by channel (LayerScale, Touvron et al. 2021, "Going deeper with Image
    Transformers"): bottlenecks and attention."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Of the BatchNorms."""

    @model_validator(mode="after")
    def _has_blocks(self) -> Self:
        if not self.stages or not all(self.stages):
            raise ValueError("a tower needs at least one stage, and every stage a block")
        return self

    @property
    def blocks(self) -> tuple[ConvBlock, ...]:
        return tuple(block for stage in self.stages for block in stage)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def placed(self) -> Iterator[Place]:
        """The blocks in order, each with its place."""
        inputs, side = self.stem, side_after(self.image_size, self.stem_stride)
        for index, block in enumerate(self.blocks):
            yield f"blocks.{index}", block, inputs, side
            inputs, side = outputs_of(block, inputs), side_after(side, block.stride)

    @property
    def output_stride(self) -> int:
        return math.prod((self.stem_stride, *(block.stride for block in self.blocks)))

    @property
    def features(self) -> int:
        """Channels behind the last block."""
        return outputs_of(self.blocks[-1], [inputs for _, _, inputs, _ in self.placed()][-1])

    @property
    def last_side(self) -> int:
        """Side of the map that is pooled."""
        side = side_after(self.image_size, self.stem_stride)
        for block in self.blocks:
            side = side_after(side, block.stride)
        return side

    def products(self) -> list[Product]:
        """The convolutions, in the order of execution; the projection stays in float, as in other towers."""
        stem = side_after(self.image_size, self.stem_stride) ** 2
        found = [Product("stem", 3, self.stem, stem, STEM_KERNEL)]
        for placed, block, inputs, side in self.placed():
            found += block.products(placed, inputs, side)
        return [*found, Product("head", self.features, self.head, 1)]

    def groups(self) -> list[Group]:
        """Hidden channels of bottlenecks, which a depthwise convolution passes on one by one, and attention heads."""
        found = []
        for index, (name, block, _, _) in enumerate(self.placed()):
            if isinstance(block, (FusedBlock, UniversalBlock)):
                middle = (f"{name}.middle",) if isinstance(block, UniversalBlock) and block.middle else ()
                writers = (f"{name}.expand", *middle)
                found.append(Group("hidden", index, block.hidden, writers, f"{name}.project"))
            elif isinstance(block, AttentionBlock):
                found.append(Group("heads", index, block.heads, (f"{name}.query",), f"{name}.out"))
        return found

    def params(self, embed_dim: int) -> int:
        """Parameters; what a BatchNorm measures of its inputs is none."""
        weights = sum(product.weights for product in self.products())
        norms = self.stem + self.head + sum(block.norms(inputs) for _, block, inputs, _ in self.placed())
        scales = sum(outputs_of(block, inputs) for _, block, inputs, _ in self.placed() if self.scales(block))
        return weights + 2 * norms + scales + self.head * embed_dim

    def scales(self, block: ConvBlock) -> bool:
        """Whether a block's own output is scaled by channel."""
        return self.layer_scale and isinstance(block, (UniversalBlock, AttentionBlock))

    def macs(self, embed_dim: int) -> int:
        """Multiply-accumulates for one image, attention products included."""
        inside = sum(product.macs for product in self.products())
        attention = sum(b.attention_macs(side) for _, b, _, side in self.placed() if isinstance(b, AttentionBlock))
        return inside + attention + self.head * embed_dim

    def pooled_macs(self, embed_dim: int) -> int:
        """The same in the exported graph, which has BatchNorms inside the convolutions."""
        return self.macs(embed_dim)
