"""Convolutional image towers in torch: the blocks of `convnet.py`, numerically equal to timm's MobileNetV4.

A BatchNorm here keeps no running average. While a tower trains, each batch is normalized by its own statistics, those
of all processes together; what stands in for them afterwards is measured once more on training batches, of the very
weights that are used (`compress/train/statistics.py`). So averaged weights get their own statistics, and these are no
part of the state of a training.

Activations are channels-last, which takes a CPU two thirds to four fifths of the time of the contiguous layout
(`benchmarks/results/mnv4.md`); weights stay contiguous, as they are at rest. It never ran on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcompress.convblocks import AttentionBlock, Bottlenecks, FusedBlock, PlainBlock
from mmcompress.convnet import STEM_KERNEL, ConvConfig

LAYER_SCALE = 1e-5
"""What layer scale begins with, as in the towers that timm trains."""


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe & Szegedy 2015, algorithm 1): by the batch in training, by `mean` and `variance` else.

    The variance that is stored is that of the whole population, as they are no average over batches.
    """

    mean: Tensor
    variance: Tensor
    summed: Callable[[Tensor], Tensor] | None = None
    """Adds a tensor up over processes, with a gradient; None where this one has the whole batch."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        if not self.training:
            return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=self.eps)
        if self.summed is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        number = self.summed(wide.new_tensor(float(wide.numel() // wide.shape[1])))
        mean = self.summed(wide.sum((0, 2, 3))) / number
        centred = wide - mean[:, None, None]
        variance = self.summed(centred.square().sum((0, 2, 3))) / number
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class Convolution(nn.Conv2d):
    """A convolution, its BatchNorm where it has one, and a ReLU where asked; padded by half of its kernel."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        eps: float | None,
        relu: bool = False,
        depthwise: bool = False,
    ) -> None:
        groups = inputs if depthwise else 1
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = None if eps is None else BatchNorm(outputs, eps)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')"""
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x)
        return F.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """A `PlainBlock`, `FusedBlock` or `UniversalBlock`: those of its convolutions that it has, one after another."""

    ORDER = ("conv", "start", "expand", "middle", "project")

    def __init__(self, block: Bottlenecks, inputs: int, eps: float, scaled: bool) -> None:
        super().__init__()
        self.residual = block.residual(inputs)
        self.scale = nn.Parameter(torch.full((block.channels,), LAYER_SCALE)) if scaled else None
        if isinstance(block, PlainBlock):
            self.conv = Convolution(inputs, block.channels, block.kernel, block.stride, eps=eps, relu=True)
            return
        if isinstance(block, FusedBlock):
            self.expand = Convolution(inputs, block.hidden, block.kernel, block.stride, eps=eps, relu=True)
        else:
            if block.start:
                self.start = Convolution(inputs, inputs, block.start, block.start_stride, eps=eps, depthwise=True)
            self.expand = Convolution(inputs, block.hidden, eps=eps, relu=True)
            if block.middle:
                sizes = (block.hidden, block.hidden, block.middle, block.stride)
                self.middle = Convolution(*sizes, eps=eps, relu=True, depthwise=True)
        self.project = Convolution(block.hidden, block.channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')"""
        y = x
        for part in self.ORDER:
            y = getattr(self, part)(y) if part in self._modules else y
        y = y if self.scale is None else y * self.scale[:, None, None]
        return x + y if self.residual else y


class MultiQueryAttention(nn.Module):
    """x + scale * attention(norm(x)), where all heads share keys and values (Shazeer 2019, section 3)."""

    scaling: float | None = None
    """Of the scores; None is 1 / sqrt(head_dim)."""

    def __init__(self, block: AttentionBlock, channels: int, eps: float, scaled: bool) -> None:
        super().__init__()
        self.heads, dim, stride = block.heads, block.head_dim, block.kv_stride
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE)) if scaled else None
        self.norm = BatchNorm(channels, eps)
        self.query = Convolution(channels, self.heads * dim, eps=None)
        for part in ("key", "value"):
            if stride > 1:
                down = Convolution(channels, channels, block.kernel, stride, eps=eps, depthwise=True)
                self.add_module(f"{part}_down", down)
            self.add_module(part, Convolution(channels, dim, eps=None))
        self.out = Convolution(self.heads * dim, channels, eps=None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        normed = self.norm(x)
        query = self.query(normed).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        key, value = (self._shared(part, normed) for part in ("key", "value"))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)  # (B, heads, T, d)
        y = self.out(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))
        y = y if self.scale is None else y * self.scale[:, None, None]
        return x + y  # type: ignore[no-any-return]

    def _shared(self, part: str, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, T', d): the keys or values of every head."""
        down = self._modules.get(f"{part}_down")
        one: Tensor = getattr(self, part)(x if down is None else down(x)).flatten(2).transpose(1, 2)[:, None]
        return one.expand(-1, self.heads, -1, -1)


class ConvTower(nn.Module):
    """Pixels to embedding through a `ConvConfig`."""

    recomputing: Callable[..., Tensor] | None = None
    """What computes a block so that the backward pass does it again, and what is inside is not kept."""

    def __init__(self, config: ConvConfig, embed_dim: int) -> None:
        super().__init__()
        eps = config.norm_eps
        self.stem = Convolution(3, config.stem, STEM_KERNEL, config.stem_stride, eps=eps, relu=True)
        self.blocks = nn.ModuleList()
        for _, block, inputs, _ in config.placed():
            scaled = config.scales(block)
            self.blocks.append(
                MultiQueryAttention(block, inputs, eps, scaled)
                if isinstance(block, AttentionBlock)
                else Bottleneck(block, inputs, eps, scaled)
            )
        self.head = Convolution(config.features, config.head, eps=eps, relu=True)
        self.projection = nn.Linear(config.head, embed_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)"""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x) if self.recomputing is None else self.recomputing(block, x)
        return self.leave(x)

    def leave(self, x: Tensor) -> Tensor:
        """(B, C, H, W) behind the last block -> (B, D)"""
        x = self.head(x.mean((2, 3), keepdim=True))
        return self.projection(x.flatten(1))  # type: ignore[no-any-return]


def initialize_convolutions(tower: ConvTower, generator: torch.Generator) -> None:
    """Random weights of variance 2 / fan-out (He et al. 2015, equation 14), so that what passes the ReLUs keeps its
    size; BatchNorms and layer scale stay as they begin."""
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out), generator=generator)
    nn.init.normal_(tower.projection.weight, std=tower.projection.in_features**-0.5, generator=generator)
