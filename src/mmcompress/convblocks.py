"""The blocks of a convolutional image tower: plain numbers, without torch.

They are those of MobileNetV4 (Qin et al. 2024, "MobileNetV4: Universal Models for the Mobile Ecosystem"): the universal
inverted bottleneck, the fused one, a plain convolution, and mobile multi-query attention. Sizes are absolute channels,
so a pruned block is only smaller numbers. A BatchNorm follows every convolution but attention's
projections, and a ReLU where channels are expanded. Left out: squeeze-and-excite, activations beside ReLU, and
downsampled queries, which none of the four towers has.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from mmcompress.frozen import Config
from mmcompress.towerparts import Product

Size = Annotated[int, Field(ge=1)]


def _odd(kernel: int) -> int:
    if kernel and kernel % 2 == 0:
        raise ValueError("the side of a kernel must be odd")
    return kernel


Kernel = Annotated[int, Field(ge=1), AfterValidator(_odd)]
OptionalKernel = Annotated[int, Field(ge=0), AfterValidator(_odd)]
"""0 for none."""


def side_after(side: int, stride: int) -> int:
    """The side of what a convolution with an odd kernel gives, padded by half of its kernel."""
    return (side - 1) // stride + 1


class PlainBlock(Config):
    """A convolution with BatchNorm and ReLU."""

    kind: Literal["conv"]
    channels: Size
    """Output channels."""
    kernel: Kernel
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


class FusedBlock(Config):
    """Fused inverted bottleneck: a full convolution expands, a pointwise one projects."""

    kind: Literal["fused"]
    channels: Size
    """Output channels."""
    hidden: Size
    """Channels between its two convolutions."""
    kernel: Kernel
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


class UniversalBlock(Config):
    """Universal inverted bottleneck: two depthwise convolutions, both optional, around the expansion.

    With both it is the paper's ExtraDW, with `middle` alone an inverted bottleneck, with `start` alone ConvNext-like,
    with neither an FFN.
    """

    kind: Literal["uib"]
    channels: Size
    """Output channels."""
    hidden: Size
    """Channels between its pointwise convolutions."""
    start: OptionalKernel = 0
    """Side of the depthwise kernel in front of the expansion, odd; 0 for none."""
    middle: OptionalKernel = 0
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


class AttentionBlock(Config):
    """Mobile multi-query attention: all heads share keys and values, which may be downsampled."""

    kind: Literal["mqa"]
    heads: Size
    """Attention heads."""
    head_dim: Size
    """Channels of each query, and of the shared keys and values."""
    kernel: Kernel = 3
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


Bottlenecks = PlainBlock | FusedBlock | UniversalBlock
"""Blocks of convolutions alone."""
ConvBlock = Annotated[Bottlenecks | AttentionBlock, Field(discriminator="kind")]


def outputs_of(block: ConvBlock, inputs: int) -> int:
    """Output channels of a block; attention keeps its inputs'."""
    return inputs if isinstance(block, AttentionBlock) else block.channels
