"""What a convolutional image tower is made of: plain numbers, without torch.

The blocks are those of MobileNetV4 (Qin et al. 2024, "MobileNetV4: Universal Models for the Mobile Ecosystem"): the
universal inverted bottleneck (section 3.1), the fused one, a plain convolution, and multi-query attention (section
3.2). Each says its sizes as absolute channels, so a pruned tower is only a smaller config; `mobilenetv4.py` has the
paper's. A BatchNorm follows every convolution but attention's projections, and a ReLU where channels are expanded.
Left out: squeeze-and-excite, activations beside ReLU, and downsampled queries, which none of the four towers has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from mmcompress.frozen import Config
from mmcompress.towerparts import Group, Product

Size = Annotated[int, Field(ge=1)]
STEM_KERNEL = 3


def _odd(kernel: int) -> bool:
    return kernel % 2 == 1


def side_after(side: int, stride: int) -> int:
    """The side of what a convolution with an odd kernel gives, padded by half of its kernel."""
    return (side - 1) // stride + 1


class PlainBlock(Config):
    """A convolution with BatchNorm and ReLU."""

    kind: Literal["conv"]
    channels: Size
    """Output channels."""
    kernel: Size
    """Side of the kernel, odd."""
    stride: Size = 1
    """Of the convolution."""

    def residual(self, inputs: int) -> bool:
        return False

    def products(self, name: str, inputs: int, side: int) -> list[Product]:
        out = side_after(side, self.stride) ** 2
        return [Product(f"{name}.conv", inputs, self.channels, out, self.kernel)]

    def norms(self, inputs: int) -> int:
        """Channels of all BatchNorms."""
        return self.channels

    def kernels(self) -> tuple[int, ...]:
        return (self.kernel,)


class FusedBlock(Config):
    """Fused inverted bottleneck: a full convolution expands, a pointwise one projects."""

    kind: Literal["fused"]
    channels: Size
    """Output channels."""
    hidden: Size
    """Channels between its two convolutions."""
    kernel: Size
    """Side of the first kernel, odd."""
    stride: Size = 1
    """Of the first convolution."""

    def residual(self, inputs: int) -> bool:
        return self.stride == 1 and inputs == self.channels

    def products(self, name: str, inputs: int, side: int) -> list[Product]:
        out = side_after(side, self.stride) ** 2
        return [
            Product(f"{name}.expand", inputs, self.hidden, out, self.kernel),
            Product(f"{name}.project", self.hidden, self.channels, out),
        ]

    def norms(self, inputs: int) -> int:
        return self.hidden + self.channels

    def kernels(self) -> tuple[int, ...]:
        return (self.kernel,)


class UniversalBlock(Config):
    """Universal inverted bottleneck (section 3.1): two depthwise convolutions, both optional, around the expansion.

    With both it is the paper's ExtraDW, with `middle` alone an inverted bottleneck, with `start` alone ConvNext-like,
    with neither an FFN.
    """

    kind: Literal["uib"]
    channels: Size
    """Output channels."""
    hidden: Size
    """Channels between its pointwise convolutions."""
    start: int = Field(default=0, ge=0)
    """Side of the depthwise kernel in front of the expansion, odd; 0 for none."""
    middle: int = Field(default=0, ge=0)
    """Side of the depthwise kernel behind the expansion, odd; 0 for none."""
    stride: Size = 1
    """Of the depthwise convolution in the middle, or else of the one in front."""

    @model_validator(mode="after")
    def _strides(self) -> Self:
        if self.stride > 1 and not (self.start or self.middle):
            raise ValueError("a block without a depthwise convolution has no stride")
        return self

    @property
    def variant(self) -> str:
        """The paper's name for it."""
        return {(True, True): "ExtraDW", (False, True): "IB", (True, False): "ConvNext"}.get(
            (bool(self.start), bool(self.middle)), "FFN"
        )

    @property
    def start_stride(self) -> int:
        return 1 if self.middle else self.stride

    def residual(self, inputs: int) -> bool:
        return self.stride == 1 and inputs == self.channels

    def products(self, name: str, inputs: int, side: int) -> list[Product]:
        found, out = [], side_after(side, self.stride) ** 2
        before = side_after(side, self.start_stride) ** 2
        if self.start:
            found.append(Product(f"{name}.start", inputs, inputs, before, self.start, inputs))
        found.append(Product(f"{name}.expand", inputs, self.hidden, before))
        if self.middle:
            found.append(Product(f"{name}.middle", self.hidden, self.hidden, out, self.middle, self.hidden))
        return [*found, Product(f"{name}.project", self.hidden, self.channels, out)]

    def norms(self, inputs: int) -> int:
        return inputs * bool(self.start) + self.hidden * (1 + bool(self.middle)) + self.channels

    def kernels(self) -> tuple[int, ...]:
        return tuple(kernel for kernel in (self.start, self.middle) if kernel)


class AttentionBlock(Config):
    """Mobile multi-query attention (section 3.2): all heads share keys and values, which may be downsampled."""

    kind: Literal["mqa"]
    heads: Size
    """Attention heads."""
    head_dim: Size
    """Channels of each query, and of the shared keys and values."""
    kernel: Size = 3
    """Side of the depthwise kernel that downsamples keys and values, odd."""
    kv_stride: Size = 1
    """How keys and values are downsampled; 1 is not at all, and without that kernel."""

    @property
    def stride(self) -> int:
        return 1

    def residual(self, inputs: int) -> bool:
        return True

    def products(self, name: str, inputs: int, side: int) -> list[Product]:
        all_places, fewer = side**2, side_after(side, self.kv_stride) ** 2
        found = [Product(f"{name}.query", inputs, self.heads * self.head_dim, all_places)]
        for part in ("key", "value"):
            if self.kv_stride > 1:
                found.append(Product(f"{name}.{part}_down", inputs, inputs, fewer, self.kernel, inputs))
            found.append(Product(f"{name}.{part}", inputs, self.head_dim, fewer))
        return [*found, Product(f"{name}.out", self.heads * self.head_dim, inputs, all_places)]

    def attention_macs(self, side: int) -> int:
        """Of the two products of activations."""
        return 2 * side**2 * side_after(side, self.kv_stride) ** 2 * self.heads * self.head_dim

    def norms(self, inputs: int) -> int:
        return inputs * (3 if self.kv_stride > 1 else 1)

    def kernels(self) -> tuple[int, ...]:
        return (self.kernel,)


Bottlenecks = PlainBlock | FusedBlock | UniversalBlock
"""Blocks of convolutions alone."""
ConvBlock = Annotated[Bottlenecks | AttentionBlock, Field(discriminator="kind")]


Place = tuple[str, ConvBlock, int, int]
"""A block's name below the tower, the block, its input channels, and the side of its input."""


class ConvConfig(Config):
    """Convolutional image tower: a stem, blocks in stages, mean pooling, a pointwise convolution, and a projection."""

    kind: Literal["conv"]
    """Tells it from a vision transformer, whose documents say no kind."""
    image_size: Size
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
    """Whether what a block adds is scaled by channel (Touvron et al. 2021, "Going deeper with Image Transformers",
    equation 10): bottlenecks and attention."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Of the BatchNorms."""

    @model_validator(mode="after")
    def _has_blocks(self) -> Self:
        if not self.stages or not all(self.stages):
            raise ValueError("a tower needs at least one stage, and every stage a block")
        even = sorted({kernel for block in self.blocks for kernel in block.kernels() if not _odd(kernel)})
        if even:
            raise ValueError(f"kernels must be odd, and there is one of {even[0]}")
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


def outputs_of(block: ConvBlock, inputs: int) -> int:
    """Output channels of a block; attention keeps its inputs'."""
    return inputs if isinstance(block, AttentionBlock) else block.channels
