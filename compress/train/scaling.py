"""Presets made narrower, wider, shallower or deeper: image towers at shares of their channels and of their blocks.

A vision transformer changes by whole heads, and its MLPs with them; a convolutional tower by multiples of 8 channels,
as MobileNets do (Howard et al. 2017, section 3.3), and the ratios of its expansions stay. Blocks that change the size
of what they get are there once, at any depth.
"""

from __future__ import annotations

import math
from typing import TypeVar

from mmcompress.architecture import AnyImageConfig, ImageConfig
from mmcompress.convblocks import AttentionBlock, ConvBlock, FusedBlock, UniversalBlock, outputs_of
from mmcompress.convnet import ConvConfig
from mmcompress.errors import UsageError

CHANNELS = 8
"""Channels come in multiples of this."""
T = TypeVar("T")


def scaled(tower: AnyImageConfig, width: float, depth: float) -> AnyImageConfig:
    """The tower at these shares of its channels and of its blocks."""
    if (width, depth) == (1, 1):
        return tower
    return _transformer(tower, width, depth) if isinstance(tower, ImageConfig) else _convolutions(tower, width, depth)


def check_shares(tower: AnyImageConfig, width: float, depth: float) -> None:
    """Raise UsageError for shares that round to nothing, where one head, block or multiple would be kept all the same.

    A convolutional tower has blocks that are there at any depth.
    """
    if isinstance(tower, ImageConfig):
        _check_share("depth", depth, tower.depth, f"{tower.depth} blocks")
        _check_share("width", width, tower.heads[0], f"{tower.heads[0]} heads")
        return
    narrowest = min([tower.stem, tower.head, *(size for block in tower.blocks for size in _sizes(block))])
    _check_share("width", width, narrowest / CHANNELS, f"{narrowest} channels, in multiples of {CHANNELS},")
    for block in tower.blocks:
        if isinstance(block, AttentionBlock):
            _check_share("width", width, block.heads, f"{block.heads} heads")


def _check_share(key: str, share: float, units: float, what: str) -> None:
    if round(units * share) < 1:
        least = math.ceil(100 * (0.5 / units + 1e-9)) / 100
        raise UsageError(f"student.{key} {share:g}: of {what} nothing is left", f"give {least:g} or more")


def _sizes(block: ConvBlock) -> tuple[int, ...]:
    if isinstance(block, AttentionBlock):
        return ()
    return (block.channels, block.hidden) if isinstance(block, (FusedBlock, UniversalBlock)) else (block.channels,)


def _transformer(tower: ImageConfig, width: float, depth: float) -> ImageConfig:
    heads = max(1, round(tower.heads[0] * width))
    mlp, channels = tower.mlp[0] * heads // tower.heads[0], tower.head_dim * heads
    blocks = max(1, round(tower.depth * depth))
    return tower.model_copy(update={"width": channels, "heads": (heads,) * blocks, "mlp": (mlp,) * blocks})


def _convolutions(tower: ConvConfig, width: float, depth: float) -> ConvConfig:
    stages, inputs = [], tower.stem
    for stage in tower.stages:
        fixed: list[ConvBlock] = []
        kept: list[ConvBlock] = []
        for block in stage:
            (kept if block.residual(inputs) else fixed).append(block)
            inputs = outputs_of(block, inputs)
        stages.append(tuple(_narrowed(block, width) for block in [*fixed, *spread(kept, round(len(kept) * depth))]))
    stem, head = _channels(tower.stem, width), _channels(tower.head, width)
    return tower.model_copy(update={"stem": stem, "stages": tuple(stages), "head": head})


def spread(blocks: list[T], count: int) -> list[T]:
    """So many of some blocks, evenly taken, and again from the first where there are too few."""
    if count <= 0 or not blocks:
        return []
    return [blocks[index * len(blocks) // count] for index in range(count)]


def _narrowed(block: ConvBlock, width: float) -> ConvBlock:
    if isinstance(block, AttentionBlock):
        return block.model_copy(update={"heads": max(1, round(block.heads * width))})
    sizes = {"channels": _channels(block.channels, width)}
    if isinstance(block, (FusedBlock, UniversalBlock)):
        sizes["hidden"] = _channels(block.hidden, width)
    return block.model_copy(update=sizes)


def _channels(channels: int, width: float) -> int:
    return max(CHANNELS, round(channels * width / CHANNELS) * CHANNELS)
